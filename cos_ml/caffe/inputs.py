"""Caffe's data layers as the inputs of a Keras network (driver side)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from cos_ml.caffe.blob import Blob, layout
from cos_ml.caffe.problems import problem
from cos_ml.caffe.prototxt import resolve
from cos_ml.caffe.transform import DataTransform
from cos_ml.caffe.weights import read_mean
from cos_ml.errors import InvalidInputError

__all__ = ["DATA", "build_input", "drop_transform", "time_first", "transform_of"]

DATA = {"Input", "Data", "MemoryData", "CoSData", "ImageData", "HDF5Data"}
RECURRENT = {"LSTM", "RNN"}
# Layers whose tops have time first where their bottoms have it.
KEEP_TIME = {
    "AbsVal", "BNLL", "Concat", "Dropout", "ELU", "Eltwise", "Embed", "Exp", "InnerProduct", "Log", "Power", "ReLU",
    "Scale", "Sigmoid", "Slice", "Softmax", "Split", "TanH",
}  # fmt: skip
IMAGE_SIDES = 3


def time_first(layers: Sequence[Any]) -> set[str]:
    """The blobs whose axis 0 is time and axis 1 the rows: what LSTM and RNN read and write, and what goes with it."""
    found = {
        name
        for layer in layers
        if layer.type == "CoSData"
        for name, top in zip(layer.top, layer.cos_data_param.top, strict=False)
        if top.transpose
    }
    before = -1
    while len(found) != before:
        before = len(found)
        for layer in layers:
            if layer.type in RECURRENT:
                found |= {*layer.bottom[:2], *layer.top}
            elif layer.type in KEEP_TIME and _keeps_time(layer) and not found.isdisjoint([*layer.bottom, *layer.top]):
                found |= {*layer.bottom, *layer.top}
    return found


def transform_of(layer: Any, index: int) -> Any:
    """The transformation of the images of a data layer's top; None where it changes nothing."""
    given = layer.transform_param if layer.HasField("transform_param") and index == 0 else None
    if layer.type == "CoSData" and index < len(layer.cos_data_param.top):
        top = layer.cos_data_param.top[index]
        given = top.transform_param if top.HasField("transform_param") else None
    if given is None or layer.type == "Input":
        return None
    changes = given.scale != 1 or given.mirror or given.mean_file or any(given.mean_value) or given.crop_size
    return given if changes else None


def drop_transform(layer: Any) -> None:
    """Remove a data layer's transformation, except what it says about the size of images."""
    for owner in (layer, *layer.cos_data_param.top):
        given = owner.transform_param
        if not owner.HasField("transform_param"):
            continue
        size, colours = given.crop_size, len(given.mean_value)
        for name in ("scale", "mirror", "mean_file", "mean_value", "crop_size"):
            given.ClearField(name)
        if layer.type == "MemoryData" and size:
            layer.memory_data_param.height = layer.memory_data_param.width = size
        elif layer.type in ("Data", "ImageData") and size:
            given.crop_size = size
            given.mean_value.extend([0.0] * colours)


def build_input(
    layer: Any, index: int, names: tuple[str, str], sequence: bool, inputs: Mapping[str, Any], phase: str,
    channels_first: bool, beside: Any,
) -> tuple[Any, Blob]:  # fmt: skip
    """The Keras input of a data layer's top, and the blob that it is.

    Args:
        layer: the data layer.
        index: which of its tops.
        names: of the input, and of the layer that transforms it.
        sequence: whether the blob has time first.
        inputs: shapes that the user gave, by blob.
        phase: "TRAIN" or "TEST".
        channels_first: whether images come with their channels first.
        beside: the network's file, beside which files of means are looked for.
    """
    transform = transform_of(layer, index)
    mean = _mean(layer, transform, beside)
    sides = _sides(layer, index, inputs, sequence, mean)
    rows = 1 if sequence else 0
    if sequence and not sides:
        raise problem(layer, f"top {layer.top[index]!r} is a sequence: expected 2 or more axes, time and rows first")
    axes = layout(len(sides) + 1, rows)
    shape = [None, *sides] if rows == 0 else [sides[0], None, *sides[1:]]
    if channels_first and len(sides) == IMAGE_SIDES and not sequence:
        given = keras.Input(sides, name=names[0])
        tensor = keras.layers.Permute((2, 3, 1), name=f"{names[0]}_permute")(given)
    else:
        given = tensor = keras.Input([shape[axis] for axis in axes[1:]], name=names[0])
    if transform is not None:
        if len(sides) != IMAGE_SIDES:
            raise problem(layer, f"its transform_param is for images, and {layer.top[index]!r} has the sides {sides}")
        tensor = _transformed(layer, transform, mean, sides, phase, names[1])(tensor)
    return given, Blob(tensor, axes)


def _keeps_time(layer: Any) -> bool:
    if layer.type == "InnerProduct":
        return bool(layer.inner_product_param.axis not in (0, 1))
    if layer.type == "Scale":
        return len(layer.bottom) == 1 or layer.scale_param.axis == 0
    return True


