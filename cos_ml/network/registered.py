"""The modules that define what a serialized Keras object names: classes and functions of a user's own (every side)."""

from __future__ import annotations

from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from cos_ml.network.untrusted import serialized_objects

__all__ = ["custom_modules"]

REMEDY = (
    "Define it at the top level of a module that is installed on the executors, or that spark.sparkContext.addPyFile "
    "ships, and register it with @keras.saving.register_keras_serializable()."
)


def custom_modules(config: Any, param: str = "") -> tuple[str, ...]:
    """The modules that define the registered classes and functions in a serialized Keras object, wherever they stand.

    Args:
        config: the serialized object, or dicts and lists of such.
        param: the Param that an error names.

    Raises:
        InvalidInputError: no other process can find one of them: it is a lambda, or a function that is not registered,
            or it is defined in the program itself or within a function.
    """
    found = set()
    for one in serialized_objects(config):
        if isinstance(one["class_name"], str):
            module, problem = _module_of(one)
            if problem:
                raise InvalidInputError(f"{f'Param {param}: ' if param else ''}{problem}")
            found.add(module)
    return tuple(sorted(found - {""}))


def _module_of(one: dict[str, Any]) -> tuple[str, str]:
    """The module of a serialized object, "" for one that needs no import, and why no other process finds it, if so."""
    kind, module = one["class_name"], one.get("module")
    name = str(one.get("config") if kind == "function" else one.get("registered_name"))
    shown = name.rpartition(">")[2] if kind == "function" else kind
    own = f"{shown} is defined in the program or notebook itself, so the executors can't import it. {REMEDY}"
    if kind == "__lambda__":
        return "", f"a lambda is Python code that the executors can't import. {REMEDY}"
    if ">" not in name:
        if kind == "function" and not _is_kerass(one):
            return "", f"the function {shown} is not registered, so the executors can't find it. {REMEDY}"
        # Keras writes None for the program itself.
        return "", own if "module" in one and module in (None, "__main__") and not kind.startswith("__") else ""
    registered = import_keras().saving.get_registered_object(name)
    module = getattr(registered, "__module__", module)
    if module in (None, "__main__"):
        return "", own
    if "<locals>" in getattr(registered, "__qualname__", ""):
        return "", f"{shown} is defined within a function, so the executors can't import it. {REMEDY}"
    if module == "builtins":
        return "", f"the function {name} is not registered in this program: import the module that registers it."
    return str(module), ""


def _is_kerass(function: dict[str, Any]) -> bool:
    """Whether a serialized function that is not registered is one of Keras's own, which Keras finds by its name."""
    keras = import_keras()
    try:
        return str(keras.saving.deserialize_keras_object(function).__module__).startswith("keras.")
    except (AttributeError, ImportError, TypeError, ValueError):
        return False
