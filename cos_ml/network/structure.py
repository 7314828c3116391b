"""The inputs and outputs of a network: how they are nested, their shapes and types (every side).

Functional and Sequential models know them. A class of the user's own with a ``call`` says only which shapes it was
built with, which Keras saves; its outputs are found by a symbolic call. It may have attributes named ``inputs`` or
``outputs`` that are something else.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from typing import Any

from cos_ml.network.keras_import import import_keras, import_tensorflow
from cos_ml.network.keras_internals import inputs_of_calls, mask_of

__all__ = [
    "embedded_below",
    "fixed_batch_size",
    "has_call",
    "input_structure",
    "input_tensors",
    "integer_inputs",
    "is_functional",
    "is_masked",
    "output_structure",
    "output_tensors",
    "paired_inputs",
    "required_arguments",
]

# Outputs by network, so that a symbolic call is made once, and not within a step.
_outputs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def is_functional(model: Any) -> bool:
    """Whether Keras knows the graph of a model."""
    found = getattr(model, "inputs", None)
    return isinstance(found, list) and all(isinstance(one, import_keras().KerasTensor) for one in found)


def has_call(model: Any) -> bool:
    """Whether a model computes outputs: a GAN of Keras's guides has only a ``train_step``."""
    return type(model).call is not import_keras().Model.call


def required_arguments(model: Any) -> list[str]:
    """The arguments that ``call`` of a model needs; Keras's ``fit`` gives one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inspect.signature(model.call).parameters.values()
    found = [one.name for one in given if one.kind in kinds and one.default is one.empty]
    return [name for index, name in enumerate(found) if not index or name not in ("training", "mask")]


def fixed_batch_size(model: Any) -> int | None:
    """The number of rows that each batch must have; None for any."""
    tensors = input_tensors(model) if is_functional(model) else []
    return next((tensor.shape[0] for tensor in tensors if tensor.shape[0] is not None), None)


def input_structure(model: Any, dtypes: Sequence[str] = ()) -> Any:
    """The inputs as symbolic tensors, nested as the network takes them; None if it was never built.

    Args:
        model: the network.
        dtypes: the types of the inputs, where only the caller knows them.
    """
    if is_functional(model):
        # A Sequential model that was not called yet has no input.
        return getattr(model, "input", None) if hasattr(model, "input") else model.inputs[0]
    keras = import_keras()
    called = _called_on(model)
    shapes = (model.get_build_config() or {}).get("input_shape")
    if called is None and shapes is None:
        return None
    # Floats: Keras's layers that need integers convert them. Only float64 would lose digits.
    dtype = "float64" if model.variable_dtype == "float64" else "float32"
    found = (
        keras.tree.map_shape_structure(lambda shape: keras.KerasTensor((None, *shape[1:]), dtype), shapes)
        if called is None
        else called
    )
    known, flat = iter(dtypes), []
    for path, one in keras.tree.flatten_with_path(found):
        by_key = called is None or (path and not str(path[0]).isdigit())
        name = _name(path, "input") if by_key else one.name
        flat.append(keras.KerasTensor((None, *one.shape[1:]), next(known, one.dtype), name=name))
    return keras.tree.pack_sequence_as(found, flat)


def _called_on(model: Any) -> Any:
    """The symbolic tensors on which a class of the user's own was called: the only ones that have types; or None."""
    keras = import_keras()
    try:
        found = model.input
    except (AttributeError, ValueError):  # it was called on none, or on several
        return None
    flat = keras.tree.flatten(found)
    return found if flat and all(isinstance(one, keras.KerasTensor) for one in flat) else None


def _name(path: Sequence[Any], default: str) -> str:
    """The name of a tensor at a place of a structure: its key, or a number."""
    words = [str(one) for one in path]
    return "_".join(words if words and not words[0].isdigit() else [default, *words])


def input_tensors(model: Any) -> list[Any]:
    """The inputs as symbolic tensors, in order; none if the network was never built."""
    structure = None if is_functional(model) else input_structure(model)
    if is_functional(model):
        return list(model.inputs)
    return [] if structure is None else list(import_keras().tree.flatten(structure))


