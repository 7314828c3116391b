"""The weight of each row in the loss: that of ``weightCol`` times that of the row's class (rank side)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from cos_ml.data.columns import Column
from cos_ml.data.spool import SpooledRows
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import ClassWeights, TrainSpec

__all__ = ["RowWeights"]


class RowWeights:
    """The weights of the rows of one part, scaled so that their mean over the rows of all ranks is 1.

    A weighted mean is then Keras's own arithmetic, which divides by rows.

    Attributes:
        column: the column of weights in a step; None for rows without weights.
    """

    def __init__(
        self, part: str, spec: TrainSpec, rows: SpooledRows | ShardRows, communicator: Communicator, total_rows: int
    ) -> None:
        self.classes = spec.class_weights if part == "train" else None  # as in Keras: validation rows count alike
        self.column = spec.weight or (Column("classWeights", "w") if self.classes else None)
        self.scale = 1.0
        if self.column is None or not total_rows:
            return
        fields = [*(["w"] if spec.weight else []), *([self.classes.label] if self.classes else [])]
        if self.classes:
            self.by_class = _by_class(self.classes, rows, communicator)
        own = math.fsum(chain.from_iterable(self._unscaled(piece).tolist() for piece in rows.scan(fields)))
        total = communicator.exact_sum(own)
        self.scale = total_rows / total if total else 1.0

    def of(self, arrays: Mapping[str, Any]) -> np.ndarray:
        """The weights of rows, given as arrays by field."""
        weights = self._unscaled(arrays)
        return (weights * self.scale).astype(weights.dtype)

    def _unscaled(self, arrays: Mapping[str, Any]) -> np.ndarray:
        if not self.classes:
            return arrays["w"]  # type: ignore[no-any-return]
        weights = self.by_class[_classes(self.classes, arrays[self.classes.label])]
        return (weights * arrays["w"] if "w" in arrays else weights).astype(np.float32)


def _by_class(classes: ClassWeights, rows: SpooledRows | ShardRows, communicator: Communicator) -> np.ndarray:
    """float64 [classes + 1]: the weight of each class, and 1 for rows of none.

    Balanced weights are rows / (classes that occur * rows of the class).
    """
    if classes.weights is not None:
        return np.array([*classes.weights, 1.0])
    counts = np.zeros(classes.count + 1, np.int64)
    for piece in rows.scan([classes.label]):
        counts += np.bincount(_classes(classes, piece[classes.label]), minlength=len(counts))
    counts = communicator.sum(counts)
    known = counts[:-1]
    balanced = known.sum() / (max(np.count_nonzero(known), 1) * np.maximum(known, 1))
    return np.append(balanced, 1.0)


def _classes(classes: ClassWeights, labels: Any) -> np.ndarray:
    """int64 [B]: the classes of ids or of one-hot rows; ``classes.count`` for an ignored label."""
    rows = labels.reshape(len(labels), math.prod(labels.shape[1:]))
    found = rows.argmax(axis=1) if rows.shape[1] > 1 else rows[:, 0]
    return np.where((found >= 0) & (found < classes.count), found, classes.count).astype(np.int64)
