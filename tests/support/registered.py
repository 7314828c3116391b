"""Registered functions and classes, in a module that ranks and executors can import."""

from __future__ import annotations

from typing import Any

import keras

register = keras.saving.register_keras_serializable("cos_ml_tests")


@register
def soft(inputs: Any) -> Any:
    """An activation."""
    return keras.ops.tanh(inputs) * 1.5


@register
def small(shape: Any, dtype: Any = None) -> Any:
    """An initializer."""
    return keras.random.uniform(shape, -0.1, 0.1, dtype=dtype, seed=1)


@register
def halved(weights: Any) -> Any:
    """A constraint."""
    return weights / 2


@register
def squares(weights: Any) -> Any:
    """A regularizer."""
    return keras.ops.sum(keras.ops.square(weights))


@register
def squared(y_true: Any, y_pred: Any) -> Any:
    """A loss, or a metric."""
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@register
def halve(epoch: int, rate: float) -> float:
    """A schedule of a callback."""
    return rate / 2


@register
class Halved(keras.constraints.Constraint):
    """A constraint."""

    def __call__(self, weights: Any) -> Any:
        return weights / 2


@register
class Stairs(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that falls."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (1.0 + keras.ops.cast(step // 4, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {}
