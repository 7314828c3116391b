"""Caffe's layers with weights, and pooling, as Keras layers (driver side)."""

from __future__ import annotations

import math
from typing import Any

import keras

from cos_ml.caffe.blob import Blob
from cos_ml.caffe.fillers import initializer
from cos_ml.caffe.layers import Deconvolution, Embed, Pooling, StridedDilatedConv2D, TransposedDense, pooled_side
from cos_ml.caffe.problems import problem, unknown_sides
from cos_ml.caffe.prototxt import spelled
from cos_ml.caffe.recurrent import CaffeLSTM, CaffeRNN
from cos_ml.caffe.schema import enum_name

__all__ = ["convolution", "deconvolution", "embed", "inner_product", "pooling", "recurrent"]

Pair = tuple[int, int]
IMAGE_AXES = 4


def convolution(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Convolution of images, the same for each bottom."""
    given = layer.convolution_param
    kernel, stride, pad, dilation = _window(layer, given)
    blobs = [_image(layer, bottom) for bottom in bottoms]
    _check_groups(layer, given, blobs[0].tensor.shape[-1])
    same = stride == (1, 1) and all(2 * p == d * (k - 1) for p, k, d in zip(pad, kernel, dilation, strict=True))
    options: dict[str, Any] = {"padding": "same" if same else "valid", "dilation_rate": dilation, "name": name}
    options |= {"groups": given.group, "use_bias": given.bias_term, **_fillers(layer, given)}
    if max(stride) > 1 and max(dilation) > 1:
        built: Any = StridedDilatedConv2D(given.num_output, kernel, subsampling=stride, **options)
    else:
        built = keras.layers.Conv2D(given.num_output, kernel, stride, **options)
    tops = []
    for index, blob in enumerate(blobs):
        image = blob.tensor
        if not same and any(pad):
            padding = keras.layers.ZeroPadding2D(pad, name=f"{name}_pad{index or ''}")
            image = padding(image)
        if any(side is not None and side < d * (k - 1) + 1 for side, k, d in
               zip(image.shape[1:3], kernel, dilation, strict=True)):  # fmt: skip
            raise problem(layer, f"its kernel {kernel} is larger than its input, {blob.shape}")
        tops.append(blob.like(built(image)))
    return tops


def deconvolution(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Transposed convolution of images, the same for each bottom."""
    given = layer.convolution_param
    kernel, stride, pad, dilation = _window(layer, given)
    blobs = [_image(layer, bottom) for bottom in bottoms]
    _check_groups(layer, given, blobs[0].tensor.shape[-1])
    built = Deconvolution(
        given.num_output, kernel, stride, pad, dilation, given.group, given.bias_term, name=name,
        **_fillers(layer, given),
    )  # fmt: skip
    return [blob.like(built(blob.tensor)) for blob in blobs]


def pooling(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Pooling: Keras's own where it computes the same."""
    given, bottom = layer.pooling_param, _image(layer, bottoms[0])
    image = bottom.tensor
    kind = enum_name(given, "pool")
    if kind not in ("MAX", "AVE"):
        raise problem(layer, f"pool: {kind} is not supported; MAX and AVE are")
    if len(layer.top) > 1:
        raise problem(layer, "its second top, the places of the largest values, is not supported")
    if given.global_pooling:
        whole = keras.layers.GlobalMaxPooling2D if kind == "MAX" else keras.layers.GlobalAveragePooling2D
        return [bottom.like(whole(keepdims=True, name=name)(image))]
    kernel = _pair(layer, given, "kernel", "kernel_size")
    stride, pad = _pair(layer, given, "stride", default=1), _pair(layer, given, "pad", default=0)
    if any(side is None for side in image.shape[1:3]):
        raise unknown_sides(layer, bottom.shape)
    if any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise problem(layer, f"expected a pad that is smaller than the kernel {kernel}, received {pad}")
    ceil = enum_name(given, "round_mode") != "FLOOR"
    axes = list(zip(image.shape[1:3], kernel, stride, pad, strict=True))
    sides = [pooled_side(*axis, ceil, any(pad)) for axis in axes]
    if min(sides) < 1:
        raise problem(layer, f"its kernel {kernel} is larger than its input, {bottom.shape}")
    plain = [(side - k) // s + 1 if side >= k else 0 for side, k, s, _ in axes]
    if not any(pad) and sides == plain:
        own = keras.layers.MaxPooling2D if kind == "MAX" else keras.layers.AveragePooling2D
        return [bottom.like(own(kernel, stride, "valid", name=name)(image))]
    return [bottom.like(Pooling(kind.lower(), kernel, stride, pad, ceil, name=name)(image))]


def inner_product(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """A dense layer over the axes from ``axis`` on, flattened in Caffe's order."""
    given, bottom = layer.inner_product_param, bottoms[0]
    _check_outputs(layer, given)
    axis = bottom.caffe_axis(given.axis)
    if axis <= bottom.rows:
        raise problem(layer, f"axis {axis} would merge the rows of a batch; the rows are axis {bottom.rows}")
    flat = flattened(layer, bottom, axis, name)
    filler = given.weight_filler if given.HasField("weight_filler") else None
    kind = TransposedDense if given.transpose else keras.layers.Dense
    dense = kind(
        given.num_output,
        use_bias=given.bias_term,
        kernel_initializer=initializer(layer, filler, swapped=given.transpose),
        bias_initializer=_bias(layer, given),
        name=name,
    )
    return [flat.like(dense(flat.tensor))]


def flattened(layer: Any, bottom: Blob, axis: int, name: str) -> Blob:
    """A blob whose axes from ``axis`` on are one, in Caffe's order."""
    ordered = bottom.in_caffe_order(f"{name}_permute")
    if bottom.ndim == axis + 1:
        return ordered
    kept, merged = [bottom.shape[at] for at in range(axis) if at != bottom.rows], bottom.shape[axis:]
    if None in kept or None in merged:
        raise unknown_sides(layer, bottom.shape)
    size = math.prod(side or 1 for side in merged)
    tensor = keras.layers.Reshape((*kept, size), name=f"{name}_flatten")(ordered.tensor)
    return Blob(tensor, ordered.axes[: axis + 1])


def embed(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """A row of weights for each word."""
    given, bottom = layer.embed_param, bottoms[0]
    _check_outputs(layer, given)
    if given.input_dim < 1:
        raise problem(layer, "it has no input_dim")
    filler = given.weight_filler if given.HasField("weight_filler") else None
    weights = initializer(layer, filler, swapped=True)
    options = {"embeddings_initializer": weights, "name": name}
    if given.bias_term:
        built: Any = Embed(given.input_dim, given.num_output, bias_initializer=_bias(layer, given), **options)
    else:
        built = keras.layers.Embedding(given.input_dim, given.num_output, **options)
    return [Blob(built(bottom.tensor), (*bottom.axes, bottom.ndim))]


def recurrent(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """LSTM and RNN over sequences whose time comes first."""
    given = layer.recurrent_param
    _check_outputs(layer, given)
    if given.expose_hidden:
        raise problem(layer, "recurrent_param's field expose_hidden is not supported")
    sequence, marks = bottoms[:2]
    if sequence.rows != 1 or marks.rows != 1 or marks.ndim != 2:
        raise problem(
            layer,
            f"expected a sequence (time, rows, ...) and its marks (time, rows), received {sequence.shape} with rows at "
            f"{sequence.rows} and {marks.shape} with rows at {marks.rows}",
        )
    steps = flattened(layer, sequence, 2, name)
    inputs = [steps.tensor, marks.tensor]
    if len(bottoms) > 2:
        inputs.append(flattened(layer, bottoms[2], 1, f"{name}_static").tensor)
    kind = CaffeLSTM if layer.type == "LSTM" else CaffeRNN
    weights = initializer(layer, given.weight_filler if given.HasField("weight_filler") else None)
    built = kind(given.num_output, weights, _bias(layer, given), name=name)
    return [Blob(built(inputs), (1, 0, 2))]


def _image(layer: Any, bottom: Blob) -> Blob:
    """A blob of images, channels last."""
    if bottom.ndim != IMAGE_AXES or bottom.rows != 0:
        raise problem(layer, f"expected images (rows, channels, height, width), received {bottom.shape}")
    return bottom.in_layout(f"{spelled(layer.name)}_layout")


def _window(layer: Any, given: Any) -> tuple[Pair, Pair, Pair, Pair]:
    if given.axis != 1:
        raise problem(layer, f"convolution_param's field axis is {given.axis}; only 1 is supported")
    for name in ("kernel_size", "stride", "pad", "dilation"):
        if len(getattr(given, name)) > 2:
            raise problem(layer, f"{name} has more than 2 values: only images are supported")
    return (
        _pair(layer, given, "kernel", "kernel_size"),
        _pair(layer, given, "stride", default=1),
        _pair(layer, given, "pad", default=0),
        _pair(layer, given, "dilation", default=1),
    )


def _pair(layer: Any, given: Any, name: str, whole: str = "", default: int | None = None) -> Pair:
    """Height and width: as ``name_h`` and ``name_w``, or as one number, or as two."""
    whole = whole or name
    fields = {field.name for field in given.DESCRIPTOR.fields}
    parts = [f"{name}_h", f"{name}_w"]
    if parts[0] in fields and any(given.HasField(part) for part in parts):
        values = [getattr(given, part) for part in parts]
        whole = " and ".join(parts)
    else:
        value = getattr(given, whole)
        values = list(value) if hasattr(value, "__len__") else [value] if given.HasField(whole) else []
    if not values:
        if default is None:
            raise problem(layer, f"it has no {whole}")
        values = [default]
    if name != "pad" and min(values) < 1:
        raise problem(layer, f"expected {whole} >= 1, received {', '.join(map(str, values))}")
    return values[0], values[-1]


def _check_groups(layer: Any, given: Any, channels: int) -> None:
    _check_outputs(layer, given)
    if given.group < 1 or channels % given.group or given.num_output % given.group:
        raise problem(layer, f"group {given.group} does not divide {channels} channels and {given.num_output} outputs")


def _check_outputs(layer: Any, given: Any) -> None:
    if given.num_output < 1:
        raise problem(layer, "it has no num_output")


def _fillers(layer: Any, given: Any) -> dict[str, Any]:
    filler = given.weight_filler if given.HasField("weight_filler") else None
    return {"kernel_initializer": initializer(layer, filler), "bias_initializer": _bias(layer, given)}


def _bias(layer: Any, given: Any) -> Any:
    return initializer(layer, given.bias_filler if given.HasField("bias_filler") else None, vector=True)
