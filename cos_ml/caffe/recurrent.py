"""Caffe's recurrent layers, with its marks of where a sequence goes on (every side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

__all__ = ["CaffeLSTM", "CaffeLSTMCell", "CaffeRNN", "CaffeRNNCell"]

registered = keras.saving.register_keras_serializable(package="cos_ml")


class _Cell(keras.layers.Layer):
    """One step of a recurrent layer: gets what its inputs give to the gates, and behind that the mark.

    Args:
        units: the size of output and state.
        recurrent_initializer: of the matrix that the state is multiplied by.
    """

    gates, states = 1, 1

    def __init__(self, units: int, recurrent_initializer: Any = "zeros", **options: Any) -> None:
        super().__init__(**options)
        self.units = self.output_size = units
        self.state_size = [units] * self.states
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)

    def build(self, input_shape: Any) -> None:
        """Add the matrix."""
        shape = (self.units, self.gates * self.units)
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=shape, initializer=self.recurrent_initializer
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        recurrent = keras.initializers.serialize(self.recurrent_initializer)
        return {**super().get_config(), "units": self.units, "recurrent_initializer": recurrent}


@registered
class CaffeLSTMCell(_Cell):
    """A step of an LSTM with the gates in Caffe's order: input, forget, output, candidate."""

    gates, states = 4, 2

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output, and the next states."""
        (hidden, cell), mark = states, inputs[:, -1:]
        gates = inputs[:, :-1] + ops.matmul(hidden * mark, self.recurrent_kernel)
        enters, stays, leaves, candidate = ops.split(gates, 4, -1)
        cell = mark * ops.sigmoid(stays) * cell + ops.sigmoid(enters) * ops.tanh(candidate)
        hidden = ops.sigmoid(leaves) * ops.tanh(cell)
        return hidden, [hidden, cell]


@registered
class CaffeRNNCell(_Cell):
    """A step of a simple recurrent layer."""

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output, and the next state, which is the same."""
        hidden = ops.tanh(inputs[:, :-1] + ops.matmul(states[0] * inputs[:, -1:], self.recurrent_kernel))
        return hidden, [hidden]


class _Recurrent(keras.layers.Layer):
    """A layer over sequences (rows, time, features), marks (rows, time) and perhaps static features (rows, features).

    A mark of 0 begins a new sequence. The state is zero before the first step, whatever its mark.

    Args:
        units: the size of output and state.
        kernel_initializer: of all matrices.
        bias_initializer: of the biases.
    """

    cell: type[_Cell]

    def __init__(
        self, units: int, kernel_initializer: Any = "zeros", bias_initializer: Any = "zeros", **options: Any
    ) -> None:
        super().__init__(**options)
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Sequence[Any]) -> None:
        """Add the weights."""
        width = self.cell.gates * self.units
        self.kernel = self.matrix("kernel", input_shape[0][-1], width)
        self.bias = self.vector("bias", width)
        self.static_kernel = self.matrix("static_kernel", input_shape[2][-1], width) if len(input_shape) > 2 else None
        self.recurrent = keras.layers.RNN(self.cell(self.units, self.kernel_initializer), return_sequences=True)
        self.recurrent.build((*input_shape[0][:2], width + 1))

    @property
    def recurrent_kernel(self) -> Any:
        """The matrix that the state is multiplied by."""
        return self.recurrent.cell.recurrent_kernel

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
        marks = ops.expand_dims(ops.cast(marks, steps.dtype), -1)
        return self.recurrent(ops.concatenate([steps, marks], -1))

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
    """An LSTM as Caffe computes it."""

    cell = CaffeLSTMCell


@registered
class CaffeRNN(_Recurrent):
    """A simple recurrent layer, whose output is one more layer with tanh over its state."""

    cell = CaffeRNNCell

    def build(self, input_shape: Sequence[Any]) -> None:
        """Add the weights."""
        super().build(input_shape)
        self.output_kernel = self.matrix("output_kernel", self.units, self.units)
        self.output_bias = self.vector("output_bias", self.units)

    def call(self, inputs: Sequence[Any]) -> Any:
        """The output of every step."""
        return ops.tanh(ops.matmul(super().call(inputs), self.output_kernel) + self.output_bias)
