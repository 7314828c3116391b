"""Caffe's recurrent layers, with its marks of where a sequence goes on (every side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

__all__ = ["CaffeLSTM", "CaffeRNN"]

registered = keras.saving.register_keras_serializable(package="cos_ml")


class _Recurrent(keras.layers.Layer):
    """A layer over sequences (rows, time, features), marks (rows, time) and perhaps static features (rows, features).

    A mark of 0 begins a new sequence. The state is zero before the first step, whatever its mark.

    Args:
        units: the size of output and state.
        kernel_initializer: of all matrices.
        bias_initializer: of the biases.
    """

    gates = 1

    def __init__(
        self, units: int, kernel_initializer: Any = "zeros", bias_initializer: Any = "zeros", **options: Any
    ) -> None:
        super().__init__(**options)
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Add the weights."""
        width = self.gates * self.units
        self.kernel = self.matrix("kernel", input_shape[0][-1], width)
        self.bias = self.vector("bias", width)
        self.static_kernel = self.matrix("static_kernel", input_shape[2][-1], width) if len(input_shape) > 2 else None
        self.recurrent_kernel = self.matrix("recurrent_kernel", self.units, width)

    def matrix(self, name: str, inputs: int, outputs: int) -> Any:
        """A weight."""
        return self.add_weight(name=name, shape=(inputs, outputs), initializer=self.kernel_initializer)

    def vector(self, name: str, size: int) -> Any:
        """A bias."""
        return self.add_weight(name=name, shape=(size,), initializer=self.bias_initializer)

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of the sequence that it gives."""
        return (*input_shape[0][:2], self.units)

    def call(self, inputs: Sequence[Any]) -> Any:
        """The output of every step."""
        features, marks, *static = inputs
        steps = ops.matmul(features, self.kernel) + self.bias
        if static:
            steps = steps + ops.expand_dims(ops.matmul(static[0], self.static_kernel), 1)
        steps, marks = ops.moveaxis(steps, 1, 0), ops.expand_dims(ops.moveaxis(marks, 1, 0), -1)
        start = ops.zeros_like(steps[0, :, : self.units])
        recurrent = ops.convert_to_tensor(self.recurrent_kernel)
        _, outputs = ops.scan(
            lambda state, step: self.step(state, step[0], ops.cast(step[1], step[0].dtype), recurrent),
            (start, start),
            (steps, marks),
        )
        return ops.moveaxis(outputs, 0, 1)

    def step(self, state: Any, given: Any, mark: Any, recurrent: Any) -> tuple[Any, Any]:
        """The next state and the output, from what the inputs give to the gates."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {
            "units": self.units,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
        return {**super().get_config(), **own}


@registered
class CaffeLSTM(_Recurrent):
    """An LSTM with the gates in Caffe's order: input, forget, output, candidate."""

    gates = 4

    def step(self, state: Any, given: Any, mark: Any, recurrent: Any) -> tuple[Any, Any]:
        """One step of the LSTM."""
        hidden, cell = state
        gates = given + ops.matmul(hidden * mark, recurrent)
        enters, stays, leaves, candidate = ops.split(gates, 4, -1)
        cell = mark * ops.sigmoid(stays) * cell + ops.sigmoid(enters) * ops.tanh(candidate)
        hidden = ops.sigmoid(leaves) * ops.tanh(cell)
        return (hidden, cell), hidden


@registered
class CaffeRNN(_Recurrent):
    """A simple recurrent layer, whose output is one more layer with tanh over its state."""

    def build(self, input_shape: Sequence[Any]) -> None:
        """Add the weights."""
        super().build(input_shape)
        self.output_kernel = self.matrix("output_kernel", self.units, self.units)
        self.output_bias = self.vector("output_bias", self.units)

    def call(self, inputs: Sequence[Any]) -> Any:
        """The output of every step."""
        return ops.tanh(ops.matmul(super().call(inputs), self.output_kernel) + self.output_bias)

    def step(self, state: Any, given: Any, mark: Any, recurrent: Any) -> tuple[Any, Any]:
        """One step of the state."""
        hidden = ops.tanh(given + ops.matmul(state[0] * mark, recurrent))
        return (hidden, state[1]), hidden
