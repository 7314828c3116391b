"""Layers as Caffe computes them, where Keras has none or computes something else (every side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = [
    "AbsVal",
    "ArgMax",
    "Crop",
    "Deconvolution",
    "Embed",
    "Exp",
    "Log",
    "Pooling",
    "Power",
    "Slice",
    "StopGradient",
    "StridedDilatedConv2D",
    "TransposedDense",
    "WeightedSum",
    "pool_images",
    "pooled_side",
]

registered = keras.saving.register_keras_serializable(package="cos_ml")
FLOAT_MAX = float(np.finfo(np.float32).max)


def pooled_side(side: int, kernel: int, stride: int, pad: int, ceil: bool, padded: bool) -> int:
    """The side of a pooled image; ``padded`` says whether Caffe pads either of its axes."""
    steps = (side + 2 * pad - kernel) / stride
    size = (math.ceil(steps) if ceil else math.floor(steps)) + 1
    return size - 1 if padded and (size - 1) * stride >= side + pad else size


def pool_images(
    inputs: Any, pool: str, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int], ceil: bool = True
) -> Any:
    """Pooling of images, with the arguments of ``Pooling``."""
    sides = _sides(inputs.shape, kernel, strides, padding, ceil)
    # Up to the end of the last window, which may also end before the image does.
    ends = [(out - 1) * s + k for out, s, k in zip(sides, strides, kernel, strict=True)]
    after = [end - side - p for end, side, p in zip(ends, inputs.shape[1:3], padding, strict=True)]
    kept = [min(side, side + rest) for side, rest in zip(inputs.shape[1:3], after, strict=True)]
    pads = [(p, max(0, rest)) for p, rest in zip(padding, after, strict=True)]
    image = inputs[:, : kept[0], : kept[1], :]
    fill = -FLOAT_MAX if pool == "max" else 0.0
    image = ops.pad(image, [(0, 0), *pads, (0, 0)], constant_values=ops.cast(fill, image.dtype))
    kernel, strides = tuple(kernel), tuple(strides)
    if pool == "max":
        return ops.max_pool(image, kernel, strides, "valid")
    sums = ops.average_pool(image, kernel, strides, "valid") * math.prod(kernel)
    areas = _areas(inputs.shape, sides, kernel, strides, padding)
    return sums / ops.cast(areas[None, :, :, None], sums.dtype)


def _sides(shape: Any, kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int], ceil: bool) -> list[int]:
    axes = zip(shape[1:3], kernel, strides, padding, strict=True)
    return [pooled_side(side, k, s, p, ceil, any(padding)) for side, k, s, p in axes]


def _areas(
    shape: Any, sides: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Sequence[int]
) -> np.ndarray:
    """How much of each window lies in the padded image."""
    lengths = []
    for side, out, k, s, p in zip(shape[1:3], sides, kernel, strides, padding, strict=True):
        starts = np.arange(out) * s - p
        lengths.append(np.maximum(np.minimum(starts + k, side + p) - starts, 0))
    return np.outer(*lengths).astype(np.float32)


@registered
class Pooling(keras.layers.Layer):
    """Pooling of images, channels last, whose last windows may hang over the edge.

    Args:
        pool: "max" or "ave", which divides by the part of a window that lies in the padded image.
        kernel_size: height and width of a window.
        strides: vertical and horizontal stride.
        padding: rows above and below, columns left and right.
        ceil: whether a window that is only partly filled counts.
    """

    def __init__(
        self, pool: str, kernel_size: Sequence[int], strides: Sequence[int], padding: Sequence[int] = (0, 0),
        ceil: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.pool, self.ceil = pool, ceil
        self.kernel_size, self.strides, self.padding = tuple(kernel_size), tuple(strides), tuple(padding)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape after pooling."""
        return (input_shape[0], *self._sides(input_shape), input_shape[3])

    def call(self, inputs: Any) -> Any:
        """The largest values, or the means."""
        return pool_images(inputs, self.pool, self.kernel_size, self.strides, self.padding, self.ceil)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"pool": self.pool, "kernel_size": self.kernel_size, "strides": self.strides, "padding": self.padding}
        return {**super().get_config(), **own, "ceil": self.ceil}

    def _sides(self, shape: Any) -> list[int]:
        return _sides(shape, self.kernel_size, self.strides, self.padding, self.ceil)


