"""Keras callbacks as plain data, which ships to the ranks and is saved with an estimator (driver side; ``make``: rank).

A callback object can't be taken apart again, so it is given as its class and its arguments.
"""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras

__all__ = ["callback", "make", "plain_callback"]

WRITERS = ("CSVLogger", "ModelCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard")


def callback(kind: Any, /, *, ranks: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A Keras callback for the Param ``callbacks``.

    Each rank makes its own, ``kind(**arguments)``, before it trains. After an epoch all ranks have the same logs: the
    loss and the metrics over all rows. When a callback on any rank sets ``model.stop_training``, all stop when the
    epoch ends.

    Args:
        kind: a class of ``keras.callbacks``, its name there, or a ``keras.callbacks.Callback`` class in a module that
            the executors can import ("module:Class" names it, too).
        ranks: "all" or "first". Unset: "first" for those of Keras's that write or send something (TensorBoard,
            CSVLogger, ModelCheckpoint and so on), "all" for any other. What changes the training has to run on all
            ranks.
        **arguments: of the class: numbers, strings, booleans, None, lists and dicts of these, or Keras objects that
            serialise.

    Returns:
        dict[str, Any]: plain data: "class", "ranks", "arguments".

    Raises:
        InvalidInputError: there is no such class, it does not take these arguments, or they are no plain data; or it
            is BackupAndRestore.

    Examples:
        >>> callback("ReduceLROnPlateau", monitor="loss", factor=0.5)["ranks"]
        'all'
    """
    found = _class(kind)
    name = f"{found.__module__}:{found.__qualname__}"
    if "<" in name or found.__module__ == "__main__":
        raise InvalidInputError(
            f"Param callbacks: {found.__qualname__} is defined in the program or notebook itself, or in a function, "
            "and the executors can't import it from there. Move it to a module that is installed on them, or that "
            "spark.sparkContext.addPyFile ships."
        )
    builtin = getattr(import_keras().callbacks, found.__name__, None) is found
    if builtin and found.__name__ == "BackupAndRestore":
        raise InvalidInputError(
            "Param callbacks: BackupAndRestore begins at the epoch that it finds in a file, which ranks on other hosts "
            "do not have: they would no longer take the same steps. Save the weights with ModelCheckpoint instead."
        )
    ranks = ranks or ("first" if builtin and found.__name__ in WRITERS else "all")
    if ranks not in ("all", "first"):
        raise InvalidInputError(f"Param callbacks: ranks is 'all' or 'first', received {ranks!r}.")
    plain = {
        "class": f"keras.callbacks:{found.__name__}" if builtin else name,
        "ranks": ranks,
        "arguments": import_keras().saving.serialize_keras_object(arguments),
    }
    try:
        inspect.signature(found).bind(**arguments)
        json.dumps(plain)
    except TypeError as error:
        raise InvalidInputError(f"Param callbacks: {found.__name__} with {arguments!r}: {error}.") from error
    return plain


def plain_callback(value: Any) -> dict[str, Any]:
    """What ``callback`` returned, checked again; or a callback class, or its name, that needs no arguments.

    Raises:
        InvalidInputError: it is something else; a callback object, for one.
    """
    if isinstance(value, dict) and set(value) == {"class", "ranks", "arguments"}:
        # Read back from a file: its module may be missing here, and is imported by the ranks.
        if value["ranks"] in ("all", "first") and isinstance(value["arguments"], dict):
            return dict(value)
    elif isinstance(value, (str, type)):
        return callback(value)
    name = type(value).__name__
    raise InvalidInputError(
        f"Param callbacks: expected what cos_ml.callback(...) returns, received {value!r}. A callback object can't be "
        f"sent to the ranks: write cos_ml.callback({name!r}, ...) with its arguments."
    )


def make(plain: dict[str, Any]) -> Any:
    """The callback that plain data describes, a class of Keras's callbacks and nothing else (rank side)."""
    return _class(plain["class"])(**import_keras().saving.deserialize_keras_object(plain["arguments"]))


def _class(kind: Any) -> type:
    keras = import_keras()
    found = kind
    if isinstance(kind, str):
        module, colon, name = kind.partition(":")
        try:
            found = getattr(importlib.import_module(module), name) if colon else getattr(keras.callbacks, kind)
        except (AttributeError, ImportError) as error:
            raise InvalidInputError(f"Param callbacks: there is no {kind!r}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, keras.callbacks.Callback)):
        raise InvalidInputError(f"Param callbacks: expected a class of keras.callbacks, received {kind!r}.")
    return found
