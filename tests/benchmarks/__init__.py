"""The figures that the project is held to, beside its peers': ``python -m tests.benchmarks``."""
