"""A network's forward pass as a TensorFlow graph, with outputs of chosen layers (driver, rank and scoring side)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cos_ml.network.archive import layers_by_name
from cos_ml.network.keras_import import import_tensorflow

__all__ = ["forward_pass", "pack_inputs", "traced"]


def pack_inputs(model: Any, inputs: Sequence[Any]) -> Any:
    """Input tensors, in the network's order, in the structure that it was built with: one tensor, a list or a dict."""
    structure = getattr(model, "input", None)  # a Sequential model that was not called yet has none
    if isinstance(structure, dict):
        return import_tensorflow().nest.pack_sequence_as(structure, list(inputs))
    return list(inputs) if len(inputs) > 1 else inputs[0]


def forward_pass(network: Any, layers: tuple[str, ...]) -> Callable[..., list[Any]]:
    """One pass through ``network``: a function of its input arrays that returns its outputs, then those of ``layers``.

    Layers record their outputs where they are called, so layers of nested models are reached as well.
    """
    tf = import_tensorflow()
    recorded: dict[str, Any] = {}
    found = layers_by_name(network)
    for name in layers:
        found[name].call = _recording(found[name].call, recorded, name)

    def forward(*inputs: Any) -> list[Any]:
        outputs = network(pack_inputs(network, inputs), training=False)
        return [*tf.nest.flatten(outputs), *(recorded[name] for name in layers)]

    return traced(forward)


def _recording(call: Callable[..., Any], recorded: dict[str, Any], name: str) -> Callable[..., Any]:
    """``call``, which also stores its result in ``recorded[name]``."""

    def record(*args: Any, **kwargs: Any) -> Any:
        recorded[name] = call(*args, **kwargs)
        return recorded[name]

    return record


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a TensorFlow graph, traced once for any number of rows.

    tf.function would trace it for the first and for the second number of rows, and warn about retracing if there are
    many networks.
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
