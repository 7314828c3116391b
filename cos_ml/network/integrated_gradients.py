"""Integrated gradients: what each input value contributes to an output (scoring task side; checks on the driver).

Sundararajan, Taly and Yan, 2017: the gradient of the output, integrated along the straight line from a baseline to the
row, times their distance. The contributions add up to the output of the row minus that of the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, load_model
from cos_ml.network.forward import pack_inputs, traced
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.keras_internals import inputs_of_calls
from cos_ml.network.structure import input_tensors, is_functional

__all__ = ["Attribution", "IntegratedGradients", "check_attribution"]


@dataclass(frozen=True)
class Attribution:
    """What is attributed to which inputs, as plain values.

    Attributes:
        places: the inputs to which the first output is attributed; the others stay as they are.
        baselines: the baseline of each of them: one number for all values of a row, or one for each value.
        steps: the number of points between baseline and row at which gradients are computed.
        target: the class, or the number of the first output, that is attributed; None for each row's predicted class.
        one_unit: whether the first output is only the probability, or the logit, of class 1.
    """

    places: tuple[int, ...]
    baselines: tuple[tuple[float, ...], ...]
    steps: int
    target: int | None
    one_unit: bool


# What was checked of a network, for as long as a model has it.
_checked: WeakKeyDictionary[Network, set[Attribution]] = WeakKeyDictionary()


def check_attribution(network: Network, attribution: Attribution) -> None:
    """Raises InvalidInputError if gradients do not reach the inputs; what only rows can tell, scoring tasks find."""
    checked = _checked.setdefault(network, set())
    if attribution in checked:
        return
    tf, model = import_tensorflow(), load_model(network.archive, network.modules)
    compute = IntegratedGradients(model, attribution).compute
    specs = [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in input_tensors(model)]
    try:
        tf.function(compute, autograph=False).get_concrete_function(tf.TensorSpec([None], tf.int32), *specs)
    except InvalidInputError:
        raise
    except Exception:  # of layers that want a number of rows or a length
        return
    checked.add(attribution)


class IntegratedGradients:
    """The contributions of a network's inputs to its first output.

    An input of integers has no gradient. It is attributed at the output of the layer that takes it: at that of an
    Embedding, whose contributions are added up for each index, or of a layer such as Rescaling.

    Args:
        network: the network.
        attribution: what is attributed.

    Raises:
        InvalidInputError: an input of integers is taken by no such layer.
    """

    def __init__(self, network: Any, attribution: Attribution) -> None:
        self.network, self.attribution = network, attribution
        tensors = input_tensors(network)
        self.rows = [tuple(tensor.shape[1:]) for tensor in tensors]
        self.layers = {at: _takers(network, at) for at in attribution.places if "float" not in tensors[at].dtype}
        points, weights = np.polynomial.legendre.leggauss(attribution.steps)  # converges fast: gradients are smooth
        self.points, self.weights = (points + 1) / 2, weights / 2
        self.graph = traced(self.compute, [(), *self.rows])

    def __call__(self, targets: np.ndarray, *inputs: Any) -> list[np.ndarray]:
        """The contributions for rows: for each of ``places`` an array in the shape of the input.

        Args:
            targets: int32 [rows], the class or the number of the first output that is attributed.
            inputs: all inputs of the network, [rows, ...].
        """
        return [tensor.numpy() for tensor in self.graph(targets, *inputs)]

    def compute(self, targets: Any, *inputs: Any) -> list[Any]:
        """The same on tensors."""
        tf = import_tensorflow()
        points, weights = tf.constant(self.points), tf.constant(self.weights)

        def add(step: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
            parts = self._contributions(points[step], targets, inputs)
            added = [tf.cast(weights[step], part.dtype) * part for part in parts]
            return step + 1, [total + tf.cast(part, total.dtype) for total, part in zip(sums, added, strict=True)]

        steps = len(self.points)
        zeros = [tf.zeros_like(inputs[at], _sum_dtype(inputs[at])) for at in self.attribution.places]
        _, sums = tf.while_loop(lambda step, _: step < steps, add, (0, zeros), parallel_iterations=1)
        return list(sums)

    def _contributions(self, fraction: Any, targets: Any, inputs: Sequence[Any]) -> list[Any]:
        """The gradient at one point between baseline and row, times their distance, in the shape of each input."""
        tf = import_tensorflow()
        moved, lines = list(inputs), {}
        with tf.GradientTape(watch_accessed_variables=False) as tape, ExitStack() as stack:
            for at, values in zip(self.attribution.places, self.attribution.baselines, strict=True):
                lines[at] = line = _Line(fraction, tape)
                sides = [] if len(values) == 1 else [side or 1 for side in self.rows[at]]
                numbers = tf.constant(np.array(values).reshape(sides))
                baseline = tf.broadcast_to(tf.cast(numbers, inputs[at].dtype), tf.shape(inputs[at]))
                if at not in self.layers:
                    moved[at] = line.point(baseline, inputs[at])
                for layer in self.layers.get(at, ()):
                    stack.enter_context(_calling(layer, partial(line.through, layer.call, baseline)))
            outputs = self.network(pack_inputs(self.network, moved), training=False)
            value = self._value(tf.nest.flatten(outputs)[0], targets)
        for at, layers in self.layers.items():
            if len(lines[at].points) != len(layers) or not lines[at].follows(inputs[at].shape):
                raise _no_gradient(self.network, at)
        gradients = tape.gradient(value, {at: line.points for at, line in lines.items()})
        if all(one is None for one in tf.nest.flatten(gradients)):
            raise InvalidInputError(
                "Param attributionsCol: the network's first output has no gradient with respect to its inputs, because "
                "a layer rounds or compares numbers, or leaves TensorFlow. Unset attributionsCol; the "
                "package SHAP (KernelExplainer) explains such networks without gradients."
            )
        return [lines[at].contribution(gradients[at], inputs[at]) for at in self.attribution.places]

    def _value(self, output: Any, targets: Any) -> Any:
        """What is attributed, [rows]; for class 0 of a single unit, minus that of class 1: constants do not matter."""
        tf = import_tensorflow()
        flat = tf.reshape(output, [-1, math.prod(output.shape[1:])])
        if self.attribution.one_unit:
            return flat[:, 0] * tf.cast(2 * targets - 1, flat.dtype)
        return tf.gather(flat, targets, batch_dims=1)


class _Line:
    """The lines from baselines to rows, at one point of which the network is computed.

    Args:
        fraction: float64 scalar, where between baseline (0) and row (1).
        tape: records what is computed there.

    Attributes:
        points: the points, a tensor for each layer that takes the input.
        distances: the rows minus the baselines.
    """

    def __init__(self, fraction: Any, tape: Any) -> None:
        self.fraction, self.tape = fraction, tape
        self.points: list[Any] = []
        self.distances: list[Any] = []

    def point(self, baseline: Any, row: Any) -> Any:
        """The point between these."""
        if not row.dtype.is_floating:
            return row  # which ``follows`` tells
        self.distances.append(row - baseline)
        self.points.append(baseline + import_tensorflow().cast(self.fraction, row.dtype) * self.distances[-1])
        self.tape.watch(self.points[-1])
        return self.points[-1]

    def through(self, call: Callable[..., Any], baseline: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The point between what a layer computes of a baseline and of a row, in place of the layer's output."""
        baseline = import_tensorflow().cast(baseline, inputs.dtype)
        return self.point(call(baseline, *args, **kwargs), call(inputs, *args, **kwargs))

    def follows(self, shape: Any) -> bool:
        """Whether there are numbers for each value of an input of this shape."""
        return all(shape.is_compatible_with(point.shape[: shape.rank]) for point in self.points)

    def contribution(self, gradients: Sequence[Any], like: Any) -> Any:
        """The gradients times the distances, in the shape of the input ``like``."""
        tf = import_tensorflow()
        total = tf.zeros_like(like, _sum_dtype(like))
        for gradient, distance in zip(gradients, self.distances, strict=True):
            if gradient is not None:
                product = tf.convert_to_tensor(gradient) * distance
                axes = list(range(like.shape.rank, product.shape.rank))
                total += tf.cast(tf.reduce_sum(product, axes), total.dtype)
        return total


