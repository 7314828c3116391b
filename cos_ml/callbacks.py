"""Keras callbacks as plain data, which is sent to the ranks and saved with an estimator (driver side; ``make``: rank).

The arguments of a callback object can't be recovered from it, so a callback is given as its class and arguments.
"""

from __future__ import annotations

import importlib
import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any

from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.network.keras_import import import_keras
from cos_ml.network.registered import custom_modules
from cos_ml.paths import local_path

__all__ = ["PATHS", "callback", "make", "path_of", "plain_callback", "with_qualified_path"]

WRITERS = ("CSVLogger", "ModelCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard")
PATHS = {"CSVLogger": "filename", "ModelCheckpoint": "filepath", "TensorBoard": "log_dir"}  # arguments with a path


def callback(kind: Any, /, *, ranks: str | None = None, **arguments: Any) -> dict[str, Any]:
    """Describe a Keras callback for the Param ``callbacks``.

    Each rank creates its own, ``kind(**arguments)``. At the end of an epoch all ranks have the same logs: the loss and
    the metrics over all rows. If a callback on any rank sets ``model.stop_training``, all stop at the end of the epoch.

    Args:
        kind: a class in ``keras.callbacks``, the name of one, or another ``keras.callbacks.Callback`` class, itself or
            as "module:Class", in a module that the executors can import.
        ranks: the ranks that run it, "all" or "first". If unset, "first" for Keras's callbacks that write or send
            something (TensorBoard, CSVLogger, ModelCheckpoint and so on), and "all" for any other. A callback that
            changes the training must run on all ranks.
        **arguments: arguments of the class: numbers, strings, booleans, None, lists and dicts of these, or serializable
            Keras objects.

    Returns:
        dict[str, Any]: plain data, with the keys "class", "ranks" and "arguments".

    Raises:
        InvalidInputError: the class does not exist or does not take these arguments, an argument is not serializable,
            or the class is BackupAndRestore or one of MLflow's.

    Examples:
        >>> callback("ReduceLROnPlateau", monitor="loss", factor=0.5)["ranks"]
        'all'
    """
    cls = _class(kind)
    _refuse_mlflow(*(f"{base.__module__}:{base.__name__}" for base in cls.__mro__))
    name = f"{cls.__module__}:{cls.__qualname__}"
    if "<" in name or cls.__module__ == "__main__":
        raise InvalidInputError(
            f"Param callbacks: the executors can't import {cls.__qualname__}, because it is defined in the main "
            "program, in a notebook or in a function. Move it to a module that is installed on the executors, or that "
            "spark.sparkContext.addPyFile sends to them."
        )
    builtin = getattr(import_keras().callbacks, cls.__name__, None) is cls
    if builtin and cls.__name__ == "BackupAndRestore":
        raise InvalidInputError(
            "Param callbacks: BackupAndRestore resumes at the epoch in a local file, which ranks on other hosts do not "
            "have, so the ranks would take different steps. Set the Param checkpointDir instead."
        )
    ranks = ranks or ("first" if builtin and cls.__name__ in WRITERS else "all")
    if ranks not in ("all", "first"):
        raise InvalidInputError(f"Param callbacks: expected ranks to be 'all' or 'first', received {ranks!r}.")
    try:
        inspect.signature(cls).bind(**arguments)
        plain = _plain(arguments)
        json.dumps(plain)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidInputError(f"Param callbacks: {cls.__name__} with {arguments!r:.300}: {error}") from error
    custom_modules(plain, f"callbacks: {cls.__name__}")
    return {"class": f"keras.callbacks:{cls.__name__}" if builtin else name, "ranks": ranks, "arguments": plain}


def _refuse_mlflow(*classes: str) -> None:
    """Raises InvalidInputError if one of these classes, as "module:Class", is MLflow's."""
    for name in classes:
        if name.startswith("mlflow."):
            raise InvalidInputError(
                f"Param callbacks: {name.partition(':')[2]} would log from the ranks, which have no run, and may not "
                "reach the tracking server. Call cos_ml.mlflow.autolog() in this program instead: it logs each epoch "
                "while the fit runs, from the driver."
            )


def _plain(value: Any) -> Any:
    """Arguments as plain data; raises TypeError for what would come back as something else."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys of a dict have to be strings, received {list(value)!r:.80}")
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda", category=UserWarning)  # which custom_modules refuses
        return import_keras().saving.serialize_keras_object(value)


def plain_callback(value: Any) -> dict[str, Any]:
    """Validate one value of the Param ``callbacks``: the result of ``callback``, or a class that needs no arguments.

    Raises:
        InvalidInputError: it is anything else, for example a callback object.
    """
    if isinstance(value, dict) and set(value) == {"class", "ranks", "arguments"}:
        # It may come from a saved estimator. The driver may lack the module of its class, which only ranks import.
        if value["ranks"] in ("all", "first") and isinstance(value["arguments"], dict):
            _refuse_mlflow(value["class"])
            return dict(value)
    elif isinstance(value, (str, type)):
        return callback(value)
    _refuse_mlflow(*(f"{base.__module__}:{base.__name__}" for base in type(value).__mro__))
    raise ParamTypeError(
        f"Param callbacks: expected what cos_ml.callback(...) returns, received {value!r}. Callback objects can't be "
        f"sent to the ranks: use cos_ml.callback({type(value).__name__!r}, ...) with the arguments."
    )


def path_of(plain: dict[str, Any]) -> str | None:
    """The path of the files of a callback of Keras's; None if it has none."""
    name = _path_argument(plain)
    path = plain["arguments"].get(name, "logs" if name == "log_dir" else None)  # TensorBoard's own default
    return path if isinstance(path, str) else None


def _path_argument(plain: dict[str, Any]) -> str:
    return PATHS.get(plain["class"].removeprefix("keras.callbacks:"), "")


def with_qualified_path(plain: dict[str, Any], qualify: Callable[[str], str]) -> dict[str, Any]:
    """A callback of Keras's with the URL of its files: what ``qualify`` returns for the path, if that is not local."""
    name, path = _path_argument(plain), path_of(plain)
    if path is None:
        return plain
    url = qualify(path)
    local = local_path(url)
    if local is not None:  # a relative one stays so: it is in the rank's folder
        url = local if path.startswith("file:") else path
    return plain | {"arguments": plain["arguments"] | {name: url}}


def make(plain: dict[str, Any]) -> Any:
    """Create the callback that ``plain`` describes; raises InvalidInputError for any other class (rank side)."""
    return _class(plain["class"])(**import_keras().saving.deserialize_keras_object(plain["arguments"]))


def _class(kind: Any) -> type:
    """The callback class that ``kind`` is or names."""
    callbacks = import_keras().callbacks
    cls = kind
    if isinstance(kind, str):
        module, colon, name = kind.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name) if colon else getattr(callbacks, kind)
        except (AttributeError, ImportError) as error:
            raise InvalidInputError(f"Param callbacks: there is no {kind!r}: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, callbacks.Callback)):
        raise ParamTypeError(f"Param callbacks: expected a class of keras.callbacks, received {kind!r}.")
    return cls
