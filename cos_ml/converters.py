"""Converters of Param values (driver side).

Each takes what a user set and returns it as plain data that JSON can hold, or raises TypeError (the wrong type) or
ValueError (out of range) with what it expected; the Param adds its own name and the value received. The return
annotation is the type that getters show.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from cos_ml.callbacks import plain_callback
from cos_ml.network.compiled import with_exclusions, with_loss_arguments
from cos_ml.network.keras_import import import_keras
from cos_ml.network.registered import custom_modules
from cos_ml.paths import as_string

__all__ = [
    "attribution_baseline",
    "attribution_target",
    "boolean",
    "class_labels",
    "class_thresholds",
    "class_weights",
    "fraction",
    "integer",
    "keras_callbacks",
    "keras_objects",
    "keras_optimizer",
    "layer_rates",
    "loss_weights",
    "names",
    "non_empty_string",
    "one_of",
    "path",
    "positive_number",
    "string",
]

BASELINE = "expected a finite number, a list of them (one row), or a dict of these by name of the input"
EXPECTED = "expected a Keras identifier or a serializable Keras object"


def boolean(value: Any) -> bool:
    """True or False, and no number."""
    if not isinstance(value, bool):
        raise TypeError("expected True or False")
    return value


def integer(low: int) -> Callable[[Any], int]:
    """A converter to an integer >= ``low``; an integral float, as 2.0, is one."""

    def convert(value: Any) -> int:
        expected = f"expected an integer >= {low}"
        integral = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
        if isinstance(value, bool) or not integral:
            raise TypeError(expected)
        if value < low:
            raise ValueError(expected)
        return int(value)

    return convert


def positive_number(value: Any) -> float:
    """A finite number > 0."""
    return _number(value, lambda number: 0 < number < float("inf"), "expected a number > 0")


def fraction(value: Any) -> float:
    """A number between 0 and 1."""
    return _number(value, lambda number: 0 < number < 1, "expected a number > 0 and < 1")


def finite_number(value: Any) -> float:
    """A finite number."""
    return _number(value, math.isfinite, "expected a finite number")


def _number(value: Any, valid: Callable[[float], bool], expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(expected)
    if not valid(float(value)):
        raise ValueError(expected)
    return float(value)


def string(value: Any) -> str:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return str(value)


def non_empty_string(value: Any) -> str:
    """A string of at least one character."""
    if not isinstance(value, str):
        raise TypeError("expected a non-empty string")
    if not value:
        raise ValueError("expected a non-empty string")
    return str(value)


def path(value: Any) -> str:
    """The path or URL of a folder, as a string or a ``pathlib.Path``."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError("expected a path, as a string or a pathlib.Path")
    return non_empty_string(as_string(value))


def names(value: Any) -> list[str]:
    """A new list of distinct non-empty strings."""
    items = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [None]
    if not all(isinstance(item, str) for item in items):
        raise TypeError("expected a list of distinct names")
    if not all(items) or len(set(items)) < len(items):
        raise ValueError("expected a list of distinct names")
    return [str(item) for item in items]


def attribution_baseline(value: Any) -> float | list[float] | dict[str, float | list[float]]:
    """A finite number, a new list of them, or a new dict of these by name."""
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(BASELINE)
        return {str(name): _number_or_row(one) for name, one in value.items()}
    return _number_or_row(value)


def _number_or_row(value: Any) -> float | list[float]:
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [_number(number, math.isfinite, BASELINE) for number in value]
    return _number(value, math.isfinite, BASELINE)


def attribution_target(value: Any) -> int | str:
    """The index of a class or of a number of an output, or the label of a class."""
    if isinstance(value, str):
        return str(value)
    return _index(value, "expected an integer >= 0, or a label")


def class_labels(value: Any) -> list[str]:
    """A new list of distinct strings, one of which may be empty."""
    items = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [None]
    if not all(isinstance(item, str) for item in items):
        raise TypeError("expected a list of strings")
    if len(set(items)) < len(items):
        raise ValueError("expected a list of distinct strings")
    return [str(item) for item in items]


def class_thresholds(value: Any) -> list[float]:
    """A new list of numbers >= 0, at most one of them 0."""
    numbers = list(value) if isinstance(value, (list, tuple, range, np.ndarray)) else [None]
    expected = "expected a list of numbers >= 0, at most one of them 0"
    thresholds = [_number(number, lambda one: one >= 0, expected) for number in numbers]
    if thresholds.count(0.0) > 1:
        raise ValueError(expected)
    return thresholds


