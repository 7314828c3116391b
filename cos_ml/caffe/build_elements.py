"""Caffe's activations and normalizations as Keras layers (driver side)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from cos_ml.caffe.blob import Blob
from cos_ml.caffe.fillers import initializer
from cos_ml.caffe.layers import AbsVal, Exp, Log, Power
from cos_ml.caffe.normalization import LRN, MVN, BatchNorm, Bias, Scale
from cos_ml.caffe.problems import problem
from cos_ml.caffe.schema import enum_name

__all__ = ["ELEMENTWISE", "batch_norm", "bias", "lrn", "mvn", "prelu", "scale", "softmax"]

CHANNELS = 1  # Caffe's axis of channels
SLOPE = 0.25  # of a PReLU without a filler


def _elementwise(make: Callable[[Any, str], Any]) -> Callable[..., list[Blob]]:
    """A builder of a layer that computes each element by itself."""

    def build(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
        return [bottoms[0].like(make(layer, name)(bottoms[0].tensor))]

    return build


def _relu(layer: Any, name: str) -> Any:
    slope = layer.relu_param.negative_slope
    return keras.layers.ReLU(negative_slope=slope, name=name)


def _activation(function: str) -> Callable[[Any, str], Any]:
    return lambda layer, name: keras.layers.Activation(function, name=name)


def _dropout(layer: Any, name: str) -> Any:
    return keras.layers.Dropout(layer.dropout_param.dropout_ratio, name=name)


def _power(layer: Any, name: str) -> Any:
    given = layer.power_param
    return Power(given.power, given.scale, given.shift, name=name)


def _exponential(kind: Any, field: str) -> Callable[[Any, str], Any]:
    def make(layer: Any, name: str) -> Any:
        given = getattr(layer, field)
        if given.base != -1 and given.base <= 0:
            raise problem(layer, f"expected a base > 0, or -1 for e, received {given.base:g}")
        return kind(given.base, given.scale, given.shift, name=name)

    return make


ELEMENTWISE: dict[str, Callable[..., list[Blob]]] = {
    kind: _elementwise(make)
    for kind, make in {
        "ReLU": _relu,
        "ELU": lambda layer, name: keras.layers.ELU(layer.elu_param.alpha, name=name),
        "Sigmoid": _activation("sigmoid"),
        "TanH": _activation("tanh"),
        "BNLL": _activation("softplus"),
        "AbsVal": lambda layer, name: AbsVal(name=name),
        "Dropout": _dropout,
        "Power": _power,
        "Exp": _exponential(Exp, "exp_param"),
        "Log": _exponential(Log, "log_param"),
    }.items()
}


def prelu(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """A slope for each channel, or one for all."""
    given, bottom = layer.prelu_param, bottoms[0]
    axis = _channels(layer, bottom)
    others = [other for other in range(1, bottom.ndim) if given.channel_shared or other != axis]
    filler = given.filler if given.HasField("filler") else None
    slopes = initializer(layer, filler, default=SLOPE, vector=True)
    return [bottom.like(keras.layers.PReLU(slopes, shared_axes=others, name=name)(bottom.tensor))]


def softmax(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Probabilities along an axis."""
    bottom = bottoms[0]
    axis = bottom.axis(layer.softmax_param.axis)
    if axis == 0:
        raise problem(layer, f"axis {layer.softmax_param.axis} holds the rows of a batch")
    axis = -1 if axis == bottom.ndim - 1 else axis
    return [bottom.like(keras.layers.Softmax(axis, name=name)(bottom.tensor))]


