"""A network's forward pass as a TensorFlow graph, with taps at layers (driver, rank and scoring side)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cos_ml.network.archive import layers_by_name
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.keras_internals import input_structure

if TYPE_CHECKING:
    pass

__all__ = ["forward_pass", "pack_inputs", "traced"]


def pack_inputs(model: Any, inputs: Sequence[Any]) -> Any:
    """Input tensors, in the network's order, in the form that it was built with: one, a list or a dict."""
    structure = input_structure(model)
    if isinstance(structure, dict):
        tf = import_tensorflow()

        return tf.nest.pack_sequence_as(structure, list(inputs))
    return list(inputs) if len(inputs) > 1 else inputs[0]


def forward_pass(network: Any, layers: tuple[str, ...]) -> Callable[..., list[Any]]:
    """One pass through ``network``: a function of its input arrays that returns its outputs, then those of ``layers``.

    A layer is tapped where it is called, so those of nested models are reached as well as any other.
    """
    tf = import_tensorflow()

    taps: dict[str, Any] = {}
    found = layers_by_name(network)
    for name in layers:
        found[name].call = tap(found[name].call, taps, name)

    def forward(*inputs: Any) -> list[Any]:
        outputs = network(pack_inputs(network, inputs), training=False)
        return [*tf.nest.flatten(outputs), *(taps[name] for name in layers)]

    return traced(forward)


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a TensorFlow graph, traced once for any number of rows.

    tf.function would trace it for the first and the second number of rows, and warn of it where many networks are used.
    """
    tf = import_tensorflow()

    graph = tf.function(function, autograph=False)
    known: dict[Any, Any] = {}

    def call(*data: Any) -> Any:
        tensors = tf.nest.map_structure(tf.convert_to_tensor, data)
        specs = tf.nest.map_structure(
            lambda rows: tf.TensorSpec([None, *rows.shape[1:]] if rows.shape.rank else [], rows.dtype), tensors
        )
        key = tuple((spec.dtype, tuple(spec.shape)) for spec in tf.nest.flatten(specs))
        if key not in known:
            known[key] = graph.get_concrete_function(*specs)
        return known[key](*tensors)

    return call


def tap(call: Callable[..., Any], taps: dict[str, Any], name: str) -> Callable[..., Any]:
    def tapped(*args: Any, **kwargs: Any) -> Any:
        taps[name] = call(*args, **kwargs)
        return taps[name]

    return tapped
