"""Caffe's fillers as Keras's initializers (every side)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from cos_ml.caffe.problems import problem

__all__ = ["Bilinear", "PositiveUnitball", "SparseNormal", "initializer"]

registered = keras.saving.register_keras_serializable(package="cos_ml")
MODES = ("fan_in", "fan_out", "fan_avg")  # by the numbers of variance_norm
SWAPPED = {"fan_in": "fan_out", "fan_out": "fan_in", "fan_avg": "fan_avg"}


@registered
class Bilinear(keras.initializers.Initializer):
    """Filters (height, width, ...) that enlarge an image bilinearly."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """The filters."""
        sides = []
        for side in shape[:2]:
            factor = math.ceil(side / 2)
            centre = (side - 1) / (2 * factor)
            sides.append(1 - np.abs(np.arange(side) / factor - centre))
        filters = np.outer(*sides).reshape(*shape[:2], *[1] * (len(shape) - 2))
        return ops.convert_to_tensor(np.broadcast_to(filters, shape).astype(np.float32), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


@registered
class PositiveUnitball(keras.initializers.RandomUniform):
    """Positive numbers that add up to 1 in each unit, which is the last axis here."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(0.0, 1.0, seed)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """The numbers."""
        drawn = super().__call__(shape, dtype)
        return drawn / ops.sum(drawn, tuple(range(len(shape) - 1)), keepdims=True)

    def get_config(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": super().get_config()["seed"]}


@registered
class SparseNormal(keras.initializers.RandomNormal):
    """Normal numbers, of which each unit has so many on average, and zeros.

    Args:
        mean: of the numbers.
        stddev: of the numbers.
        count: how many inputs of a unit are not zero on average.
        seed: of the draw.
    """

    def __init__(self, mean: float = 0.0, stddev: float = 1.0, count: int = 0, seed: Any = None) -> None:
        super().__init__(mean, stddev, seed)
        self.count = count

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """The numbers."""
        drawn = super().__call__(shape, dtype)
        seed = self.seed + 1 if isinstance(self.seed, int) else self.seed  # the same one would draw the same bits
        kept = keras.random.uniform(shape, seed=seed) < self.count / shape[-1]
        return ops.where(kept, drawn, ops.zeros_like(drawn))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "count": self.count}


def initializer(layer: Any, filler: Any, default: float = 0.0, swapped: bool = False, vector: bool = False) -> Any:
    """The Keras initializer of a filler.

    Args:
        layer: the message of the layer, for errors.
        filler: the filler; None for a constant.
        default: the constant of a layer that has no filler.
        swapped: whether Caffe's array is not transposed in Keras, so that inputs and outputs change places.
        vector: whether the weights have one axis: each number is then a unit of its own in Caffe.
    """
    if filler is None:
        return keras.initializers.Constant(default)
    kind = filler.type or "constant"
    if kind == "constant":
        return keras.initializers.Constant(filler.value)
    if kind == "uniform":
        return keras.initializers.RandomUniform(filler.min, filler.max if filler.HasField("max") else 1.0)
    if kind == "gaussian":
        deviation = filler.std if filler.HasField("std") else 1.0
        if filler.HasField("sparse") and filler.sparse >= 0:
            return SparseNormal(filler.mean, deviation, filler.sparse)
        return keras.initializers.RandomNormal(filler.mean, deviation)
    if kind in ("xavier", "msra"):
        return _by_variance(kind, MODES[filler.variance_norm], swapped, vector)
    if kind == "positive_unitball":
        return PositiveUnitball()
    if kind == "bilinear":
        return Bilinear()
    raise problem(layer, f"its filler has the type {kind!r}; constant, uniform, gaussian, xavier, msra, "
                  "positive_unitball and bilinear are supported")  # fmt: skip


def _by_variance(kind: str, mode: str, swapped: bool, vector: bool) -> Any:
    """Xavier's and He's initializers with Caffe's count of inputs and outputs."""
    if vector:
        return keras.initializers.RandomUniform(-math.sqrt(3), math.sqrt(3)) if kind == "xavier" else (
            keras.initializers.RandomNormal(0.0, math.sqrt(2)))  # fmt: skip
    scale, distribution = (1.0, "uniform") if kind == "xavier" else (2.0, "untruncated_normal")
    return keras.initializers.VarianceScaling(scale, SWAPPED[mode] if swapped else mode, distribution)