def _sum_dtype(tensor: Any) -> Any:
    """The type in which contributions are added up."""
    tf = import_tensorflow()
    return tf.float64 if tensor.dtype == tf.float64 else tf.float32


@contextmanager
def _calling(layer: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Within the block a layer is called by ``call``."""
    before = layer.call
    layer.call = call
    try:
        yield
    finally:
        layer.call = before


def _takers(network: Any, at: int) -> list[Any]:
    """The layers that take an input of integers, in nested models too."""
    layers = _taking(network, network.inputs[at]) if is_functional(network) else []
    if not layers:
        raise _no_gradient(network, at)
    return list(dict.fromkeys(layers))


def _taking(model: Any, tensor: Any) -> list[Any]:
    found: list[Any] = []
    for layer in model.layers:
        for tensors in inputs_of_calls(layer):
            places = [place for place, one in enumerate(tensors) if one is tensor]
            for place in places:
                found += _taking(layer, layer.inputs[place]) if is_functional(layer) else [layer]
    return found


def _no_gradient(network: Any, at: int) -> InvalidInputError:
    tensor = input_tensors(network)[at]
    layers = dict.fromkeys(_taking(network, tensor) if is_functional(network) else [])
    taken = f", goes into {' and '.join(layer.name for layer in layers)}" if layers else ""
    return InvalidInputError(
        f"Param attributionsCol: input {tensor.name!r} is of type {tensor.dtype}{taken} and has no gradient. Expected "
        "floats, or integers of a functional model that go into an Embedding, a Rescaling or another layer that "
        "computes floats for each of them, and is called once. Unset attributionsCol, or give the network such a layer."
    )
