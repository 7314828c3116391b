"""The attributes of callbacks as plain data, for checkpoints (rank side).

Every type that Python and NumPy count as data comes back as it was: JSON, with tags for what JSON lacks, beside arrays.
Nothing is pickled: reading a checkpoint calls nothing but constructors of the types listed here.
"""

from __future__ import annotations

import datetime
import enum
import functools
import inspect
import io
import logging
import random
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import PosixPath, PurePosixPath, WindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import keras
import numpy as np
import tensorflow as tf

__all__ = ["check_state", "get_state", "set_state"]

DEPTH = 50  # of containers within containers; one that contains itself has no end
PLAIN = (type(None), bool, int, float, str)
SEQUENCES: dict[str, type] = {kind.__name__: kind for kind in (tuple, set, frozenset)}
MAPPINGS: dict[str, type] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}
DATES: dict[str, Any] = {kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time)}
TEXTS: dict[str, Any] = {
    kind.__name__: kind for kind in (complex, Decimal, Fraction, UUID, PosixPath, PurePosixPath, WindowsPath, ZoneInfo)
}
# Not data: code, and what a training makes anew.
MADE_ANEW = (
    type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial,
    np.ufunc, io.IOBase, logging.Logger, keras.Model, keras.layers.Layer, keras.optimizers.Optimizer, keras.losses.Loss,
)  # fmt: skip
VARIABLES = (keras.Variable, tf.Variable)
ARRAYS = (np.ndarray, np.generic, tf.Tensor, *VARIABLES)
EDGES = ("start", "stop", "step")  # of a range or a slice
Arrays = dict[str, np.ndarray]


def get_state(holder: Any) -> tuple[dict[str, Any], Arrays, list[str]]:
    """What an object remembers, as plain data.

    Returns:
        tuple: its attributes, the arrays that they refer to by number, and the names of the attributes that a
        checkpoint can't contain and that nothing makes anew.
    """
    kind = type(holder)
    keras_kinds = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "keras"]
    # Keras changes the sign of its callbacks' min_delta at first use, so their arguments are not to be set again.
    skipped = {"params", *(name for base in keras_kinds for name in inspect.signature(base).parameters)}
    silent = vars(holder) if kind in keras_kinds else inspect.signature(kind).parameters
    plain, arrays, lost = {}, Arrays(), []
    for name, value in vars(holder).items():
        if name in skipped:
            continue
        found = dict(arrays)
        try:
            plain[name] = _encode(value, found)
            arrays = found
        except (AttributeError, TypeError, ValueError):
            if name not in silent and not isinstance(value, MADE_ANEW):
                lost.append(name)
    return plain, arrays, lost