@registered
class StridedDilatedConv2D(keras.layers.Conv2D):
    """A convolution with both a dilation and a stride above 1, which Keras refuses.

    Args:
        subsampling: the strides.
        **options: those of ``keras.layers.Conv2D``.
    """

    def __init__(self, *arguments: Any, subsampling: Sequence[int] = (1, 1), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.subsampling = tuple(subsampling)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape of every so many pixels of the convolution."""
        rows, height, width, channels = super().compute_output_shape(input_shape)
        sides = [side and -(-side // stride) for side, stride in zip((height, width), self.subsampling, strict=True)]
        return (rows, *sides, channels)

    def call(self, inputs: Any) -> Any:
        """Every so many pixels of the convolution."""
        return super().call(inputs)[:, :: self.subsampling[0], :: self.subsampling[1], :]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "subsampling": self.subsampling}


@registered
class Deconvolution(keras.layers.Layer):
    """Caffe's transposed convolution of images, channels last, also in groups and with dilation.

    Args:
        filters: the number of channels that it gives.
        kernel_size: height and width of a filter.
        strides: vertical and horizontal stride.
        padding: what is cut off on each side, vertically and horizontally.
        dilation_rate: vertical and horizontal distance of a filter's elements.
        groups: of channels, each of which sees its own part of the input.
        use_bias: whether it has a bias.
        kernel_initializer: of the filters.
        bias_initializer: of the bias.
    """

    def __init__(
        self, filters: int, kernel_size: Sequence[int], strides: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0), dilation_rate: Sequence[int] = (1, 1), groups: int = 1, use_bias: bool = True,
        kernel_initializer: Any = "zeros", bias_initializer: Any = "zeros", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.filters, self.groups, self.use_bias = filters, groups, use_bias
        self.kernel_size, self.strides, self.padding = tuple(kernel_size), tuple(strides), tuple(padding)
        self.dilation_rate = tuple(dilation_rate)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        """Add the weights."""
        shape = (*self.kernel_size, self.filters // self.groups, input_shape[-1])
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer=self.bias_initializer)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape after it."""
        return (input_shape[0], *self._sides(input_shape), self.filters)

    def call(self, inputs: Any) -> Any:
        """The transposed convolution of each group."""
        kernel = self._dilated(ops.convert_to_tensor(self.kernel))
        parts = zip(ops.split(inputs, self.groups, -1), ops.split(kernel, self.groups, -1), strict=True)
        spread = [ops.conv_transpose(image, filters, self.strides, "valid") for image, filters in parts]
        whole = spread[0] if self.groups == 1 else ops.concatenate(spread, -1)
        (top, left), (height, width) = self.padding, self._sides(inputs.shape)
        whole = whole[:, top : top + height, left : left + width, :]
        return whole if self.bias is None else whole + ops.convert_to_tensor(self.bias)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups", "use_bias")
        own = {name: getattr(self, name) for name in names}
        own["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        own["bias_initializer"] = keras.initializers.serialize(self.bias_initializer)
        return {**super().get_config(), **own}

    def _sides(self, shape: Any) -> list[Any]:
        axes = zip(shape[1:3], self.kernel_size, self.strides, self.padding, self.dilation_rate, strict=True)
        return [side and s * (side - 1) + d * (k - 1) + 1 - 2 * p for side, k, s, p, d in axes]

    def _dilated(self, kernel: Any) -> Any:
        """The filters with zeros between their elements: Keras has no transposed one with both stride and dilation."""
        for axis, rate in enumerate(self.dilation_rate):
            if rate > 1:
                side, shape = kernel.shape[axis], list(kernel.shape)
                kernel = ops.expand_dims(kernel, axis + 1)
                kernel = ops.pad(kernel, [(0, rate - 1 if at == axis + 1 else 0) for at in range(5)])
                shape[axis] = side * rate
                kernel = ops.take(ops.reshape(kernel, shape), np.arange(rate * (side - 1) + 1), axis)
        return kernel


@registered
class TransposedDense(keras.layers.Dense):
    """A dense layer whose weights Caffe keeps as (in, out): InnerProduct with ``transpose``."""


@registered
class Embed(keras.layers.Embedding):
    """An embedding with a bias.

    Args:
        bias_initializer: of the bias.
        **options: those of ``keras.layers.Embedding``.
    """

    def __init__(self, *arguments: Any, bias_initializer: Any = "zeros", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any = None) -> None:
        """Add the weights."""
        super().build(input_shape)
        self.bias = self.add_weight(name="bias", shape=(self.output_dim,), initializer=self.bias_initializer)

    def call(self, inputs: Any) -> Any:
        """The rows of the words, and the bias."""
        return super().call(inputs) + ops.convert_to_tensor(self.bias)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "bias_initializer": keras.initializers.serialize(self.bias_initializer)}


class _Elementwise(keras.layers.Layer):
    """A function of each element, whose arguments are numbers."""

    def __init__(self, arguments: dict[str, float], options: dict[str, Any]) -> None:
        super().__init__(**options)
        self.arguments = arguments

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), **self.arguments}


@registered
class Power(_Elementwise):
    """(shift + scale * x) ** power."""

    def __init__(self, power: float = 1.0, scale: float = 1.0, shift: float = 0.0, **options: Any) -> None:
        super().__init__({"power": power, "scale": scale, "shift": shift}, options)

    def call(self, inputs: Any) -> Any:
        """The power of each element; a power of 0 gives 1."""
        power, base = self.arguments["power"], inputs * self.arguments["scale"] + self.arguments["shift"]
        if power == 0:
            return ops.ones_like(base)
        return base if power == 1 else ops.square(base) if power == 2 else ops.power(base, power)


