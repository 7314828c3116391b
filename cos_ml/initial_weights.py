"""initialWeights: weights that a network takes from a file or from another network, layer by layer (driver side).

Files of weights alone are kept as the bytes of a network of one layer, so that a stage is saved with them and a grid of
Params too. Weights of Keras are matched in Keras's own files, where every layer has its name.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.model import DeepNetModel
from cos_ml.network import untrusted
from cos_ml.network.archive import Network, dump_model, layers_by_name, load_model, read_file
from cos_ml.network.keras_import import import_keras
from cos_ml.paths import as_string, qualified_file

__all__ = ["digest", "initial_weights", "with_initial_weights"]

keras = import_keras()
logger = logging.getLogger(__name__)

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK"
WEIGHTS = "model.weights.h5"  # in a .keras archive
NO_LAYERS = ("vars", "optimizer", "compile_metrics", "seed_generator")  # groups of Keras's files
EXPECTED = "expected a keras.Model, a DeepNetModel, or the path of a .keras, .h5, .weights.h5 or .caffemodel file"
Report = dict[str, dict[str, str]]
_done: weakref.WeakKeyDictionary[Network, dict[str, tuple[Network, Report]]] = weakref.WeakKeyDictionary()


@keras.saving.register_keras_serializable(package="cos_ml")
class WeightsFile(keras.layers.Layer):  # type: ignore[misc, name-defined]
    """The bytes of a file of weights, in a layer that computes nothing.

    Args:
        kind: "h5" or "caffemodel".
        size: the number of bytes.
    """

    def __init__(self, kind: str, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.size = kind, size

    def build(self, shape: Any) -> None:
        """Makes the variable of the bytes."""
        self.content = self.add_weight(
            name="content", shape=(self.size,), dtype="uint8", initializer="zeros", trainable=False
        )

    def call(self, inputs: Any) -> Any:
        """Returns the inputs."""
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras's files."""
        return super().get_config() | {"kind": self.kind, "size": self.size}


def initial_weights(value: Any) -> Any:
    """What the Param keeps: a DeepNetModel, whose network has the weights or, as bytes, the file of them.

    Raises:
        InvalidInputError: there is no such file, or it has no weights of layers.
    """
    try:
        if isinstance(value, (str, os.PathLike)):
            return _of_file(as_string(value))
        if isinstance(value, DeepNetModel):
            return value.copy()
        return DeepNetModel(model=value)
    except InvalidInputError as error:
        text = str(error).replace("Param model: expected a keras.Model,", f"Param model: {EXPECTED},", 1)
        raise type(error)(text.replace("Param model:", "Param initialWeights:", 1)) from error


def _of_file(path: str) -> DeepNetModel:
    try:
        data = read_file(path)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(f"Param initialWeights: {EXPECTED}, received {path!r}: {error}") from error
    if data.startswith(ZIP):
        return DeepNetModel(model=path)
    if data.startswith(HDF5):
        with _reading_h5():
            untrusted.check_h5_library(data)
        _layers_of_h5(data)
        return _held("h5", data)
    if not path.endswith(".caffemodel"):
        raise InvalidInputError(f"Param initialWeights: {EXPECTED}, received {path!r}, which is none of them.")
    from cos_ml.caffe.weights import read_caffemodel

    read_caffemodel(qualified_file(path))
    return _held("caffemodel", data)


def _held(kind: str, data: bytes) -> DeepNetModel:
    layer = WeightsFile(kind, len(data), name="file")
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.content.assign(np.frombuffer(data, np.uint8))
    return DeepNetModel(model=model)


def _content(source: Network) -> tuple[str, bytes]:
    """The kind of a source's file, and its bytes."""
    if source.layers == ("file",):
        layer = load_model(source.archive).layers[-1]
        if isinstance(layer, WeightsFile):
            return layer.kind, keras.ops.convert_to_numpy(layer.content).tobytes()
    with zipfile.ZipFile(io.BytesIO(source.archive)) as archive:
        return "h5", archive.read(WEIGHTS)