def set_state(holder: Any, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Set the attributes that ``get_state`` returned."""
    for name, value in plain.items():
        before = vars(holder).get(name, holder)  # what it cannot be
        found = _decode(value, arrays, before)
        if found is not before:
            setattr(holder, name, found)


def check_state(plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for what ``set_state`` could not set."""
    try:
        for value in plain.values():
            _decode(value, arrays)
    except Exception as error:  # the constructors of many types
        raise ValueError(f"what it says of callbacks: {type(error).__name__}: {error}") from error


def _encode(value: Any, arrays: Arrays, depth: int = 0) -> Any:
    """A value as plain data; its arrays are added to ``arrays``. Raises TypeError for what is no data."""
    if depth > DEPTH:
        raise TypeError("it contains itself")
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in (list, deque, *SEQUENCES.values()):
        items = [_encode(one, arrays, depth + 1) for one in value]
        extra = {"maxlen": value.maxlen} if kind is deque else {}
        return items if kind is list else {"type": kind.__name__, "items": items, **extra}
    if kind in (defaultdict, *MAPPINGS.values()):
        pairs = [[_encode(one, arrays, depth + 1) for one in pair] for pair in value.items()]
        if kind is not defaultdict:
            return {"type": kind.__name__, "items": pairs}
        factory = None if value.default_factory is None else value.default_factory.__name__
        if factory is not None and FACTORIES.get(factory) is not value.default_factory:
            raise TypeError("the factory of its defaults is code")
        return {"type": "defaultdict", "items": pairs, "factory": factory}
    if isinstance(value, ARRAYS) and not (depth and isinstance(value, VARIABLES)):
        return _encode_array(value, arrays)
    return _encode_single(value, arrays, depth)


def _encode_array(value: Any, arrays: Arrays) -> dict[str, Any]:
    if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
        raise TypeError(f"a {type(value).__name__} is more than an array")
    names = {np.ndarray: "array", np.generic: "number", tf.Tensor: "tensor"}
    kind = next((name for one, name in names.items() if isinstance(value, one)), "variable")
    array = np.asarray(value.numpy() if kind in ("tensor", "variable") else value)
    if array.dtype.hasobject or array.dtype.names:
        raise TypeError(f"an array of {array.dtype}")
    arrays[str(len(arrays))] = array.copy()  # a callback may change it while the checkpoint is written
    return {"type": kind, "index": len(arrays) - 1}


def _encode_single(value: Any, arrays: Arrays, depth: int) -> dict[str, Any]:
    kind = type(value)
    if kind in (bytes, bytearray):
        return {"type": kind.__name__, "value": value.hex()}
    if kind in (range, slice):
        return {"type": kind.__name__, "value": [_encode(getattr(value, name), arrays) for name in EDGES]}
    if kind is datetime.timedelta:
        return {"type": "timedelta", "value": [value.days, value.seconds, value.microseconds]}
    if kind is datetime.timezone:
        return {"type": "timezone", "value": _encode(value.utcoffset(None), arrays)}
    if kind in DATES.values():
        zone = getattr(value, "tzinfo", None)
        local = value if zone is None else value.replace(tzinfo=None)
        zone = zone if zone is None else _encode(zone, arrays)
        return {"type": kind.__name__, "value": local.isoformat(), "zone": zone, "fold": getattr(value, "fold", 0)}
    if kind in TEXTS.values() and str(value):
        return {"type": kind.__name__, "value": str(value)}
    if (
        isinstance(value, enum.Enum)
        and _enum(kind.__module__, kind.__qualname__) is kind
        and value.name in kind.__members__
    ):
        return {"type": "enum", "module": kind.__module__, "class": kind.__qualname__, "name": value.name}
    if kind is np.random.Generator and not depth:
        return {"type": "generator", "value": _encode(value.bit_generator.state, arrays)}
    if kind is random.Random and not depth:
        return {"type": "random", "value": _encode(value.getstate(), arrays)}
    raise TypeError(f"a {kind.__name__} is no data")


def _enum(module: str, path: str) -> Any:
    """The class of that name, of a module that is imported already: a file must not cause imports."""
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found if isinstance(found, enum.EnumMeta) else None


def _decode(value: Any, arrays: Mapping[str, np.ndarray], before: Any = None) -> Any:
    """The value that ``_encode`` was given; variables and generators are ``before``, set to the state they had."""
    if isinstance(value, list):
        return [_decode(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value["type"]
    if kind in SEQUENCES:
        return SEQUENCES[kind](_decode(value["items"], arrays))
    if kind == "deque":
        return deque(_decode(value["items"], arrays), value["maxlen"])
    if kind in MAPPINGS:
        return MAPPINGS[kind](_pairs(value, arrays))
    if kind == "defaultdict":
        return defaultdict(FACTORIES.get(value["factory"]), _pairs(value, arrays))
    if "index" in value:
        return _decode_array(kind, arrays[str(value["index"])], before)
    return _decode_single(kind, value, arrays, before)


def _pairs(value: Any, arrays: Mapping[str, np.ndarray]) -> dict[Any, Any]:
    return {_decode(key, arrays): _decode(item, arrays) for key, item in value["items"]}


def _decode_array(kind: str, array: np.ndarray, before: Any) -> Any:
    array = array.copy()  # that of a checkpoint is read-only
    if kind == "variable":
        if isinstance(before, VARIABLES):
            before.assign(array)
        return before
    return {"array": array, "number": array[()], "tensor": tf.constant(array) if kind == "tensor" else None}[kind]


def _decode_single(kind: str, value: Any, arrays: Mapping[str, np.ndarray], before: Any) -> Any:
    if kind == "enum":  # of a module that the callback has imported, and nothing else
        members = functools.reduce(
            lambda one, name: getattr(one, name, None), value["class"].split("."), sys.modules.get(value["module"])
        )
        return members[value["name"]] if isinstance(members, enum.EnumMeta) else before
    content = _decode(value["value"], arrays)
    if kind in ("generator", "random"):
        if kind == "generator" and isinstance(before, np.random.Generator):
            before.bit_generator.state = content
        elif kind == "random" and isinstance(before, random.Random):
            before.setstate(content)
        return before
    if kind in DATES:
        found = DATES[kind].fromisoformat(content)
        zone = _decode(value["zone"], arrays)
        return found if zone is None and not value["fold"] else found.replace(tzinfo=zone, fold=value["fold"])
    if kind in TEXTS:
        return TEXTS[kind](content)
    others: dict[str, Any] = {
        "bytes": bytes.fromhex, "bytearray": bytearray.fromhex, "timezone": datetime.timezone,
        "timedelta": lambda parts: datetime.timedelta(*parts), "range": lambda edges: range(*edges),
        "slice": lambda edges: slice(*edges),
    }  # fmt: skip
    return others[kind](content)
