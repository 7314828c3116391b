"""Caffe's layers that normalize, scale and shift (every side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from cos_ml.caffe.layers import pool_images

__all__ = ["LRN", "MVN", "BatchNorm", "Bias", "Scale"]

registered = keras.saving.register_keras_serializable(package="cos_ml")
DECAY = 0.999  # of Caffe's sums of statistics; a layer may set another moving_average_fraction
TINY = 1e-30


def _is_several(shape: Any) -> bool:
    """Whether these are the shapes of several inputs; a file has lists for tuples."""
    return isinstance(shape[0], (list, tuple))


class _SameShape(keras.layers.Layer):
    """A layer whose output has the shape of its first input, with plain arguments."""

    def __init__(self, arguments: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(**options)
        self.arguments = arguments

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the first input."""
        return input_shape[0] if _is_several(input_shape) else input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), **self.arguments}


@registered
class LRN(_SameShape):
    """Local response normalization of images, channels last.

    Args:
        local_size: how many channels, or pixels in each direction, belong together.
        alpha: of the squares.
        beta: the exponent.
        k: what is added to the squares' sum; within channels it is 1.
        within_channel: whether neighbours are pixels of a channel instead of channels.
    """

    def __init__(
        self, local_size: int = 5, alpha: float = 1.0, beta: float = 0.75, k: float = 1.0,
        within_channel: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        arguments = {"local_size": local_size, "alpha": alpha, "beta": beta, "k": k, "within_channel": within_channel}
        super().__init__(arguments, options)

    def call(self, inputs: Any) -> Any:
        """The inputs divided by a power of their neighbours' squares."""
        size, alpha, beta, k = (self.arguments[name] for name in ("local_size", "alpha", "beta", "k"))
        squares = ops.square(inputs)
        if self.arguments["within_channel"]:
            mean = pool_images(squares, "ave", (size, size), (1, 1), (size // 2, size // 2))
            return inputs * ops.power(1 + alpha * mean, -beta)
        channels = inputs.shape[-1]
        squares = ops.pad(squares, [(0, 0)] * (len(inputs.shape) - 1) + [(size // 2, size // 2)])
        total = sum(squares[..., start : start + channels] for start in range(size))
        return inputs * ops.power(k + alpha / size * total, -beta)


@registered
class MVN(_SameShape):
    """Subtracts each row's mean, and divides by its standard deviation.

    Args:
        axes: the axes over which a mean is taken.
        normalize_variance: whether to divide.
        eps: is added to the standard deviation.
    """

    def __init__(self, axes: Sequence[int], normalize_variance: bool = True, eps: float = 1e-9, **options: Any) -> None:
        super().__init__({"axes": tuple(axes), "normalize_variance": normalize_variance, "eps": eps}, options)

    def call(self, inputs: Any) -> Any:
        """The normalized inputs."""
        axes = self.arguments["axes"]
        centred = inputs - ops.mean(inputs, axes, keepdims=True)
        if not self.arguments["normalize_variance"]:
            return centred
        # A root has no gradient at 0.
        deviation = ops.sqrt(ops.maximum(ops.mean(ops.square(centred), axes, keepdims=True), TINY))
        return centred / (deviation + self.arguments["eps"])


@registered
class BatchNorm(_SameShape):
    """Batch normalization with Caffe's statistics, without gamma and beta.

    Mean and variance are kept as decaying sums, and ``factor`` is the sum of their weights. Training adds a batch's
    mean and its unbiased variance.

    Args:
        axis: the axis of the channels.
        eps: is added to the variance.
        momentum: what is left of the sums after a step.
        use_global_stats: normalize with the stored statistics (True) or with the batch's own (False); None for the
            batch's own in training alone.
    """

    def __init__(
        self, axis: int = -1, eps: float = 1e-5, momentum: float = DECAY, use_global_stats: bool | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        arguments = {"axis": axis, "eps": eps, "momentum": momentum, "use_global_stats": use_global_stats}
        super().__init__(arguments, options)

    def build(self, input_shape: Any) -> None:
        """Add the sums."""
        channels = (input_shape[self.arguments["axis"]],)
        options = {"initializer": "zeros", "trainable": False}
        self.sum_of_means = self.add_weight(name="mean", shape=channels, **options)
        self.sum_of_variances = self.add_weight(name="variance", shape=channels, **options)
        self.factor = self.add_weight(name="factor", shape=(1,), **options)

    def call(self, inputs: Any, training: bool | None = False) -> Any:
        """The normalized inputs."""
        stored = self.arguments["use_global_stats"]
        learns = bool(training) and self.trainable and stored is not True
        axis = self.arguments["axis"] % len(inputs.shape)
        if stored or (stored is None and not learns):
            mean, variance = (ops.divide_no_nan(one, self.factor) for one in (self.sum_of_means, self.sum_of_variances))
        else:
            others = [other for other in range(len(inputs.shape)) if other != axis]
            mean = ops.mean(inputs, others)
            spread = ops.square(inputs - self._beside(mean, inputs, axis))
            variance = ops.mean(spread, others)
            if learns:
                self._learn(mean, variance, ops.cast(ops.size(inputs) // inputs.shape[axis], mean.dtype))
        scale = ops.rsqrt(self._beside(variance, inputs, axis) + self.arguments["eps"])
        return (inputs - self._beside(mean, inputs, axis)) * scale

    def _learn(self, mean: Any, variance: Any, count: Any) -> None:
        """Add the statistics of a batch, each of ``count`` numbers."""
        momentum = self.arguments["momentum"]
        unbiased = variance * count / ops.maximum(count - 1, 1)
        self.sum_of_means.assign(self.sum_of_means * momentum + mean)
        self.sum_of_variances.assign(self.sum_of_variances * momentum + unbiased)
        self.factor.assign(self.factor * momentum + 1)

    def _beside(self, values: Any, inputs: Any, axis: int) -> Any:
        shape = [inputs.shape[axis] if other == axis else 1 for other in range(len(inputs.shape))]
        return ops.cast(ops.reshape(values, shape), inputs.dtype)


class _Affine(_SameShape):
    """Values that cover some of the axes: the layer's own, or those of a second input."""

    def covering(self, values: Any, inputs: Any, rows: Any = None) -> Any:
        """The values with as many axes as the inputs; ``rows`` is their size along the rows, where they have that."""
        axes = self.arguments["axes"]
        shape = [inputs.shape[axis] if axis in axes else 1 for axis in range(len(inputs.shape))]
        if 0 in axes:
            shape[0] = -1
        return ops.reshape(ops.convert_to_tensor(values), shape)

    def add(self, name: str, input_shape: Any, initializer: Any, axes: Sequence[int]) -> Any:
        """A weight that covers these axes."""
        return self.add_weight(name=name, shape=tuple(input_shape[axis] for axis in axes), initializer=initializer)


@registered
class Scale(_Affine):
    """Multiplies by a factor for each place on some axes, and adds a bias.

    Args:
        axes: the axes that factors and bias cover, in the order of the inputs.
        order: position in the blob of each axis of the weights: what brings Caffe's array into this order.
        use_bias: whether it has a bias.
        gamma_initializer: of the factors. With two inputs the second one has them, and the layer none of its own.
        bias_initializer: of the bias.
    """

    def __init__(
        self, axes: Sequence[int] = (-1,), order: Sequence[int] | None = None, use_bias: bool = False,
        gamma_initializer: Any = "ones", bias_initializer: Any = "zeros", **options: Any,
    ) -> None:  # fmt: skip
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.order = tuple(range(len(axes)) if order is None else order)
        arguments = {
            "axes": tuple(axes),
            "order": self.order,
            "use_bias": use_bias,
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
        super().__init__(arguments, options)

    def build(self, input_shape: Any) -> None:
        """Add the weights."""
        several = _is_several(input_shape)
        shape, axes = input_shape[0] if several else input_shape, self.arguments["axes"]
        self.gamma = self.bias = None
        if not several:
            self.gamma = self.add("gamma", shape, self.gamma_initializer, axes)
        if self.arguments["use_bias"]:
            self.bias = self.add("bias", shape, self.bias_initializer, axes)

    def call(self, inputs: Any) -> Any:
        """The scaled inputs."""
        image, factors = inputs if isinstance(inputs, (list, tuple)) else (inputs, self.gamma)
        scaled = image * self.covering(factors, image)
        return scaled if self.bias is None else scaled + self.covering(self.bias, image)


@registered
class Bias(_Affine):
    """Adds a number for each place on some axes.

    Args:
        axes: the axes that the bias covers, in the order of the inputs.
        order: position in the blob of each axis of the weights.
        bias_initializer: of the bias. With two inputs the second one is the bias.
    """

    def __init__(
        self, axes: Sequence[int] = (-1,), order: Sequence[int] | None = None, bias_initializer: Any = "zeros",
        **options: Any,
    ) -> None:  # fmt: skip
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.order = tuple(range(len(axes)) if order is None else order)
        arguments = {
            "axes": tuple(axes),
            "order": self.order,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
        super().__init__(arguments, options)

    def build(self, input_shape: Any) -> None:
        """Add the weights."""
        several = _is_several(input_shape)
        self.bias = None if several else self.add("bias", input_shape, self.bias_initializer, self.arguments["axes"])

    def call(self, inputs: Any) -> Any:
        """The shifted inputs."""
        image, bias = inputs if isinstance(inputs, (list, tuple)) else (inputs, self.bias)
        return image + self.covering(bias, image)
