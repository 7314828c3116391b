"""Layers, losses, metrics and callbacks that raise an exception on one rank, in a module that ranks can import."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import keras
import tensorflow as tf

RANK = "1"  # of several


class UnprintableError(Exception):
    """An exception that nobody can print, copy or pickle."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


EXCEPTIONS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit, asyncio.CancelledError,
        UnprintableError,
    )
}  # fmt: skip


def fail(name: str) -> None:
    """Raise an exception of this name on the one rank."""
    if os.environ.get("HOROVOD_RANK", RANK) == RANK:
        raise EXCEPTIONS[name]("on purpose")


@keras.saving.register_keras_serializable("cos_ml_tests")
class RaisingLayer(keras.layers.Layer):
    """Raises in training: when it is traced, or when TensorFlow runs it."""

    def __init__(self, name_of_error: str, when: str = "traced", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name_of_error, self.when = name_of_error, when

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        if self.when == "traced":
            fail(self.name_of_error)
        with tf.control_dependencies([tf.py_function(lambda: fail(self.name_of_error), [], [])]):
            return tf.identity(inputs)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"name_of_error": self.name_of_error, "when": self.when}


@keras.saving.register_keras_serializable("cos_ml_tests")
class RaisingLoss(keras.losses.Loss):
    def __init__(self, name_of_error: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name_of_error = name_of_error

    def call(self, y_true: Any, y_pred: Any) -> Any:
        fail(self.name_of_error)
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"name_of_error": self.name_of_error}


@keras.saving.register_keras_serializable("cos_ml_tests")
class RaisingMetric(keras.metrics.MeanSquaredError):
    def __init__(self, name_of_error: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name_of_error = name_of_error

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        fail(self.name_of_error)
        return super().update_state(y_true, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"name_of_error": self.name_of_error}


class RaisingCallback(keras.callbacks.Callback):
    """Raises in the method of this name."""

    def __init__(self, name_of_error: str, method: str) -> None:
        super().__init__()
        setattr(self, method, lambda *_, **__: fail(name_of_error))
