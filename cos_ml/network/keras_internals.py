"""Every use of Keras that is not its public API (every side).

Each function says what happens where Keras no longer has what it uses; ``docs/architecture.md`` lists them. All were
seen with Keras 3.15; setup.cfg bounds the versions that are accepted.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

__all__ = [
    "all_layers",
    "excluded_from_decay",
    "inputs_of_calls",
    "loss_arguments",
    "loss_module",
    "mask_of",
    "producer",
    "scale_decay",
    "take_module",
    "uncompiled",
    "update_rows_alone",
    "with_mask",
]


def producer(tensor: Any) -> Any:
    """The layer that computes a symbolic tensor. Unknown: None."""
    return getattr(getattr(tensor, "_keras_history", None), "operation", None)


def inputs_of_calls(layer: Any) -> list[list[Any]]:
    """The symbolic tensors of each call of a layer. Unknown: none."""
    nodes = getattr(layer, "_inbound_nodes", ())
    return [list(getattr(getattr(node, "arguments", None), "keras_tensors", ())) for node in nodes]


def mask_of(tensor: Any) -> Any:
    """The mask that a tensor carries. Unknown, or no mask: None."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(values: Any, mask: Any) -> Any:
    """Values of a loss, of which those count that the mask marks. Without this attribute all of them would count."""
    values._keras_mask = mask
    return values


def all_layers(model: Any) -> Sequence[Any]:
    """All layers of a model, including cells and wrapped layers. Unknown: those that ``layers`` lists, at any depth."""
    flatten = getattr(model, "_flatten_layers", None)
    if flatten:
        return list(flatten())
    return [model, *(inner for layer in getattr(model, "layers", ()) for inner in all_layers(layer))]


def loss_arguments(loss: Any) -> dict[str, Any]:
    """The arguments of a loss object that Keras 3.15 leaves out of its configuration (Huber's delta). Unknown: none.

    Its dtype is one, too, where it is not that of every loss; a loss of the user's own need not take it.
    """
    builtin, dtype = type(loss).__module__.startswith("keras."), getattr(loss, "dtype", "float32")
    return dict(getattr(loss, "_fn_kwargs", {})) | ({"dtype": dtype} if builtin and dtype != "float32" else {})


def excluded_from_decay(optimizer: Any, variables: Sequence[Any]) -> tuple[list[str], list[int], int]:
    """What ``exclude_from_weight_decay`` has set. Unknown: nothing, so all weights decay.

    Returns:
        tuple: patterns of names, numbers of the variables that are excluded by themselves, and how many more are.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    pattern = getattr(getattr(inner, "_exclude_from_weight_decay_pattern", None), "pattern", "")
    # Keras joins the names in the order of a set, which differs from process to process.
    names = sorted(pattern.split("|")) if re.fullmatch(r"[\w|/.-]+", pattern) else [pattern] if pattern else []
    keys, key_of = getattr(inner, "_exclude_from_weight_decay", ()), getattr(inner, "_var_key", id)
    found = [index for index, variable in enumerate(variables) if key_of(variable) in keys]
    return names, found, len(keys) - len(found)


def scale_decay(optimizer: Any, factors: Mapping[int, float], keys: Callable[[Any], Sequence[int]]) -> None:
    """Let an optimizer shrink each weight, by its decoupled ``weight_decay``, with a factor of its own.

    Args:
        optimizer: the optimizer.
        factors: the factor of a weight by each of its keys; others have the factor 1.
        keys: a weight's keys.

    Raises:
        RuntimeError: Keras no longer has ``_apply_weight_decay``, so the decay could not be scaled.
    """
    decay = getattr(optimizer, "_apply_weight_decay", None)
    if decay is None:
        if getattr(optimizer, "weight_decay", None) or getattr(optimizer, "adam_weight_decay", None):
            raise RuntimeError("This release of Keras applies weight_decay in another way than Keras 3.15. Unset it.")
        return

    def scaled(variables: Sequence[Any]) -> None:
        found = [(one, next((factors[key] for key in keys(one) if key in factors), 1.0)) for one in variables]
        before = [(one, factor, one + 0.0) for one, factor in found if factor != 1]
        decay(variables)
        for one, factor, value in before:
            one.assign(value + (one - value) * factor)

    optimizer._apply_weight_decay = scaled


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Within the block Keras saves ``model`` without its optimizer. Unknown: with it, which is correct but larger."""
    compiled, optimizer = getattr(model, "compiled", False), getattr(model, "optimizer", None)
    model.get_compile_config = dict  # Keras asks models that are not compiled too, whose own method may not expect it
    if compiled:
        with suppress(AttributeError):  # of attributes that have become read-only
            model.compiled, model.optimizer = False, None
    try:
        yield
    finally:
        del model.get_compile_config
        if compiled:
            with suppress(AttributeError):
                model.compiled, model.optimizer = True, optimizer


def loss_module() -> Any:
    """The module whose ``reduce_weighted_values`` reduces the values of every loss to a number.

    Raises:
        RuntimeError: Keras no longer has it, or it has other arguments, so the loss of a step could not be exact.
    """
    import keras
    from keras.src.losses import loss

    found = inspect.signature(getattr(loss, "reduce_weighted_values", lambda: None))
    if list(found.parameters) != ["values", "sample_weight", "mask", "reduction", "dtype"]:
        raise RuntimeError(
            f"Keras {keras.version()} reduces losses in another way than Keras 3.15, which cos_ml supports. Install it."
        )
    return loss


def update_rows_alone(optimizer: Any) -> None:
    """Let Keras's Adagrad read only the rows of a table that have a gradient: the same but for rounding.

    Unknown: it takes the root of every row in each step.
    """
    import keras
    import tensorflow as tf

    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if type(optimizer) is not keras.optimizers.Adagrad:
        return
    update_step = optimizer.update_step

    def updated(gradient: Any, variable: Any, learning_rate: Any) -> None:
        known = all(hasattr(optimizer, name) for name in ("_accumulators", "_get_variable_index"))  # once it is built
        if not known or not isinstance(gradient, tf.IndexedSlices):
            return update_step(gradient, variable, learning_rate)
        values, rate = (tf.cast(one, variable.dtype) for one in (gradient.values, learning_rate))
        history = optimizer._accumulators[optimizer._get_variable_index(variable)].value
        history.scatter_add(tf.IndexedSlices(tf.square(values), gradient.indices))
        roots = tf.sqrt(tf.gather(history, gradient.indices) + optimizer.epsilon)
        variable.scatter_sub(tf.IndexedSlices(rate * values / roots, gradient.indices))

    optimizer.update_step = updated


def take_module() -> Any:
    """The module with ``take``, by which layers look up rows of a table. Unknown: None, so a step reads all of it."""
    from keras.src import backend

    module = getattr(backend, "numpy", None)
    take = getattr(module, "take", None)
    return module if take and list(inspect.signature(take).parameters) == ["x", "indices", "axis"] else None