def _sides(layer: Any, index: int, inputs: Mapping[str, Any], sequence: bool, mean: Any) -> list[int]:
    """The sides of a row of a blob, in Caffe's order."""
    blob = layer.top[index]
    if blob in inputs:
        return _checked(blob, inputs[blob])
    found = _declared(layer, index, sequence, mean)
    if found is None or not all(found):
        raise problem(
            layer,
            f"the file does not declare the shape of its top {blob!r}: give it without the rows, in Caffe's order, "
            f'such as inputs={{"{blob}": (3, 227, 227)}}',
        )
    return found


def _checked(blob: str, sides: Any) -> list[int]:
    whole = isinstance(sides, Iterable) and not isinstance(sides, (str, bytes))
    values = list(sides) if whole else [sides]
    if not all(isinstance(side, (int, np.integer)) and side >= 1 for side in values):
        raise InvalidInputError(
            f"inputs[{blob!r}]: expected a row's sides in Caffe's order, such as (3, 227, 227), received {sides!r}."
        )
    return [int(side) for side in values]


def _declared(layer: Any, index: int, sequence: bool, mean: Any) -> list[int] | None:
    """The sides that the file declares; None where it doesn't."""
    if layer.type == "Input":
        shapes = layer.input_param.shape
        if len(shapes) not in (0, 1, len(layer.top)):
            raise problem(
                layer, f"expected one shape, or one for each of {len(layer.top)} tops, received {len(shapes)}"
            )
        dims = list(shapes[index if len(shapes) > 1 else 0].dim) if shapes else None
        if dims is not None:
            del dims[1 if sequence and len(dims) > 1 else 0 : 2 if sequence and len(dims) > 1 else 1]
        return dims
    if layer.type == "CoSData":
        return _of_cos_data(layer, index)
    if index > 0:
        return []  # the label
    if layer.type == "MemoryData":
        given = layer.memory_data_param
        return [given.channels, given.height, given.width]
    image, transform = layer.image_data_param, layer.transform_param
    if mean is not None and np.ndim(mean) == IMAGE_SIDES:
        return [int(side) for side in (mean.shape[2], *mean.shape[:2])]
    channels = len(transform.mean_value) if len(transform.mean_value) > 1 else 3
    if transform.force_gray or (layer.type == "ImageData" and not image.is_color):
        channels = 1
    if layer.type == "ImageData" and image.new_height and image.new_width:
        return [channels, image.new_height, image.new_width]
    return [channels, transform.crop_size, transform.crop_size] if transform.crop_size else None


def _of_cos_data(layer: Any, index: int) -> list[int]:
    tops = layer.cos_data_param.top
    if len(tops) != len(layer.top):
        raise problem(
            layer, f"expected a top {{ }} in cos_data_param for each of {len(layer.top)} tops, received {len(tops)}"
        )
    top = tops[index]
    transform = transform_of(layer, index)
    whole = [top.channels, top.height, top.width]
    if transform is None or not transform.crop_size:
        outs = [top.out_channels, top.out_height, top.out_width]
        whole = [out or side for out, side in zip(outs, whole, strict=True)]
    if top.transpose and top.sample_num_axes != 1:
        raise problem(layer, f"top {top.name!r}: transpose needs sample_num_axes: 1, received {top.sample_num_axes}")
    return whole[: top.sample_num_axes]


def _mean(layer: Any, transform: Any, beside: Any) -> np.ndarray | None:
    """What is subtracted: one number for each channel, or an image, channels last."""
    if transform is None:
        return None
    if transform.mean_file and len(transform.mean_value):
        raise problem(layer, "expected mean_file or mean_value in transform_param, received both")
    if transform.mean_file:
        return read_mean(resolve(transform.mean_file, beside)).transpose(1, 2, 0)
    return np.asarray(transform.mean_value, np.float32) if len(transform.mean_value) else None


def _transformed(layer: Any, transform: Any, mean: Any, sides: Sequence[int], phase: str, name: str) -> Any:
    """The layer that transforms images of these sides."""
    channels, height, width = sides
    crop = transform.crop_size
    if crop > min(height, width):
        raise problem(layer, f"crop_size {crop} is larger than its images, {height} x {width}")
    if mean is not None:
        shapes = [(1,), (channels,), (height, width, channels)]
        if mean.shape not in shapes:
            raise problem(layer, f"expected a mean of {channels} channels or an image {height} x {width}, received one "
                          f"of the shape {mean.shape}: give the images' shape by inputs=")  # fmt: skip
    return DataTransform(
        scale=transform.scale, mean=None if mean is None else mean.tolist(),
        crop=(crop, crop) if crop and (height, width) != (crop, crop) else None, mirror=transform.mirror,
        random_crop=phase == "TRAIN", always=phase == "TEST", name=name,
    )  # fmt: skip