def digest(source: Network) -> str:
    """SHA-256 of the weights: the same for the same weights."""
    return hashlib.sha256(_content(source)[1]).hexdigest()


def with_initial_weights(network: Network, source: Network) -> tuple[Network, Report]:
    """A network with the weights of ``source`` in all layers that have the name and the shapes of one of its layers.

    Returns:
        tuple[Network, Report]: the network, and under "taken" the source's layer by the network's; under "notTaken" the
        layers of both, each with why nothing was taken.

    Raises:
        InvalidInputError: nothing was taken.
    """
    done = _done.setdefault(source, {})
    if network.digest not in done:  # a grid's candidates and a validator's folds ask again
        done.clear()
        done[network.digest] = _taken(network, source)
    return done[network.digest]


def _taken(network: Network, source: Network) -> tuple[Network, Report]:
    model = load_model(network.archive, network.modules)
    kind, content = _content(source)
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, f"file.{kind}")
        path.write_bytes(content)
        if kind == "caffemodel":
            from cos_ml.caffe.weights import assign

            found = assign(model, path)
            taken, missed = found.taken, found.not_taken
        else:
            taken, missed = _from_h5(model, content, Path(folder, "own.weights.h5"))
    if not taken:
        reasons = "; ".join(f"{name!r}: {why}" for name, why in missed.items())
        raise InvalidInputError(
            f"Param initialWeights: no layer takes weights from it: its name and shapes must be the same in both. "
            f"{reasons}."
        )
    kept = f"; not taken: {', '.join(missed)}" if missed else ""
    logger.info("Initial weights: taken by %s%s", ", ".join(taken), kept)
    return network.with_archive(dump_model(model, like=network.archive)), {"taken": taken, "notTaken": missed}


# ── Keras's files ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _reading_h5() -> Iterator[None]:
    """What goes wrong with an HDF5 file is an InvalidInputError."""
    try:
        yield
    except InvalidInputError:
        raise
    except SavedModelError as error:
        raise InvalidInputError(f"Param initialWeights: {error}") from error
    except Exception as error:  # damage makes h5py raise various types
        raise InvalidInputError(f"Param initialWeights: the HDF5 file is damaged: {error}.") from error


