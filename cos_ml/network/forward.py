"""A network's forward pass as a TensorFlow graph, with outputs of chosen layers (driver, rank and scoring side)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cos_ml.network.archive import layers_by_name
from cos_ml.network.keras_import import import_keras, import_tensorflow
from cos_ml.network.structure import input_structure, input_tensors

__all__ = ["ForwardPass", "pack_inputs", "shapes_of_rows", "traced"]


def pack_inputs(model: Any, inputs: Sequence[Any]) -> Any:
    """Input tensors, in the network's order, in the structure that it was built with: one tensor, a list or a dict."""
    structure, tree = input_structure(model), import_keras().tree
    if tree.is_nested(structure):
        return tree.pack_sequence_as(structure, list(inputs))
    return list(inputs) if len(inputs) > 1 else inputs[0]


class ForwardPass:
    """One pass through a network: a function of its input arrays that returns its outputs, then those of ``layers``.

    Layers record their outputs where they are called, so layers of nested models are reached as well.

    Attributes:
        shapes: the shape of a row of each result, with None for a dimension that the network does not determine; empty
            before the first pass.
    """

    def __init__(self, network: Any, layers: Sequence[str]) -> None:
        self.network, self.layers = network, layers
        self.shapes: list[tuple[int | None, ...]] = []
        self.recorded: dict[str, Any] = {}
        found = layers_by_name(network)
        for name in layers:
            found[name].call = _recording(found[name].call, self.recorded, name)
        self.graph = traced(self.compute, [tensor.shape[1:] for tensor in input_tensors(network)])
        self.seed: tuple[int, ...] = ()
        self.seeded: set[int] = set()

    def begin(self, seed: tuple[int, ...]) -> None:
        """Begin with rows whose random numbers, if layers make any at inference, follow from ``seed``."""
        self.seed, self.seeded = seed, set()

    def __call__(self, *inputs: Any) -> list[Any]:
        """The network's outputs, and those of the layers, for these rows."""
        tensors = [import_tensorflow().convert_to_tensor(rows) for rows in inputs]
        trace = self.graph.trace(*tensors)
        if self.seed and id(trace) not in self.seeded:
            # Those of seed_generators, and those that no layer has for an attribute.
            used = [one for one in trace.variables if "seed_generator" in one.name and one.shape.rank == 1]
            new = [one for one in used if id(one) not in self.seeded]
            reseed(new, self.seed)
            self.seeded |= {id(trace), *map(id, new)}
        return trace(*tensors)  # type: ignore[no-any-return]

    def compute(self, *inputs: Any) -> list[Any]:
        """The network's outputs, and those of the layers, as the graph computes them."""
        outputs = self.network(pack_inputs(self.network, inputs), training=False)
        results = [*import_tensorflow().nest.flatten(outputs), *(self.recorded[name] for name in self.layers)]
        self.shapes = [tuple(result.shape[1:]) for result in results]  # known while the graph is traced, not later
        return results


def shapes_of_rows(network: Any, layers: Sequence[str]) -> list[tuple[int | None, ...]]:
    """``ForwardPass.shapes`` without a pass; empty where only rows can tell."""
    tf, forward = import_tensorflow(), ForwardPass(network, layers)
    specs = [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in input_tensors(network)]
    try:
        tf.function(forward.compute, autograph=False).get_concrete_function(*specs)
    except Exception:  # of layers that want a number of rows or a length
        return []
    return forward.shapes


def _recording(call: Callable[..., Any], recorded: dict[str, Any], name: str) -> Callable[..., Any]:
    """``call``, which also stores its result in ``recorded[name]``."""

    def record(*args: Any, **kwargs: Any) -> Any:
        recorded[name] = call(*args, **kwargs)
        return recorded[name]

    return record


def seed_generators(network: Any) -> list[Any]:
    """The variables, each of a seed and a count, from which a network makes random numbers."""
    variables = network.non_trainable_variables
    return [one for one in variables if "seed_generator" in one.path and len(one.shape) == 1]


def reseed(variables: Sequence[Any], seed: Sequence[int], counts: Sequence[int] = ()) -> None:
    """Give each of the variables of ``seed_generators`` a seed that follows from ``seed``, and a count, or 0."""
    words = np.random.SeedSequence([one % 2**63 for one in seed]).generate_state(len(variables) or 1)
    for variable, word, count in zip(variables, words, counts or [0] * len(variables), strict=False):
        variable.assign(np.array([word, count]).astype(getattr(variable.dtype, "as_numpy_dtype", variable.dtype)))


class Traced:
    """A function as a TensorFlow graph; see ``traced``."""

    def __init__(self, function: Callable[..., Any], rows: Sequence[Sequence[int | None]]) -> None:
        self.graph = import_tensorflow().function(function, autograph=False)
        self.rows = rows
        self.known: dict[Any, tuple[list[Any], Any]] = {}  # the shapes that a trace takes, and the trace, by dtypes

    def __call__(self, *data: Any) -> Any:
        """What the function returns for ``data``."""
        tf = import_tensorflow()
        tensors = tf.nest.map_structure(tf.convert_to_tensor, data)
        return self.trace(*tensors)(*tensors)

    def trace(self, *data: Any) -> Any:
        """The graph for data of these types and shapes."""
        tf = import_tensorflow()
        tensors = tf.nest.map_structure(tf.convert_to_tensor, data)
        flat = tf.nest.flatten(tensors)
        key = tuple((tensor.dtype, tensor.shape.rank) for tensor in flat)
        shapes, trace = self.known.get(key, (_shapes_of(flat, self.rows), None))
        given = [tensor.shape for tensor in flat]
        if trace is None or not all(map(tf.TensorShape.is_compatible_with, shapes, given)):
            shapes = list(map(tf.TensorShape.most_specific_compatible_shape, shapes, given))
            specs = [tf.TensorSpec(shape, tensor.dtype) for shape, tensor in zip(shapes, flat, strict=True)]
            trace = self.graph.get_concrete_function(*tf.nest.pack_sequence_as(tensors, specs))
            self.known[key] = shapes, trace
        return trace


def traced(function: Callable[..., Any], rows: Sequence[Sequence[int | None]] = ()) -> Traced:
    """``function`` as a TensorFlow graph, traced once for any number of rows and any length of them.

    tf.function would trace it for the first and for the second number of rows, and warn about retracing if there are
    many networks.

    Args:
        function: a function of tensors, or of structures of them.
        rows: the shape of a row of each tensor, with None for a dimension that differs between calls. Where it is not
            given, ``function`` is traced once more when a dimension differs for the first time.
    """
    return Traced(function, rows)


def _shapes_of(tensors: Sequence[Any], rows: Sequence[Sequence[int | None]]) -> list[Any]:
    """The shapes of tensors for any number of rows, with None where ``rows`` has it."""
    tf = import_tensorflow()
    shapes = [tf.TensorShape([None, *tensor.shape[1:]] if tensor.shape.rank else []) for tensor in tensors]
    for place, row in enumerate(rows[: len(shapes)]):
        given = tf.TensorShape([None, *row])
        if given.is_compatible_with(shapes[place]):
            shapes[place] = given
    return shapes
