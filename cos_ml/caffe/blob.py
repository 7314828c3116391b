"""A Caffe blob as a Keras tensor, and which axis is which (driver side)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from cos_ml.errors import InvalidInputError

__all__ = ["Blob", "layout"]


def layout(ndim: int, rows: int = 0) -> tuple[int, ...]:
    """The order of axes in Keras of a blob: rows first, and the channels of images last."""
    if rows == 0 and ndim == 4:
        return (0, 2, 3, 1)
    return (rows, *(axis for axis in range(ndim) if axis != rows))


@dataclass(frozen=True)
class Blob:
    """A tensor in a Keras network, and the axes of the blob that it is.

    Attributes:
        tensor: the Keras tensor, with the rows first.
        axes: axis i of the tensor is axis ``axes[i]`` of the blob: (0, 2, 3, 1) for images, (1, 0, 2) for sequences
            whose time comes first.
    """

    tensor: Any
    axes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any, rows: int = 0) -> Blob:
        """A tensor in the usual layout; ``rows`` is the axis of the rows in Caffe: 1 for sequences."""
        return cls(tensor, layout(len(tensor.shape), rows))

    @property
    def ndim(self) -> int:
        """How many axes the blob has."""
        return len(self.axes)

    @property
    def rows(self) -> int:
        """The axis of the rows in Caffe's order."""
        return self.axes[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The sides in Caffe's order; None for the rows and for sides that are not known."""
        return tuple(self.tensor.shape[self.axes.index(axis)] for axis in range(self.ndim))

    def caffe_axis(self, axis: int, after: bool = False) -> int:
        """An axis as Caffe counts it, from 0; ``after`` allows the place after the last one, as for a new axis."""
        size = self.ndim + after
        if not -size <= axis < size:
            raise InvalidInputError(f"expected an axis of a blob with {self.ndim} axes, received {axis}.")
        return axis % size

    def axis(self, axis: int) -> int:
        """The axis of the Keras tensor that is an axis of the blob; negative ones count from the blob's end."""
        return self.axes.index(self.caffe_axis(axis))

    def like(self, tensor: Any) -> Blob:
        """A blob of the same layout."""
        return Blob(tensor, self.axes)

    def ordered(self, axes: Sequence[int], name: str) -> Blob:
        """The same blob with its axes in another order, whose first is that of the rows; ``name`` is the layer's."""
        if tuple(axes) == self.axes:
            return self
        order = [self.axes.index(axis) for axis in axes]
        return Blob(keras.layers.Permute(order[1:], name=name)(self.tensor), tuple(axes))

    def in_layout(self, name: str) -> Blob:
        """The blob in the usual layout of its axes."""
        return self.ordered(layout(self.ndim, self.rows), name)

    def in_caffe_order(self, name: str) -> Blob:
        """The blob with the rows first and all other axes in Caffe's order."""
        return self.ordered((self.rows, *(axis for axis in range(self.ndim) if axis != self.rows)), name)
