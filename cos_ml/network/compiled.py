"""How a model was compiled, as plain data with what Keras leaves out of it, and back (every side)."""

from __future__ import annotations

import copy
from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import excluded_from_decay, loss_arguments

__all__ = ["compile_arguments", "optimizer_from", "with_exclusions", "with_loss_arguments"]

EXCLUDED = "exclude_from_weight_decay"  # beside an optimizer's class_name and config


def compile_arguments(model: Any, variables: list[Any]) -> dict[str, Any] | None:
    """The arguments that a model was compiled with, in Keras's serialized form; None if it was not compiled.

    Args:
        model: the model.
        variables: its variables, in the order of the network that is made of its archive.
    """
    if not getattr(model, "compiled", False):
        return None
    arguments: dict[str, Any] = model.get_compile_config()
    if not isinstance(arguments, dict):
        return arguments
    optimizer = getattr(model, "optimizer", None)
    if isinstance(arguments.get("optimizer"), dict) and optimizer is not None:
        arguments["optimizer"] = with_exclusions(arguments["optimizer"], optimizer, variables)
    if "loss" in arguments:
        arguments["loss"] = with_loss_arguments(arguments["loss"], getattr(model, "loss", None))
    return arguments


def with_loss_arguments(plain: Any, loss: Any) -> Any:
    """Serialized losses with the arguments that Keras 3.15 leaves out of some, as Huber's delta."""
    if isinstance(plain, list) and isinstance(loss, (list, tuple)):
        return [with_loss_arguments(*pair) for pair in zip(plain, loss, strict=True)]
    if isinstance(plain, dict) and isinstance(loss, dict):
        return {name: with_loss_arguments(one, loss.get(name)) for name, one in plain.items()}
    if isinstance(plain, dict) and isinstance(plain.get("config"), dict):
        return plain | {"config": loss_arguments(loss) | plain["config"]}
    return plain


def with_exclusions(plain: dict[str, Any], optimizer: Any, variables: list[Any] | None = None) -> dict[str, Any]:
    """A serialized optimizer with what ``exclude_from_weight_decay`` has set, which its configuration leaves out.

    Args:
        plain: the serialized optimizer.
        optimizer: the optimizer.
        variables: the variables of the network that it trains, if that is known.

    Raises:
        InvalidInputError: it excludes variables that are none of these.
    """
    names, found, unknown = excluded_from_decay(optimizer, variables or [])
    if unknown:
        raise InvalidInputError(
            f"Param optimizer: exclude_from_weight_decay(var_list=...) has {unknown} variables that are unknown here. "
            "Compile the model with this optimizer before it is passed as Param model, or use var_names=[...]."
        )
    return plain | {EXCLUDED: {"names": names, "variables": found}} if names or found else plain


def optimizer_from(plain: Any, network: Any) -> Any:
    """The optimizer of an identifier, or of what ``with_exclusions`` returned, for ``network``."""
    keras = import_keras()
    # Its own getter knows the classes of a list, in which Keras 3.15 has forgotten one, Lamb.
    is_plain = isinstance(plain, dict)
    # Of a copy, for Keras puts the schedule of a learning rate into what it is given.
    made = keras.saving.deserialize_keras_object if is_plain else keras.optimizers.get
    optimizer = made(copy.deepcopy(plain))
    if is_plain and plain.get(EXCLUDED):
        variables = network.variables
        excluded = [variables[index] for index in plain[EXCLUDED]["variables"]]
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner.exclude_from_weight_decay(var_list=excluded, var_names=plain[EXCLUDED]["names"])
    return optimizer