def class_weights(value: Any) -> dict[int, float] | str:
    """A new dict of numbers >= 0 by class, or "balanced"."""
    expected = 'expected a dict of finite numbers >= 0 by class (0, 1, ...), or "balanced"'
    if isinstance(value, str) and value == "balanced":
        return str(value)
    if not isinstance(value, dict):
        raise (ValueError if isinstance(value, str) else TypeError)(expected)
    classes = {_index(key, expected): _number(weight, _is_weight, expected) for key, weight in value.items()}
    return dict(sorted(classes.items()))


def _index(value: Any, expected: str) -> int:
    try:
        return integer(0)(int(value) if isinstance(value, str) else value)  # JSON has no keys but strings
    except (TypeError, ValueError) as error:
        raise type(error)(expected) from None


def _is_weight(number: float) -> bool:
    return 0 <= number < float("inf")


def one_of(*choices: str) -> Callable[[Any], str]:
    """A converter to one of these strings."""

    def convert(value: Any) -> str:
        expected = f"expected one of {', '.join(map(repr, choices))}"
        if not isinstance(value, str):
            raise TypeError(expected)
        if value not in choices:
            raise ValueError(expected)
        return str(value)

    return convert


def keras_callbacks(value: Any) -> list[dict[str, Any]]:
    """Keras callbacks as plain data; raises InvalidInputError for what is not from ``cos_ml.callback``."""
    if not isinstance(value, (list, tuple)):
        raise TypeError("expected a list")
    return [plain_callback(item) for item in value]


def keras_optimizer(value: Any) -> Any:
    """The name of an optimizer as it is, and an optimizer in Keras's serialized form."""
    serialized = isinstance(value, dict) and "class_name" in value
    if not (isinstance(value, str) or serialized or isinstance(value, import_keras().optimizers.Optimizer)):
        raise TypeError(EXPECTED)
    return keras_objects(value)


def keras_objects(value: Any) -> Any:
    """Keras identifiers as they are and Keras objects in Keras's serialized form, also within lists and dicts."""
    if isinstance(value, (bool, int, float)):
        raise TypeError(EXPECTED)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return [keras_objects(item) for item in value]
    if isinstance(value, dict):
        return _plain(value) if "class_name" in value else {_key(key): keras_objects(one) for key, one in value.items()}
    return _serialized(value)


def loss_weights(value: Any) -> Any:
    """A finite number for each output, in a list or by name; None within them is Keras's default."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [None if item is None else _weight(item) for item in value]
    if isinstance(value, dict):
        return {_key(key): None if item is None else _weight(item) for key, item in value.items()}
    return _weight(value)


def layer_rates(value: Any) -> dict[str, float]:
    """A new dict of finite numbers >= 0 by non-empty name."""
    expected = "expected a dict from names of layers, or of weights such as 'layer/bias', to finite numbers >= 0"
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise TypeError(expected)
    if not all(value):
        raise ValueError(expected)
    return {str(name): _number(factor, _is_weight, expected) for name, factor in value.items()}


def _weight(value: Any) -> float:
    number = _number(value, math.isfinite, "expected finite numbers, one for each output")
    return int(number) if isinstance(value, Integral) else number


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError("expected names of outputs as keys")
    return key


def _plain(value: Any) -> Any:
    """A serialized object as its own copy, with any Keras object in it serialized as well."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else _serialized(value)


def _serialized(value: Any) -> Any:
    if not (callable(value) or hasattr(value, "get_config")):
        raise TypeError(EXPECTED)
    keras = import_keras()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lambda", category=UserWarning)  # which are refused below
            plain = keras.saving.serialize_keras_object(value)
        if not isinstance(plain, dict) or "class_name" not in plain:
            raise ValueError(EXPECTED)
        modules = custom_modules(plain)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{EXPECTED} ({error})") from error
    if plain["class_name"] == "function":
        if not modules:  # Keras's own function, which has a short name, too
            return plain["config"]
        plain |= {"registered_name": plain["config"], "module": value.__module__}  # which Keras omits
    if isinstance(value, keras.optimizers.Optimizer):
        return with_exclusions(plain, value)
    return with_loss_arguments(plain, value)
