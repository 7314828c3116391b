"""What a case of the conformance table is: a network, its rows, and what is expected of the product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

__all__ = [
    "BATCH",
    "Case",
    "Data",
    "In",
    "L",
    "Seq",
    "classes",
    "compiled",
    "floats",
    "ids",
    "one_hot",
    "ragged",
    "rows",
]

BATCH = 8  # rows of a rank and step; plain Keras and a single rank take twice as many
L, Seq, In = keras.layers, keras.Sequential, keras.Input
Random = np.random.Generator


@dataclass(frozen=True)
class Data:
    """Rows as plain Keras takes them: ``x`` and ``y`` are arrays, lists or dicts of them, ``w`` a weight per row."""

    x: Any
    y: Any = None
    w: Any = None


@dataclass(frozen=True)
class Case:
    """A network that plain Keras, one rank and two ranks train on the same global batches.

    Attributes:
        build: makes the network, compiled as a user does; always with the same weights.
        data: makes so many rows, from a random generator.
        params: makes the Params of the estimator, beside those that every case sets.
        callbacks: what the user gives as callbacks, as (class or name, arguments), for a folder to write to.
        tolerance: the largest difference of weights, relative to 1 + their size; of metrics at least 1e-5, for Keras
            counts them in float32.
        kind: "exact" on one rank and on two; or "one rank", for what two ranks by nature compute otherwise: there they
            have to agree with each other.
        refused: words of the error that the driver raises before the job; empty for what trains.
        plain: makes the network for plain Keras, where a Param of the product changes what Keras is told otherwise.
        train, valid: the number of rows. The last step is uneven (8 and 3 rows), or rank 1 has none in it (5 and 0).
        steps: the Param stepsPerExecution; None for the default.
        more: whether the case is one of those that only ``make test-conformance-all`` runs.
        split: "even", or "first" for a second rank without any row.
        reseeded: plain Keras has its seeds set as the product does it at the beginning of each epoch.
        check: called in the end with the folders of plain Keras and of the product.
    """

    name: str
    build: Callable[[], Any]
    data: Callable[[Random, int], Data]
    params: Callable[[], dict[str, Any]] = dict
    callbacks: Callable[[str], Sequence[tuple[Any, dict[str, Any]]]] = lambda folder: ()
    tolerance: float = 1e-5
    kind: str = "exact"
    refused: str = ""
    ranks: int = 2
    plain: Callable[[], Any] | None = None
    train: int = 2 * 16 + 11
    valid: int = 16 + 5
    steps: int | None = None
    more: bool = False
    split: str = "even"
    reseeded: bool = False
    check: Callable[[Any, Any], None] = lambda plain, product: None


def compiled(model: Any, loss: Any = "mse", optimizer: Any = None, **options: Any) -> Any:
    """The model, compiled with SGD where nothing else is asked for."""
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.5), loss, **options)
    return model


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def floats(random: Random, count: int, *shape: int) -> np.ndarray:
    """Random float32 numbers, [count, *shape]."""
    return random.normal(size=(count, *shape)).astype("float32")


def ids(random: Random, count: int, classes: int, *shape: int) -> np.ndarray:
    """Random class indices, [count, *shape]."""
    return random.integers(0, classes, (count, *shape))


def one_hot(random: Random, count: int, classes: int) -> np.ndarray:
    """Random classes as rows with a single 1."""
    return np.eye(classes, dtype="float32")[ids(random, count, classes)]


def ragged(make: Callable[[int], np.ndarray], lengths: Sequence[int]) -> np.ndarray:
    """An array of arrays: one of ``make(length)`` for each length."""
    found = np.empty(len(lengths), object)
    for row, length in enumerate(lengths):
        found[row] = make(length)
    return found


def rows(*shape: int, out: int = 1, weighted: bool = False) -> Callable[[Random, int], Data]:
    """Rows of numbers, and ``out`` numbers for each; with weights between 0 and 3 if asked for."""
    return lambda random, count: Data(
        floats(random, count, *shape),
        floats(random, count, out),
        random.uniform(0, 3, count).astype("float32") if weighted else None,
    )


def classes(number: int, *shape: int, weighted: bool = False) -> Callable[[Random, int], Data]:
    """Rows of numbers, and the index of a class for each."""
    return lambda random, count: Data(
        floats(random, count, *shape),
        ids(random, count, number),
        random.uniform(0, 3, count).astype("float32") if weighted else None,
    )