@_reading_h5()
def _from_h5(model: Any, data: bytes, own: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Sets weights from an HDF5 file of Keras's; returns what was taken, and what was not and why."""
    import h5py

    legacy, _ = _layers_of_h5(data)
    with h5py.File(io.BytesIO(data)) as file:
        if legacy:
            mine = {
                name: layer.weights for name, layer in layers_by_name(model).items() if not hasattr(layer, "layers")
            }
            shapes = {name: {str(i): tuple(one.shape) for i, one in enumerate(of)} for name, of in mine.items() if of}
            theirs = {name: dict(enumerate(of)) for name, of in _legacy_layers(file, shapes).items()}
            matched = {name: {str(i): one for i, one in of.items()} for name, of in theirs.items()}

            def take(name: str, values: Mapping[str, Any]) -> None:
                for weight, value in zip(mine[name], values.values(), strict=True):
                    weight.assign(value[()])

            return _match(shapes, matched, take)
        model.save_weights(own)
        with h5py.File(own, "r+") as target:
            groups = _groups(target)
            shapes = {name: {key: one.shape for key, one in _arrays(of).items()} for name, of in groups.items()}

            def replace(name: str, values: Mapping[str, Any]) -> None:
                for key, value in values.items():
                    del groups[name][key]
                    value.parent.copy(value, groups[name].require_group(key.rpartition("/")[0]), key.rpartition("/")[2])

            found = _match(
                {name: of for name, of in shapes.items() if of},
                {name: _arrays(of) for name, of in _groups(file).items() if _arrays(of)},
                replace,
            )
    model.load_weights(own)
    return found


def _match(
    own: Mapping[str, Mapping[str, tuple[int, ...]]],
    theirs: Mapping[str, Mapping[str, Any]],
    take: Callable[[str, Mapping[str, Any]], None],
) -> tuple[dict[str, str], dict[str, str]]:
    """Takes the weights of each layer of which all shapes agree: what was taken, and what was not and why."""
    taken, missed = {}, {}
    for name, shapes in own.items():
        origin = _namesake(name, own, theirs)
        if origin is None:
            missed[name] = "initialWeights has no layer of this name"
            continue
        found = {key: tuple(value.shape) for key, value in theirs[origin].items()}
        if found == dict(shapes):
            take(name, theirs[origin])
            taken[name] = origin
        else:
            missed[name] = f"has weights of shapes {[*shapes.values()]}; initialWeights has {[*found.values()]}"
    used = {_namesake(name, own, theirs) for name in own}
    missed |= {name: "the network has no layer of this name with weights" for name in theirs if name not in used}
    return taken, missed


def _namesake(name: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The layer of that name: its full name, or its own where it has no namesake in either of the networks."""
    if name in theirs:
        return name
    last = name.rpartition("/")[2]
    alike = [[one for one in side if one.rpartition("/")[2] == last] for side in (own, theirs)]
    return alike[1][0] if [*map(len, alike)] == [1, 1] and alike[1][0] not in own else None


def _layers_of_h5(data: bytes) -> tuple[bool, list[str]]:
    """Whether a file has Keras's format of before version 3, and the names of its layers; checked, as any file."""
    import h5py

    with _reading_h5(), h5py.File(io.BytesIO(data)) as file:
        untrusted.check_h5(file, len(data))
        legacy = "layer_names" in file.get("model_weights", file).attrs
        names = list(_legacy_layers(file, {}) if legacy else _groups(file))
    if not names:
        raise InvalidInputError("Param initialWeights: the HDF5 file has no Keras layers.")
    return legacy, names


def _groups(group: Any, prefix: str = "") -> dict[str, Any]:
    """The groups of layers in a file of Keras 3, by full name."""
    found: dict[str, Any] = {}
    for key, child in group.items():
        if key in NO_LAYERS or not hasattr(child, "items"):
            continue
        if "vars" not in child:  # a list of layers
            found |= {name: one for name, one in _groups(child, prefix).items() if name not in found}
            continue
        name = prefix + str(child["vars"].attrs.get("name", key))
        found |= _groups(child, f"{name}/") if "layers" in child else {} if name in found else {name: child}
    return found


def _arrays(layer: Any) -> dict[str, Any]:
    """The weights in a layer's group by their paths in it, without the states of random generators."""
    found: dict[str, Any] = {}

    def visit(path: str, one: Any) -> None:
        if hasattr(one, "shape") and not str(one.parent.attrs.get("name", "")).startswith("seed_generator"):
            found[path] = one

    layer.visititems(visit)
    return dict(sorted(found.items()))


def _legacy_layers(file: Any, own: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The weights of layers in a file of Keras 2, in order; those of a nested model as "outer/inner", as in ``own``."""
    root = file.get("model_weights", file)
    found: dict[str, list[Any]] = {}
    for name in _texts(root, "layer_names"):
        paths = _texts(root[name], "weight_names")
        inner = [one for one in own if one.startswith(f"{name}/")]
        for path in paths:
            owners = path.split("/")[:-1]
            nested = next((one for one in inner if one.rpartition("/")[2] in owners), name)
            found.setdefault(nested, []).append(root[name][path])
    return found


def _texts(group: Any, name: str) -> list[str]:
    """An attribute of several strings, which Keras cuts into pieces where it is long."""
    pieces = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(group.attrs[f"{name}{len(pieces)}"])
    return [one.decode() if isinstance(one, bytes) else str(one) for piece in pieces for one in piece]