def lrn(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Local response normalization."""
    given, bottom = layer.lrn_param, bottoms[0]
    if given.local_size % 2 == 0:
        raise problem(layer, f"expected an odd local_size, received {given.local_size}")
    within = enum_name(given, "norm_region") == "WITHIN_CHANNEL"
    if bottom.ndim != 4 or bottom.rows:
        raise problem(layer, f"expected images (rows, channels, height, width), received {bottom.shape}")
    image = bottom.in_layout(f"{name}_layout")
    return [image.like(LRN(given.local_size, given.alpha, given.beta, given.k, within, name=name)(image.tensor))]


def mvn(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Mean and variance of each channel of a row, or of all of them."""
    given, bottom = layer.mvn_param, bottoms[0]
    channels = _channels(layer, bottom)
    axes = [axis for axis in range(1, bottom.ndim) if given.across_channels or axis != channels]
    built = MVN(axes, given.normalize_variance, given.eps, name=name)
    return [bottom.like(built(bottom.tensor))]


def batch_norm(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Normalization by a batch's or the stored statistics."""
    given, bottom = layer.batch_norm_param, bottoms[0]
    axis = _channels(layer, bottom)
    stored = given.use_global_stats if given.HasField("use_global_stats") else None
    built = BatchNorm(axis, given.eps, given.moving_average_fraction, stored, name=name)
    return [bottom.like(built(bottom.tensor))]


def scale(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """Factors for the places on some axes, of the layer's own or from the second bottom."""
    given, bottom = layer.scale_param, bottoms[0]
    axes, order = _covered(layer, given, bottoms)
    options: dict[str, Any] = {"axes": axes, "order": order, "use_bias": given.bias_term, "name": name}
    if given.bias_term:
        filler = given.bias_filler if given.HasField("bias_filler") else None
        options["bias_initializer"] = initializer(layer, filler, vector=True)
    if len(bottoms) > 1:
        if given.bias_term and 0 in axes:
            raise problem(layer, "bias_term over the rows of a batch is not supported")
        return [bottom.like(Scale(**options)([bottom.tensor, _beside(bottoms, axes, name)]))]
    filler = given.filler if given.HasField("filler") else None
    options["gamma_initializer"] = initializer(layer, filler, default=1.0, vector=True)
    return [bottom.like(Scale(**options)(bottom.tensor))]


def bias(layer: Any, bottoms: list[Blob], name: str) -> list[Blob]:
    """A bias for the places on some axes, of the layer's own or from the second bottom."""
    given, bottom = layer.bias_param, bottoms[0]
    axes, order = _covered(layer, given, bottoms)
    if len(bottoms) > 1:
        return [bottom.like(Bias(axes, order, name=name)([bottom.tensor, _beside(bottoms, axes, name)]))]
    filler = given.filler if given.HasField("filler") else None
    built = Bias(axes, order, initializer(layer, filler, vector=True), name=name)
    return [bottom.like(built(bottom.tensor))]


def _channels(layer: Any, bottom: Blob) -> int:
    """The axis of channels in Keras."""
    if bottom.ndim < 2 or bottom.rows == CHANNELS:
        raise problem(layer, f"expected channels on axis 1, received {bottom.shape} with rows on axis {bottom.rows}")
    return bottom.axis(CHANNELS)


def _covered(layer: Any, given: Any, bottoms: Sequence[Blob]) -> tuple[list[int], list[int]]:
    """The Keras axes that factors cover, in the order of the first bottom, and what orders a blob's axes so."""
    bottom = bottoms[0]
    first = bottom.caffe_axis(given.axis)
    count = bottoms[1].ndim if len(bottoms) > 1 else given.num_axes
    count = bottom.ndim - first if count == -1 else count
    covered = range(first, first + count)
    if first + count > bottom.ndim:
        raise problem(layer, f"axis {first} and {count} axes from there on are more than {bottom.shape} has")
    if len(bottoms) > 1:
        wanted = bottom.shape[first : first + count]
        if bottoms[1].rows + first != bottom.rows or bottoms[1].shape != wanted:
            raise problem(
                layer, f"expected a second bottom {wanted}, from axis {first} on, received {bottoms[1].shape}"
            )
    elif bottom.rows in covered:
        raise problem(layer, f"axis {bottom.rows} holds the rows of a batch, for which there are no weights")
    axes = [axis for axis in range(bottom.ndim) if bottom.axes[axis] in covered]
    return axes, [bottom.axes[axis] - first for axis in axes]


def _beside(bottoms: Sequence[Blob], axes: Sequence[int], name: str) -> Any:
    """The second bottom with its axes in the order of the first one's."""
    first = bottoms[0].rows - bottoms[1].rows
    return bottoms[1].ordered([bottoms[0].axes[axis] - first for axis in axes], f"{name}_permute").tensor
