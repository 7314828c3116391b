"""The conformance table: all cases by name."""

from __future__ import annotations

import importlib

from tests.conformance.case import Case

__all__ = ["CASES"]

KINDS = ("layers", "losses", "metrics", "optimizers", "callbacks", "types", "masks", "custom", "architectures")

CASES: dict[str, Case] = {}
for kind in KINDS:
    for case in importlib.import_module(f"tests.conformance.cases_{kind}").CASES:
        assert case.name not in CASES, case.name
        CASES[case.name] = case
