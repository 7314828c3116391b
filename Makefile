# make demo and make test do all the set-up by themselves; what is done already is skipped.
PYTHON ?= python3
STACK ?= petastorm
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(STACK)

.PHONY: help setup demo test test-latest params lint benchmark clean

help:
	@echo "make demo         train, save, reload and score a Pipeline on real data (sets everything up)"
	@echo "make test         lint, types and the whole test suite (sets everything up)"
	@echo "make test-latest  the test suite, Spark Connect too, on the newest versions (sets .venv-latest up)"
	@echo "make setup        the set-up alone: $(VENV), pinned dependencies, the Horovod build"
	@echo "make params       write what follows from the Params: README's table and the stubs of getters and setters"
	@echo "make benchmark    the figures of tests/benchmarks, beside the peers'"
	@echo "make clean        remove $(VENV) and .venv-latest"

setup: $(READY)

$(READY): setup.cfg constraints/$(STACK).txt tools/set-up.sh
	PYTHON=$(PYTHON) tools/set-up.sh $(VENV) $(STACK)
	@touch $@

demo: setup
	$(BIN)/python examples/features_to_logistic_regression/train.py
	$(BIN)/python examples/features_to_logistic_regression/score.py

test: lint
	$(BIN)/python -m pytest

# A process has sessions of Spark Connect or others, never both: so it is two runs.
test-latest:
	$(MAKE) setup STACK=latest VENV=.venv-latest
	.venv-latest/bin/python -m pytest --ignore tests/connect
	.venv-latest/bin/python -m pytest tests/connect

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

params: setup
	PYTHONPATH=. $(BIN)/python tools/generate_params.py

benchmark: setup
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-latest
