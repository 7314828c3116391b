# make demo and make test do all the set-up by themselves; what is done already is skipped.
PYTHON ?= python3
STACK ?= petastorm
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(STACK)
SKIP = processes or more
# Processes with the tests of a file at a time; three of those with a session, for a fit waits as long as it computes.
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test unit local test-conformance test-conformance-all test-latest test-connect test-cluster test-yarn yarn-kills test-s3 test-tables test-kubernetes test-networks test-connect-hosts test-processes test-long test-integrations test-newest fuzz params notebooks docs dist lint format benchmark clean

help:
	@echo "make demo            train, save, reload and score a Pipeline on real data (sets everything up)"
	@echo "make test            lint, types, and the tests that need no process or cluster of their own (sets everything up)"
	@echo "make test-latest     what depends on versions of Spark, Arrow, pandas and NumPy, on the newest pinned"
	@echo "make test-connect    the tests of Spark Connect, with the newest pinned"
	@echo "make test-conformance  40 networks, losses, optimizers and so on, each trained by plain Keras, one rank and two"
	@echo "make test-processes  the tests of kills, hangs, fresh processes and the examples, with ranks started as a user's are"
	@echo "make test-long       what takes minutes and seldom breaks: notebooks, whole programs on clusters, more cases"
	@echo "make test-cluster    the tests on executor processes and on a standalone cluster; VENV=... names the environment"
	@echo "make test-connect-hosts  a client of Spark Connect, its server and executors as hosts of their own; needs root"
	@echo "make test-yarn       the tests on YARN and HDFS, whose jars Maven fetches once (100 MB); needs a JDK and Maven"
	@echo "make yarn-kills      kills 20 ranks, workers and containers of fits on YARN; KILLS=... for another number"
	@echo "make test-s3         the tests on S3, by Spark's own client, whose jars Maven fetches once (560 MB), and a server by pip"
	@echo "make test-tables     the tests on tables of Delta and Iceberg, whose jars Maven fetches once (53 MB)"
	@echo "make test-kubernetes  the tests on Spark's scheduler for Kubernetes, with a mock API server (Maven, 33 MB, once); needs root"
	@echo "make test-networks   the tests on hosts with awkward networks; needs root, and Debian's nftables, iproute2"
	@echo "make test-integrations  the tests of MLflow, exports, keras-hub and so on, with these packages (1 GB) in .venv-integrations"
	@echo "make test-newest     the tests on the newest releases that exist, to see whether bounds in setup.cfg can be raised"
	@echo "make fuzz            reads damaged files: FORMAT=all, or lmdb, keras and so on; FILES=10000, SEED=0"
	@echo "make unit, local     a part of make test, without lint"
	@echo "make lint            ruff and mypy"
	@echo "make format          ruff format, and ruff's automatic fixes"
	@echo "make setup           the set-up alone: $(VENV), pinned dependencies, the Horovod build"
	@echo "make params          write what follows from the Params: docs/params.md and the stubs of getters and setters"
	@echo "make docs            the documentation site, in build/site"
	@echo "make dist            the sdist and the wheel, in dist, checked by twine"
	@echo "make notebooks       execute the notebooks of examples/notebooks and keep their outputs"
	@echo "make benchmark       the figures of tests/benchmarks, beside the peers'"
	@echo "make clean           remove the environments: $(VENV), .venv-latest and others"

setup: $(READY)

$(READY): setup.cfg $(wildcard constraints/*.txt) tools/set-up.sh cos_ml/horovod_build/build.py
	PYTHON=$(PYTHON) tools/set-up.sh $(VENV) $(STACK)
	@touch $@

demo: setup
	$(BIN)/python examples/features_to_logistic_regression/train.py
	$(BIN)/python examples/features_to_logistic_regression/score.py

# The cheapest first: what fails there needs no session to be seen.
test: lint unit local

unit: setup
	$(PYTEST) -n 2 tests/unit -m "not ($(SKIP))"

local: setup
	$(PYTEST) -n 3 tests/local -m "not ($(SKIP))"

test-processes: setup
	$(PYTEST) -n 3 tests/local -m "processes and not long"

test-long: setup
	$(PYTEST) -n 2 tests/unit tests/local -m more
	$(PYTEST) -n 2 tests/local -m long
	$(PYTEST) -n 2 tests/standalone tests/cluster -m long

notebooks: setup
	$(BIN)/python tools/run_notebooks.py

test-cluster: setup
	$(PYTEST) -n 2 tests/standalone tests/cluster -m "not long"

test-yarn: setup
	@$(BIN)/python -m tests.yarn.jars
	$(BIN)/python -m pytest tests/yarn

# 20 fits, each with a kill: not a test, for it takes longer.
yarn-kills: setup
	@$(BIN)/python -m tests.yarn.jars
	$(BIN)/python -m tests.benchmarks.yarn_kills $(KILLS)

test-s3: setup
	@$(BIN)/python -m tests.s3.servers
	$(BIN)/python -m pytest tests/s3

test-tables: setup
	@$(BIN)/python -m tests.tables.lake
	$(BIN)/python -m pytest tests/tables

test-kubernetes: setup
	@$(BIN)/python -m tests.kubernetes.jars
	$(BIN)/python -m pytest tests/kubernetes

test-networks: setup
	@$(BIN)/python -m tests.networks.namespaces
	$(BIN)/python -m pytest tests/networks

# Two rank processes train all cases, one after the other: they use both cores.
test-conformance: setup
	$(BIN)/python -m pytest -n 2 --dist load tests/conformance -m "not more"

test-conformance-all: setup
	$(BIN)/python -m pytest -n 2 --dist load tests/conformance

test-latest:
	$(MAKE) unit local STACK=latest VENV=.venv-latest SKIP="processes or more or once"

# A process has sessions of Spark Connect or others, never both: so it is a run of its own.
test-connect:
	$(MAKE) setup STACK=latest VENV=.venv-latest
	.venv-latest/bin/python -m pytest tests/connect

# The client's environment is made as a user makes it, from a wheel; what that requires is installed once.
test-connect-hosts:
	$(MAKE) setup STACK=latest VENV=.venv-latest
	.venv-latest/bin/python -m tests.connect_hosts.environment
	.venv-latest/bin/python -m pytest tests/connect_hosts

# MLflow, ONNX, keras-hub and other packages that cos_ml works with, in an environment of their own.
test-integrations:
	$(MAKE) setup STACK=integrations VENV=.venv-integrations
	.venv-integrations/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integrations

# No constraints and no bounds: installed anew each time.
test-newest:
	PYTHON=$(PYTHON) tools/set-up.sh .venv-newest newest
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit tests/local
	.venv-newest/bin/python -m pytest tests/connect
	.venv-newest/bin/python -m pytest tests/cluster

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

params: setup
	PYTHONPATH=. $(BIN)/python tools/generate_params.py

.venv-docs/.ready: constraints/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --disable-pip-version-check -q -r constraints/docs.txt
	@touch $@

# --strict: a link that leads nowhere is an error. Nothing of the package is imported.
docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "build/site/index.html"

dist: .venv-docs/.ready
	rm -rf dist
	.venv-docs/bin/python -m build
	.venv-docs/bin/twine check --strict dist/*

# A damaged file is read or refused, by a process with a bound of memory and time.
FORMAT ?= all
FILES ?= 10000
SEED ?= 0
fuzz: setup
	$(BIN)/python -m tests.fuzz $(FORMAT) $(FILES) $(SEED)

benchmark: setup
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) .venv-latest .venv-newest .venv-docs .venv-integrations build dist
