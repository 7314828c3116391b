"""Cases: one for each family of layers."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import Case, In, L, Seq, compiled, rows


def ends(name: str, shape: tuple[int, ...], *make: Any, **options: Any) -> Case:
    """A case of layers between an input of this shape and two numbers."""

    def build() -> Any:
        return compiled(Seq([In(shape), *(one() for one in make), L.Flatten(), L.Dense(2)]))

    return Case(name, build, rows(*shape, out=2), **options)


CASES = [
    ends("dense", (4,), lambda: L.Dense(6, "tanh")),
]