@registered
class Exp(_Elementwise):
    """base ** (shift + scale * x); a base of -1 stands for e."""

    def __init__(self, base: float = -1.0, scale: float = 1.0, shift: float = 0.0, **options: Any) -> None:
        super().__init__({"base": base, "scale": scale, "shift": shift}, options)

    def call(self, inputs: Any) -> Any:
        """The exponential of each element."""
        base = self.arguments["base"]
        exponent = inputs * self.arguments["scale"] + self.arguments["shift"]
        return ops.exp(exponent if base == -1 else exponent * math.log(base))


@registered
class Log(_Elementwise):
    """The logarithm of shift + scale * x; a base of -1 stands for e."""

    def __init__(self, base: float = -1.0, scale: float = 1.0, shift: float = 0.0, **options: Any) -> None:
        super().__init__({"base": base, "scale": scale, "shift": shift}, options)

    def call(self, inputs: Any) -> Any:
        """The logarithm of each element."""
        base = self.arguments["base"]
        logarithm = ops.log(inputs * self.arguments["scale"] + self.arguments["shift"])
        return logarithm if base == -1 else logarithm / math.log(base)


@registered
class AbsVal(_Elementwise):
    """|x|."""

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)

    def call(self, inputs: Any) -> Any:
        """The absolute value of each element."""
        return ops.abs(inputs)


@registered
class StopGradient(_Elementwise):
    """What it is given, without passing gradients back: ``propagate_down: false``."""

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)

    def call(self, inputs: Any) -> Any:
        """The inputs."""
        return ops.stop_gradient(inputs)


@registered
class WeightedSum(keras.layers.Layer):
    """A sum of tensors of one shape, each times a number: Eltwise with ``coeff``.

    Args:
        coefficients: one for each input.
    """

    def __init__(self, coefficients: Sequence[float], **options: Any) -> None:
        super().__init__(**options)
        self.coefficients = tuple(coefficients)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of an input."""
        return input_shape[0]

    def call(self, inputs: Sequence[Any]) -> Any:
        """The sum."""
        return sum(one * factor for one, factor in zip(inputs, self.coefficients, strict=True))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "coefficients": self.coefficients}


@registered
class Slice(keras.layers.Layer):
    """Cuts a tensor into several along an axis.

    Args:
        points: where to cut.
        axis: the axis.
    """

    def __init__(self, points: Sequence[int], axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.points, self.axis = tuple(points), axis

    def call(self, inputs: Any) -> list[Any]:
        """The parts."""
        return list(ops.split(inputs, self.points, self.axis))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "points": self.points, "axis": self.axis}


@registered
class Crop(keras.layers.Layer):
    """A part of a tensor.

    Args:
        starts: where the part begins on each axis after the rows.
        sizes: how long it is there; None for up to the end.
    """

    def __init__(self, starts: Sequence[int], sizes: Sequence[int | None], **options: Any) -> None:
        super().__init__(**options)
        self.starts, self.sizes = tuple(starts), tuple(sizes)

    def call(self, inputs: Any) -> Any:
        """The part."""
        axes = zip(self.starts, self.sizes, strict=True)
        parts = [slice(start, None if size is None else start + size) for start, size in axes]
        return inputs[(slice(None), *parts)]

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "starts": self.starts, "sizes": self.sizes}


@registered
class ArgMax(keras.layers.Layer):
    """The places of the largest values, as floats; of equal values the last one comes first, as in Caffe.

    Args:
        top_k: how many.
        axis: along which axis; None for over everything in a row, which gives (rows, 1, k).
        out_max_val: give the values, too: without an axis (rows, 2, k), with one the values alone.
    """

    def __init__(self, top_k: int = 1, axis: int | None = None, out_max_val: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.top_k, self.axis, self.out_max_val = top_k, axis, out_max_val

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape of the places or values."""
        if self.axis is None:
            return (input_shape[0], 1 + self.out_max_val, self.top_k)
        axis = self.axis % len(input_shape)
        return (*input_shape[:axis], self.top_k, *input_shape[axis + 1 :])

    def call(self, inputs: Any) -> Any:
        """The places or values."""
        size = math.prod(inputs.shape[1:])
        searched = ops.reshape(inputs, (-1, size)) if self.axis is None else ops.moveaxis(inputs, self.axis, -1)
        values, places = ops.top_k(ops.flip(searched, -1), self.top_k)
        places = ops.cast(searched.shape[-1] - 1 - places, inputs.dtype)
        if self.axis is None:
            return ops.stack([places, values] if self.out_max_val else [places], 1)
        return ops.moveaxis(values if self.out_max_val else places, -1, self.axis)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "top_k": self.top_k, "axis": self.axis, "out_max_val": self.out_max_val}
