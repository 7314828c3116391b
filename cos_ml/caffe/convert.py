"""A layer's blobs as the weights of its Keras layer (driver side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cos_ml.caffe.layers import Deconvolution, Embed, TransposedDense
from cos_ml.caffe.normalization import BatchNorm, Bias, Scale
from cos_ml.caffe.recurrent import CaffeLSTM, CaffeRNN
from cos_ml.errors import InvalidInputError

__all__ = ["blob_names", "blob_shapes", "set_blobs", "takes_blobs"]

# A layer's class -> its weights in the order of Caffe's blobs, each with the order of a blob's axes in Keras; None
# where it is the same. The first class that a layer is an instance of applies.
IMAGES, TURNED = (2, 3, 1, 0), (1, 0)
RECURRENT = (("kernel", TURNED), ("bias", None), ("static_kernel", TURNED), ("recurrent_kernel", TURNED))
TABLE: dict[type, tuple[tuple[str, tuple[int, ...] | None], ...]] = {
    keras.layers.Conv2D: (("kernel", IMAGES), ("bias", None)),
    Deconvolution: (("kernel", IMAGES), ("bias", None)),
    keras.layers.Conv2DTranspose: (("kernel", IMAGES), ("bias", None)),
    TransposedDense: (("kernel", None), ("bias", None)),
    keras.layers.Dense: (("kernel", TURNED), ("bias", None)),
    keras.layers.PReLU: (("alpha", None),),
    Embed: (("embeddings", None), ("bias", None)),
    keras.layers.Embedding: (("embeddings", None),),
    BatchNorm: (("sum_of_means", None), ("sum_of_variances", None), ("factor", None)),
    CaffeLSTM: RECURRENT,
    CaffeRNN: (*RECURRENT, ("output_kernel", TURNED), ("output_bias", None)),
    Scale: (("gamma", None), ("bias", None)),
    Bias: (("bias", None),),
}


def takes_blobs(layer: Any) -> bool:
    """Whether a layer's weights can come from a caffemodel."""
    return isinstance(layer, tuple(TABLE))


def blob_names(layer: Any) -> list[str]:
    """The names of a layer's weights in Keras, in the order of Caffe's blobs: a layer must be built. Unknown: none."""
    return [variable.name for variable, _ in _weights(layer)]


def blob_shapes(layer: Any) -> list[tuple[int, ...]]:
    """The shapes of a layer's blobs in Caffe."""
    return [_caffe_shape(layer, variable, order) for variable, order in _weights(layer)]


def set_blobs(layer: Any, blobs: Sequence[np.ndarray]) -> None:
    """Set a built layer's weights from Caffe's blobs.

    Raises:
        InvalidInputError: their number or a shape differs, other than by leading sides of 1, as in old files.
    """
    weights = _weights(layer)
    if not weights:
        raise InvalidInputError(f"layer {layer.name!r} ({type(layer).__name__}) takes no weights from a caffemodel.")
    if len(weights) != len(blobs):
        shapes = [tuple(blob.shape) for blob in blobs]
        raise InvalidInputError(
            f"layer {layer.name!r}: expected {len(weights)} blobs of the shapes {blob_shapes(layer)}, received "
            f"{len(blobs)}: {shapes}."
        )
    values = []
    for index, ((variable, order), blob) in enumerate(zip(weights, blobs, strict=True)):
        expected = _caffe_shape(layer, variable, order)
        if _without_front(blob.shape) != _without_front(expected):
            raise InvalidInputError(
                f"layer {layer.name!r}, blob {index} ({variable.name}): expected the shape {expected}, received "
                f"{tuple(blob.shape)}."
            )
        array = np.asarray(blob, np.float32).reshape(expected)
        values.append((variable, (array if order is None else array.transpose(order)).reshape(variable.shape)))
    for variable, array in values:
        variable.assign(array)


def _weights(layer: Any) -> list[tuple[Any, tuple[int, ...] | None]]:
    """A layer's weights in the order of Caffe's blobs, and the order of each blob's axes in Keras."""
    entry = next((entry for kind, entry in TABLE.items() if isinstance(layer, kind)), ())
    found = [(getattr(layer, name, None), order) for name, order in entry]
    own = getattr(layer, "order", None) if isinstance(layer, (Scale, Bias)) else None
    return [(variable, own or order) for variable, order in found if variable is not None]


def _caffe_shape(layer: Any, variable: Any, order: Sequence[int] | None) -> tuple[int, ...]:
    if isinstance(layer, keras.layers.PReLU):  # (1, 1, C) in Keras; a scalar where channels share it
        size = math.prod(variable.shape)
        return (size,) if size > 1 or not _shares_all(layer) else ()
    shape = tuple(variable.shape)
    return shape if order is None else tuple(shape[order.index(axis)] for axis in range(len(shape)))


def _shares_all(layer: Any) -> bool:
    return len(layer.shared_axes or ()) == len(layer.alpha.shape)


def _without_front(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the sides of 1 in front."""
    shape = tuple(shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape
