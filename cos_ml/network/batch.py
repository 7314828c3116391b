"""Compiles a network, and packs a batch's columns as Keras's steps take them (rank and scoring side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cos_ml.errors import InvalidInputError
from cos_ml.network.compiled import optimizer_from
from cos_ml.network.forward import pack_inputs
from cos_ml.network.structure import input_tensors, is_functional, output_structure
from cos_ml.spec import TrainSpec

__all__ = ["compile_network", "pack_batch"]


def compile_network(network: Any, spec: TrainSpec) -> None:
    """Compile ``network`` with the arguments of ``spec``, as its user would."""
    _output_structure(network, spec)
    arguments = dict(spec.compile)
    if arguments.pop("self_compiled", False):  # in its constructor, which Keras has called
        return
    if "compile_config" in arguments:
        network.compile_from_config(arguments["compile_config"])
        if not network.compiled:  # as Keras's own method leaves a class with a compile of its own
            raise InvalidInputError(
                f"Param model: compile_from_config of {type(network).__name__} does not compile it: call compile there."
            )
        return
    optimizer = optimizer_from(arguments.pop("optimizer"), network)
    arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in arguments.items()}
    if spec.learning_rate is not None:
        optimizer.learning_rate = spec.learning_rate
    if spec.accumulation > 1:
        optimizer.gradient_accumulation_steps = spec.accumulation
    if spec.run_eagerly:
        arguments["run_eagerly"] = True
    network.compile(optimizer=optimizer, **arguments)


def pack_batch(network: Any, spec: TrainSpec, columns: Sequence[Any]) -> Any:
    """What Keras gives to ``train_step``: x, (x, y) or (x, y, sample_weight).

    Args:
        network: the network, whose structures of inputs and outputs x and y have.
        spec: the columns.
        columns: a tensor [B, ...] for each of ``spec.columns``.
    """
    values = dict(zip((column.field for column in spec.columns), columns, strict=True))
    inputs = [values[column.field] for column in spec.inputs]
    for index, wanted in enumerate(input_tensors(network) if is_functional(network) else ()):
        if inputs[index].dtype.is_floating and wanted.dtype in ("float16", "bfloat16"):
            inputs[index] = tf.cast(inputs[index], wanted.dtype)
    x = pack_inputs(network, inputs)
    labels = {int(column.field[1:]): values[column.field] for column in spec.labels}
    if not labels:
        return keras.utils.pack_x_y_sample_weight(x)
    structure = _output_structure(network, spec)
    outputs = [] if structure is None else keras.tree.flatten(structure)
    y = _packed(structure, [labels.get(index) for index in range(max(len(outputs), *labels, 1))])
    if "w" not in values:
        return x, y
    more = [max(0, len(output.shape) - 2) for output in outputs]  # axes: a loss has one less than its output
    weights = [tf.reshape(values["w"], [-1] + [1] * count) for count in more] or [values["w"]]
    same = len({len(one.shape) for one in weights}) == 1
    return x, y, weights[0] if same else _packed(structure, weights)


def _output_structure(network: Any, spec: TrainSpec) -> Any:
    """The outputs as symbolic tensors; the first call for a network of the user's own class must not be in a step."""
    return output_structure(network, [column.dtype for column in spec.inputs]) if spec.labels else None


def _packed(structure: Any, values: list[Any]) -> Any:
    """One value per output in the structure of the outputs; a single value as it is."""
    if len(values) == 1 and not isinstance(structure, (dict, list, tuple)):
        return values[0]
    return keras.tree.pack_sequence_as(structure, values) if keras.tree.is_nested(structure) else values