def output_structure(model: Any, dtypes: Sequence[str] = ()) -> Any:
    """The outputs as symbolic tensors, nested as the network returns them; None if it computes none.

    Args:
        model: the network.
        dtypes: the types of its inputs, where only the caller knows them.
    """
    if is_functional(model):
        # As above; its layers are called one after the other, so it has one output.
        return getattr(model, "output", None) if hasattr(model, "output") else model.outputs[0]
    if not has_call(model):
        return None
    if model not in _outputs:
        keras = import_keras()
        try:
            found = model.compute_output_spec(input_structure(model, dtypes))
        except NotImplementedError:  # of a call that only says so
            return None
        flat = [
            keras.KerasTensor(one.shape, one.dtype, name=_name(path, "output"))
            for path, one in keras.tree.flatten_with_path(found)
        ]
        _outputs[model] = keras.tree.pack_sequence_as(found, flat)
    return _outputs[model]


def output_tensors(model: Any) -> list[Any]:
    """The outputs as symbolic tensors, in order; none if the network computes none."""
    if is_functional(model):
        return list(model.outputs)
    found = output_structure(model)
    return [] if found is None else list(import_keras().tree.flatten(found))


def embedded_below(model: Any) -> list[tuple[int | None, bool]]:
    """Which inputs of a functional model are indices of an Embedding.

    Returns:
        list[tuple[int | None, bool]]: for each input the rows of the smallest Embedding that takes it, None where there
        is none; and whether all of them skip negative indices, as an EmbeddingBag does.
    """
    from cos_ml.layers import EmbeddingBag

    keras = import_keras()
    lookups = (keras.layers.Embedding.call, EmbeddingBag.call)  # others may do anything with the indices
    found: dict[int, tuple[int, bool]] = {}
    for layer in model.layers:
        limits: list[tuple[int | None, bool]] = []
        if isinstance(layer, keras.Model) and is_functional(layer):
            limits = embedded_below(layer)
        elif isinstance(layer, keras.layers.Embedding) and type(layer).call in lookups:
            limits = [(layer.input_dim, isinstance(layer, EmbeddingBag))]
        for tensors in inputs_of_calls(layer):
            for tensor, (limit, skips) in zip(tensors, limits, strict=False):
                if limit is not None:
                    below, all_skip = found.get(id(tensor), (limit, skips))
                    found[id(tensor)] = min(limit, below), skips and all_skip
    return [found.get(id(tensor), (None, False)) for tensor in model.inputs]


def paired_inputs(model: Any) -> dict[int, int]:
    """The places of the inputs of a functional model that an EmbeddingBag takes as indices: those of their values."""
    from cos_ml.layers import EmbeddingBag

    places = {id(tensor): place for place, tensor in enumerate(model.inputs)}
    found: dict[int, int] = {}
    for layer in model.layers:
        inner = {0: 1} if type(layer).call is EmbeddingBag.call else {}  # others may do anything with two inputs
        if is_functional(layer):
            inner = paired_inputs(layer)
        for tensors in inputs_of_calls(layer):
            given = [places.get(id(tensor)) for tensor in tensors]
            for indices, values in inner.items():
                one, other = (given[place] if place < len(given) else None for place in (indices, values))
                if one is not None and other is not None:
                    found[one] = other
    return found


def integer_inputs(model: Any, tensors: Sequence[Any]) -> list[str | None]:
    """For each input of a class of the user's own the integer type to which all that uses it converts it, or None.

    Floats hold ids only up to 2**24, and those of 16 bits only up to 2048.

    Args:
        model: the network, to which the trace may leave losses of its own.
        tensors: its inputs.
    """
    tf, keras = import_tensorflow(), import_keras()
    specs = [tf.TensorSpec(one.shape, one.dtype) for one in tensors]
    packed = keras.tree.pack_sequence_as(input_structure(model), specs)
    try:
        graph = tf.function(model.call, autograph=False).get_concrete_function(packed)
    except Exception:  # of a call that only runs eagerly
        return [None] * len(tensors)
    found: list[str | None] = []
    for tensor in graph.inputs[: len(tensors)]:
        used = [operation.outputs[0].dtype for operation in tensor.consumers() if operation.type == "Cast"]
        whole = used and len(used) == len(tensor.consumers()) and all(one.is_integer for one in used)
        found.append(max(used, key=lambda one: one.size).name if whole else None)
    return found


def is_masked(model: Any) -> bool:
    """Whether an output of a network carries a mask."""
    if is_functional(model):
        return any(mask_of(tensor) is not None for tensor in model.outputs)
    if not has_call(model):
        return False
    keras = import_keras()
    try:
        rows = [keras.ops.zeros([2, *(side or 1 for side in one.shape[1:])], one.dtype) for one in input_tensors(model)]
        outputs = model(keras.tree.pack_sequence_as(input_structure(model), rows), training=False)
    except Exception:  # of layers that do not work on rows of zeros
        return False
    return any(mask_of(one) is not None for one in keras.tree.flatten(outputs))
