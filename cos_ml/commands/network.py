"""A network by a reference: a file, a function, a prototxt, or a saved stage (driver side)."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from cos_ml.paths import local_path, qualified_file

__all__ = ["is_prototxt", "load", "load_model"]

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_prototxt(reference: str) -> bool:
    """Whether the reference names a text file of Caffe's."""
    return reference.endswith((".prototxt", ".pbtxt", ".prototxt.txt"))


def load(reference: str, weights: str | None, phase: str, layout: str) -> tuple[Any, dict[str, Any]]:
    """The value of the Param ``model``, and the Param that ``weights`` sets: none, if it is a prototxt's caffemodel.

    ``layout`` is the ``data_format`` of a network of Caffe's, which takes images as they are stored.
    """
    if is_prototxt(reference):
        import_keras()
        from cos_ml import caffe

        is_caffe = weights is not None and weights.endswith(".caffemodel")
        caffemodel = _file(str(weights)) if is_caffe else None
        network = caffe.read(_file(reference), caffemodel, phase, data_format=layout, transform=True)
        return network, {"initialWeights": weights} if weights and not is_caffe else {}
    more = {"initialWeights": weights} if weights else {}
    if FUNCTION.fullmatch(reference) and not os.path.exists(reference):
        return _call(reference), more
    if _is_stage(reference):
        from cos_ml import DeepNetModel

        return DeepNetModel.load(reference), more
    return reference, more


def load_model(reference: str, weights: str | None, params: dict[str, Any], layout: str = "channels_last") -> Any:
    """A DeepNetModel of a network, with these Params; one that was saved keeps its own beside them."""
    from cos_ml import DeepNetModel

    network, more = load(reference, weights, "TEST", layout)
    if more:
        raise InvalidInputError(
            f"--weights {weights}: only a prototxt takes weights here, as a .caffemodel; a .keras file and a saved "
            "model have their own."
        )
    if isinstance(network, DeepNetModel):
        return network.copy()._set(**params)
    return DeepNetModel(model=network, **params)


def _file(path: str) -> str:
    return local_path(path) or path


def _is_stage(reference: str) -> bool:
    """Whether a path is that of a saved stage: a folder, on any file system, not a file with a network."""
    found = local_path(qualified_file(reference))
    if found is None:
        return not reference.endswith((".keras", ".h5", ".hdf5"))
    return (Path(found) / "metadata").is_dir()


def _call(reference: str) -> Any:
    """What the function ``module:name`` returns; modules in the working folder are found, as ``python -m`` does."""
    module, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(f"--network {reference}: {error}.") from error
    if not callable(function):
        raise InvalidInputError(f"--network {reference}: expected a function that returns a keras.Model.")
    made = function()
    if not hasattr(made, "layers"):
        raise InvalidInputError(
            f"--network {reference}: expected a function that returns a keras.Model, received {type(made).__name__}."
        )
    return made
