"""Caffe's layers that join, cut and reshape blobs, as Keras layers (driver side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from cos_ml.caffe.blob import Blob, layout
from cos_ml.caffe.layers import ArgMax, Crop, Slice, WeightedSum
from cos_ml.caffe.problems import problem, unknown_sides
from cos_ml.caffe.schema import enum_name

__all__ = ["argmax", "concat", "crop", "eltwise", "flatten", "permute", "reshape", "silence", "slices", "split"]


def split(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """The same blob several times."""
    same = bottoms[0].like(keras.layers.Identity(name=name)(bottoms[0].tensor))
    return [same] * len(layer.top)


def silence(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Nothing: the layer uses blobs that nobody else does."""
    return []


def eltwise(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Sum, product or maximum of blobs of one shape."""
    given = layer.eltwise_param
    operation, coefficients = enum_name(given, "operation"), list(given.coeff)
    for bottom in bottoms[1:]:
        if bottom.shape != bottoms[0].shape:
            raise problem(layer, f"expected bottoms of one shape, received {bottoms[0].shape} and {bottom.shape}")
    if coefficients and (operation != "SUM" or len(coefficients) != len(bottoms)):
        raise problem(layer, f"expected a coeff for each of {len(bottoms)} bottoms of a SUM, received {coefficients}")
    tensors = _aligned(layer, bottoms, name)
    if coefficients and set(coefficients) != {1.0}:
        return [bottoms[0].like(WeightedSum(coefficients, name=name)(tensors))]
    kind = {"SUM": keras.layers.Add, "PROD": keras.layers.Multiply, "MAX": keras.layers.Maximum}[operation]
    return [bottoms[0].like(kind(name=name)(tensors))]


def concat(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Blobs one after the other along an axis."""
    given, first = layer.concat_param, bottoms[0]
    axis = _axis(layer, first, given.concat_dim if given.HasField("concat_dim") else given.axis)
    for bottom in bottoms[1:]:
        sides = [tuple(side for at, side in enumerate(one.shape) if at != axis) for one in (first, bottom)]
        if bottom.ndim != first.ndim or sides[0] != sides[1]:
            raise problem(layer, f"expected bottoms that differ on axis {axis} alone, received "
                          f"{first.shape} and {bottom.shape}")  # fmt: skip
    if len(bottoms) == 1:
        return [first.like(keras.layers.Identity(name=name)(first.tensor))]
    joined = keras.layers.Concatenate(first.axis(axis), name=name)(_aligned(layer, bottoms, name))
    return [first.like(joined)]


def slices(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Parts of a blob along an axis: equal ones, or between the points that are given."""
    given, bottom, count = layer.slice_param, bottoms[0], len(layer.top)
    axis = _axis(layer, bottom, given.slice_dim if given.HasField("slice_dim") else given.axis)
    side, points = bottom.shape[axis], list(given.slice_point)
    if side is None:
        raise unknown_sides(layer, bottom.shape)
    if points and (len(points) != count - 1 or sorted({0, *points, side}) != [0, *points, side]):
        raise problem(layer, f"expected {count - 1} ascending slice_points between 0 and {side}, received {points}")
    if count < 1 or (not points and side % count):
        raise problem(layer, f"{count} tops do not divide {side}, the side of axis {axis}")
    if count == 1:
        return [bottom.like(keras.layers.Identity(name=name)(bottom.tensor))]
    points = points or [side // count * part for part in range(1, count)]
    return [bottom.like(part) for part in Slice(points, bottom.axis(axis), name=name)(bottom.tensor)]


def crop(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """The part of the first blob that has the second one's size from an axis on."""
    given, bottom, like = layer.crop_param, *bottoms
    first, offsets = bottom.caffe_axis(given.axis), list(given.offset)
    if first <= bottom.rows:
        raise problem(layer, f"axis {first} would crop the rows of a batch; the rows are axis {bottom.rows}")
    if like.ndim != bottom.ndim or like.rows != bottom.rows:
        raise problem(layer, f"expected two bottoms of as many axes, received {bottom.shape} and {like.shape}")
    cropped = bottom.ndim - first
    if len(offsets) > 1 and len(offsets) != cropped:
        raise problem(layer, f"expected one offset, or one for each of {cropped} axes, received {offsets}")
    offsets = offsets * cropped if len(offsets) == 1 else offsets or [0] * cropped
    starts = [0] * bottom.ndim
    sizes: list[int | None] = [None] * bottom.ndim
    for axis, offset in zip(range(first, bottom.ndim), offsets, strict=True):
        side, size = bottom.shape[axis], like.shape[axis]
        if side is None or size is None:
            raise unknown_sides(layer, bottom.shape)
        if offset + size > side:
            raise problem(layer, f"offset {offset} and size {size} exceed {side}, the side of axis {axis}")
        starts[bottom.axis(axis)], sizes[bottom.axis(axis)] = offset, size
    return [bottom.like(Crop(starts[1:], sizes[1:], name=name)(bottom.tensor))]


def flatten(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Some axes as one, in Caffe's order."""
    given, bottom = layer.flatten_param, bottoms[0]
    first, last = bottom.caffe_axis(given.axis), bottom.caffe_axis(given.end_axis)
    if first > last:
        raise problem(layer, f"axis {first} comes after end_axis {last}")
    shape = bottom.shape
    merged = shape[first : last + 1]
    size = None if None in merged else math.prod(side or 0 for side in merged)
    return [_reshaped(layer, bottom, [*shape[:first], size, *shape[last + 1 :]], name, (first, last))]


def reshape(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """A blob in another shape, in Caffe's order."""
    given, bottom = layer.reshape_param, bottoms[0]
    wanted = list(given.shape.dim)
    first = bottom.caffe_axis(given.axis, after=True) if given.axis >= 0 else bottom.ndim + given.axis + 1
    end = bottom.ndim if given.num_axes == -1 else first + given.num_axes
    if not 0 <= first <= end <= bottom.ndim or wanted.count(-1) > 1 or min(wanted, default=1) < -1:
        raise problem(layer, f"its reshape_param does not fit the shape {bottom.shape}")
    if any(side == 0 and first + at >= bottom.ndim for at, side in enumerate(wanted)):
        raise problem(layer, f"it copies a side that {bottom.shape} does not have")
    shape, unknown = [*bottom.shape[:first], *wanted, *bottom.shape[end:]], None
    for at, side in enumerate(wanted, first):
        if side == 0:
            shape[at] = bottom.shape[at]
        elif side == -1:
            unknown = at
    rows = bottom.rows
    if rows >= len(shape):
        raise problem(layer, f"it would merge the rows of a batch, {bottom.shape}")
    shape[rows] = None  # whatever the batch of the file is
    if unknown not in (None, rows):
        known = math.prod(side for at, side in enumerate(shape) if at not in (rows, unknown) and side is not None)
        shape[unknown] = _row_size(layer, bottom) // max(known, 1)
    return [_reshaped(layer, bottom, shape, name)]


def permute(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """The axes in another order."""
    bottom, order = bottoms[0], list(layer.permute_param.order)
    order += [axis for axis in range(bottom.ndim) if axis not in order]
    if sorted(order) != list(range(bottom.ndim)):
        raise problem(layer, f"expected an order of {bottom.ndim} axes, received {list(layer.permute_param.order)}")
    renamed = Blob(bottom.tensor, tuple(order.index(axis) for axis in bottom.axes))
    if layout(renamed.ndim, renamed.rows) == renamed.axes:
        return [renamed.like(keras.layers.Identity(name=name)(renamed.tensor))]
    return [renamed.in_layout(name)]


def argmax(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """The places of the largest values."""
    given, bottom = layer.argmax_param, bottoms[0]
    if not given.HasField("axis"):
        if bottom.rows:
            raise problem(layer, f"it would search across the rows of a batch; the rows are axis {bottom.rows}")
        ordered = bottom.in_caffe_order(f"{name}_permute")
        size = _row_size(layer, bottom)
        places = ArgMax(_top_k(layer, given, size), None, given.out_max_val, name=name)(ordered.tensor)
        return [Blob.of(places)]
    axis = _axis(layer, bottom, given.axis)
    side = bottom.shape[axis]
    if side is None:
        raise unknown_sides(layer, bottom.shape)
    built = ArgMax(_top_k(layer, given, side), bottom.axis(axis), given.out_max_val, name=name)
    return [bottom.like(built(bottom.tensor))]


def _top_k(layer: Any, given: Any, size: int) -> int:
    if not 1 <= given.top_k <= size:
        raise problem(layer, f"expected a top_k from 1 to {size}, received {given.top_k}")
    return int(given.top_k)


def _axis(layer: Any, bottom: Blob, given: int) -> int:
    """An axis that is not that of the rows."""
    if not -bottom.ndim <= given < bottom.ndim:
        raise problem(layer, f"axis {given} is none of {bottom.shape}")
    axis = bottom.caffe_axis(given)
    if axis == bottom.rows:
        raise problem(layer, f"axis {axis} holds the rows of a batch, which a layer of Keras can't mix")
    return axis


def _aligned(layer: Any, bottoms: Sequence[Blob], name: str) -> list[Any]:
    """The tensors, all in the order of the first one's axes."""
    if any(bottom.rows != bottoms[0].rows for bottom in bottoms):
        raise problem(layer, "its bottoms have their rows on different axes")
    return [bottom.ordered(bottoms[0].axes, f"{name}_permute{index}").tensor for index, bottom in enumerate(bottoms)]


def _row_size(layer: Any, bottom: Blob) -> int:
    """How many numbers a row of a blob has."""
    sides = [side for at, side in enumerate(bottom.shape) if at != bottom.rows]
    if None in sides:
        raise unknown_sides(layer, bottom.shape)
    return math.prod(side or 0 for side in sides)


def _reshaped(
    layer: Any, bottom: Blob, shape: Sequence[int | None], name: str, merged: tuple[int, int] | None = None
) -> Blob:
    """A blob in a shape of Caffe's order, whose rows stay where they are."""
    rows, size = bottom.rows, _row_size(layer, bottom)
    sides = [side for at, side in enumerate(shape) if at != rows]
    inside = merged is not None and merged[0] <= rows <= merged[1] and merged[0] != merged[1]
    if inside or rows >= len(shape) or None in sides or (rows and shape[:rows] != list(bottom.shape[:rows])):
        raise problem(layer, f"it would merge the rows of a batch: {bottom.shape}, whose rows are axis {rows}")
    if math.prod(side or 0 for side in sides) != size:
        raise problem(layer, f"rows of {bottom.shape} do not fit into {tuple(shape)}")
    ordered = bottom.in_caffe_order(f"{name}_permute")
    axes = layout(len(shape), rows)
    plain = (rows, *(at for at in range(len(shape)) if at != rows))
    inner = name if axes == plain else f"{name}_reshape"
    reshaped = keras.layers.Reshape(tuple(sides), name=inner)(ordered.tensor)
    return Blob(reshaped, plain).ordered(axes, name)
