"""Weights from caffemodel files, for any Keras network (driver side)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from cos_ml.caffe.convert import set_blobs, takes_blobs
from cos_ml.caffe.prototxt import read_bytes, spelled
from cos_ml.caffe.schema import message
from cos_ml.errors import InvalidInputError

__all__ = ["Report", "assign", "blob_array", "read_caffemodel", "read_mean", "set_weights"]

logger = logging.getLogger(__name__)
HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass
class Report:
    """Which weights a network took from a caffemodel.

    Attributes:
        taken: layers of the network, each with the layer of the file that its weights came from.
        not_taken: layers of the network that have weights and layers of the file, each with the reason why nothing was
            taken.
    """

    taken: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)


def assign(model: Any, caffemodel: Any) -> Report:
    """Set weights of a Keras network from a caffemodel, by layers' names, where the shapes agree."""
    report = Report()
    layers = {layer.name: layer for layer in reversed(_leaves(model)) if layer.weights}
    for name, blobs in read_caffemodel(caffemodel):
        target = name if name in layers else spelled(name)
        layer = layers.get(target)
        if layer is None:
            report.not_taken.setdefault(name, "the network has no layer of this name with weights")
        elif not takes_blobs(layer):
            report.not_taken[target] = f"weights of a {type(layer).__name__} can't come from a caffemodel"
        else:
            try:
                set_blobs(layer, blobs)
                report.taken[target] = name
                report.not_taken.pop(target, None)
            except InvalidInputError as error:
                report.not_taken[target] = str(error)
    for name in layers:
        if name not in report.taken:
            report.not_taken.setdefault(name, "the file has no layer of this name")
    return report


def set_weights(layers: Mapping[str, Any], caffemodel: Any) -> None:
    """Set the weights of a Caffe network's layers, by their names in Caffe, as Caffe does.

    Layers that only the file has are passed over. Layers that only the network has keep theirs, and a line in the log
    names them.
    """
    taken = set()
    for name, blobs in read_caffemodel(caffemodel):
        if name in layers:
            taken.add(id(layers[name]))
            try:
                set_blobs(layers[name], blobs)
            except InvalidInputError as error:
                raise InvalidInputError(f"{caffemodel}: {error}") from error
    missing = [name for name, layer in layers.items() if id(layer) not in taken]
    if missing:
        logger.warning(
            "%s has no weights for the layers %s, which keep their new ones.", caffemodel, ", ".join(missing)
        )


def read_caffemodel(path: Any) -> list[tuple[str, list[np.ndarray]]]:
    """The layers of a caffemodel that have blobs, in order: their names and blobs."""
    data = read_bytes(path, "a caffemodel")
    if data.startswith(HDF5):
        raise InvalidInputError(f"{path}: expected a binary caffemodel, received a snapshot in HDF5: "
                                "write it with snapshot_format: BINARYPROTO.")  # fmt: skip
    net = _decoded(message("NetParameter"), data, path, "a caffemodel")
    if any(layer.HasField("layer") for layer in net.layers):
        raise InvalidInputError(f"{path}: is in Caffe's first format: upgrade it with upgrade_net_proto_binary.")
    layers = [*net.layers, *net.layer]
    if not layers and not net.HasField("name"):
        raise InvalidInputError(f"{path}: expected a caffemodel, received a file without layers.")
    named = [(_text(layer.name), layer.blobs) for layer in layers if layer.blobs]
    return [(name, [blob_array(blob, f"{path}: layer {name!r}") for blob in blobs]) for name, blobs in named]


def read_mean(path: Any) -> np.ndarray:
    """The image of means in a file (mean_file), channels first."""
    found = blob_array(_decoded(message("BlobProto"), read_bytes(path, "a file of means"), path, "a mean"), str(path))
    shape = found.shape[1:] if found.ndim == 4 and found.shape[0] == 1 else found.shape
    if len(shape) != 3 or not found.size:
        raise InvalidInputError(f"{path}: expected a mean (channels, height, width), received the shape {found.shape}.")
    return found.reshape(shape)


def blob_array(blob: Any, where: str) -> np.ndarray:
    """A BlobProto as an array; ``where`` names it in errors."""
    values = blob.double_data if blob.double_data else blob.data
    array = np.fromiter(values, np.float32, len(values))
    old = any(blob.HasField(side) for side in ("num", "channels", "height", "width"))
    shape = [blob.num, blob.channels, blob.height, blob.width] if old and not blob.HasField("shape") else blob.shape.dim
    shape = [int(side) for side in shape]
    if not old and not blob.HasField("shape") and array.size != 1:
        shape = [array.size]
    if min(shape, default=0) < 0 or math.prod(shape) != array.size:
        raise InvalidInputError(f"{where}: a blob of the shape {shape} has {array.size} values: the file is damaged.")
    return array.reshape(shape)


def _decoded(into: Any, data: bytes, path: Any, what: str) -> Any:
    try:
        into.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise InvalidInputError(f"{path}: expected {what}, but it can't be parsed: {error}") from error
    return into


def _text(name: str | bytes) -> str:
    """A name in a Caffe file as text: protobuf returns bytes for one that is not UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def _leaves(model: Any) -> list[Any]:
    """The layers of a network, those of nested networks in their place."""
    found: list[Any] = []
    for layer in model.layers:
        found += _leaves(layer) if hasattr(layer, "layers") else [layer]
    return found
