"""The conformance table: all cases by name."""

from __future__ import annotations

import importlib
from dataclasses import replace

from tests.conformance.case import Case

__all__ = ["CASES"]

KINDS = (
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "callbacks",
    "types",
    "masks",
    "custom",
    "subclassed",
    "architectures",
)

# To save time: of kinds with many small cases, three of four run only where all cases are asked for, and those have no
# validation rows and one step in a call of TensorFlow; of the other kinds, one of three.
SMALL = ("layers", "losses", "metrics", "optimizers")
UNEVEN, IDLE = 2 * 16 + 11, 2 * 16 + 5  # rows: 8 and 3 in the last step; 5 and none, in every third case

CASES: dict[str, Case] = {}
for kind in KINDS:
    for case in importlib.import_module(f"tests.conformance.cases_{kind}").CASES:
        assert case.name not in CASES, case.name
        if len(CASES) % 3 == 2 and case.train == UNEVEN and case.split == "even":
            case = replace(case, train=IDLE)
        number = len(CASES)
        if kind in SMALL and number % 4:
            case = replace(case, valid=0, steps=1, more=True)
        elif kind not in SMALL and number % 3 == 1:
            case = replace(case, more=True)
        CASES[case.name] = case
