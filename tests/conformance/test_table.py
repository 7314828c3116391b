"""Whatever Keras trains, the product trains to the same weights and metrics, on one rank and on two."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.table import CASES

MOVED = 1e-4  # training that changes the weights by less would prove nothing


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.more] * case.more) for name, case in CASES.items()]
)
def test_case(case, pair):
    result = pair.run(case.name)
    assert "error" not in result, result["error"]
    if case.refused:
        assert case.refused in result["refused"]
        assert len(result["refused"].splitlines()) <= 8
        return
    assert result["moved"] > MOVED
    for ranks in ("one", "two") if case.kind == "exact" else ("one",):
        found = result[ranks]
        assert found["names"], (ranks, result["histories"])
        assert found["weights"] <= case.tolerance, (ranks, found)
        assert found["metrics"] <= max(case.tolerance, 1e-5), (ranks, found, result["histories"])
    assert result["apart"] == 0
    two = result["histories"]["two"]
    assert set(two) == set(result["histories"]["plain"])
    assert all(np.isfinite(values).all() for values in two.values()) or case.kind == "exact"


def test_size_of_the_table():
    kinds = [case.kind for case in CASES.values() if not case.refused]
    assert len(CASES) >= 150
    assert kinds.count("exact") >= 0.95 * len(kinds)
