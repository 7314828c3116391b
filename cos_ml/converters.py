"""Converters of Param values (driver side).

Each takes what a user set and returns it as plain data that JSON can hold, or raises ValueError with what it expected;
the Param adds its own name and the value received. The return annotation is the type that getters show.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from cos_ml.callbacks import plain_callback
from cos_ml.network.compiled import with_exclusions, with_loss_arguments
from cos_ml.network.keras_import import import_keras
from cos_ml.network.registered import custom_modules

__all__ = [
    "boolean",
    "integer",
    "keras_callbacks",
    "keras_objects",
    "names",
    "non_empty_string",
    "one_of",
    "positive_number",
    "string",
]


def boolean(value: Any) -> bool:
    """True or False, and no number."""
    if not isinstance(value, bool):
        raise ValueError("expected True or False")
    return value


def integer(low: int) -> Callable[[Any], int]:
    """A converter to an integer >= ``low``; an integral float, as 2.0, is one."""

    def convert(value: Any) -> int:
        integral = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
        if isinstance(value, bool) or not integral or value < low:
            raise ValueError(f"expected an integer >= {low}")
        return int(value)

    return convert


def positive_number(value: Any) -> float:
    """A finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise ValueError("expected a number > 0")
    return float(value)


def finite_number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise ValueError("expected a finite number")
    return float(value)


def string(value: Any) -> str:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return str(value)


def non_empty_string(value: Any) -> str:
    """A string of at least one character."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected a non-empty string")
    return str(value)


def names(value: Any) -> list[str]:
    """A new list of distinct non-empty strings."""
    items = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [None]
    if not all(isinstance(item, str) and item for item in items) or len(set(items)) < len(items):
        raise ValueError("expected a list of distinct names")
    return [str(item) for item in items]


def one_of(*choices: str) -> Callable[[Any], str]:
    """A converter to one of these strings."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"expected one of {', '.join(map(repr, choices))}")
        return str(value)

    return convert


def keras_callbacks(value: Any) -> list[dict[str, Any]]:
    """Keras callbacks as plain data; raises InvalidInputError for what is not from ``cos_ml.callback``."""
    if not isinstance(value, (list, tuple)):
        raise ValueError("expected a list")
    return [plain_callback(item) for item in value]


def keras_objects(value: Any) -> Any:
    """Keras identifiers as they are and Keras objects in Keras's serialized form, also within lists and dicts."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [keras_objects(item) for item in value]
    if isinstance(value, dict):
        return {key: keras_objects(item) for key, item in value.items()}
    return _serialized(value)


def _serialized(value: Any) -> Any:
    keras = import_keras()
    expected = "expected a Keras identifier or a serializable Keras object"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lambda", category=UserWarning)  # which are refused below
            plain = keras.saving.serialize_keras_object(value)
        if not isinstance(plain, dict) or "class_name" not in plain:
            raise ValueError(expected)
        modules = custom_modules(plain)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{expected} ({error})") from error
    if plain["class_name"] == "function":
        if not modules:  # Keras's own function, which has a short name, too
            return plain["config"]
        plain |= {"registered_name": plain["config"], "module": value.__module__}  # which Keras omits
    if isinstance(value, keras.optimizers.Optimizer):
        return with_exclusions(plain, value)
    return with_loss_arguments(plain, value)
