"""A Keras network as plain bytes and plain facts (driver side; ``load_model`` also in ranks and scoring tasks)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network import untrusted
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import producer

__all__ = ["Network", "Tensor", "layers_by_name", "load_model"]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network: its name, the shape of one row, its dtype, and an output's activation."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    activation: str | None = None  # of the layer that computes it; None where nothing says

    @property
    def units(self) -> int | None:
        """Numbers in the last axis of one row; a scalar has one."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, repr=False)
class Network:
    """A Keras network, frozen: copies of a Param that holds it share nothing that changes.

    Attributes:
        archive: the network in Keras's own ``.keras`` format, weights and all.
        inputs, outputs: what goes in and comes out, in the network's order.
        layers: the names of all layers, nested ones as "outer/inner".
        modules: the modules of custom layers, which have to be imported before it is loaded.
        compiled: the arguments it was compiled with, in Keras's serialised form; None where it was not.
    """

    archive: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]
    modules: tuple[str, ...] = ()
    compiled: dict[str, Any] | None = None

    @classmethod
    def of(cls, model: Any) -> Network:
        """Freeze a Keras model.

        Raises:
            InvalidInputError: it is no Keras model, is not built, or can't be saved and loaded in Keras's safe mode.
        """
        keras = import_keras()
        if not isinstance(model, keras.Model):
            raise InvalidInputError(
                f"Param model: expected a keras.Model, received {type(model).__name__} {model!r:.60}."
            )
        if not model.built or not getattr(model, "inputs", None):
            raise InvalidInputError(
                f"Param model: {model.name!r} does not know its input shape yet. Begin it with keras.Input(shape), "
                "or make it a "
                "functional model."
            )
        config = _config(model)
        _refuse_unsafe(config)
        archive, modules = _archive(model), custom_modules(config)
        _check_loads(archive)
        return cls(
            archive=archive,
            inputs=tuple(_tensor(tensor) for tensor in model.inputs),
            outputs=tuple(_output(tensor) for tensor in model.outputs),
            layers=tuple(layers_by_name(model)),
            modules=modules,
            compiled=model.get_compile_config() if getattr(model, "compiled", False) else None,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the archive: what tells one network from another."""
        return hashlib.sha256(self.archive).hexdigest()

    @cached_property
    def architecture(self) -> str:
        """A hash of the layers and their settings, without their weights and names, which differ from run to run."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as file:
            config = json.loads(file.read("config.json"))
        names = {name: f"#{index}" for index, name in enumerate(dict.fromkeys(_names(config)))}
        return hashlib.sha256(json.dumps(_renamed(config, names), sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Network({len(self.layers)} layers, {len(self.archive):,} bytes, {self.digest[:8]})"

    def with_archive(self, archive: bytes) -> Network:
        """The same network with other weights."""
        return replace(self, archive=archive)

    def facts(self) -> str:
        """All but the archive, as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "archive"})

    @classmethod
    def from_facts(cls, facts: str, archive: bytes) -> Network:
        """The network of which ``facts`` and the archive were kept."""
        values = json.loads(facts)
        for name in ("inputs", "outputs"):
            values[name] = tuple(Tensor(**tensor | {"shape": tuple(tensor["shape"])}) for tensor in values[name])
        for name in ("layers", "modules"):
            values[name] = tuple(values[name])
        return cls(archive=archive, **values)


def custom_modules(config: Any) -> tuple[str, ...]:
    """The modules of the registered custom classes in a serialised Keras object.

    Raises:
        InvalidInputError: one is defined in the program itself, where no other process can import it from.
    """
    found: set[str] = set()
    if isinstance(config, (list, tuple)):
        for item in config:
            found.update(custom_modules(item))
    if isinstance(config, dict):
        if ">" in (config.get("registered_name") or ""):
            if config["module"] in (None, "__main__"):  # Keras writes None for the program itself
                raise InvalidInputError(
                    f"{config['class_name']} is defined in the program or notebook itself, and the executors can't "
                    "import it "
                    "from there. Move it into a module that is installed on them, or that "
                    "spark.sparkContext.addPyFile ships."
                )
            found.add(config["module"])
        for item in config.values():
            found.update(custom_modules(item))
    return tuple(sorted(found))


def _names(config: Any) -> Iterator[str]:
    """The names of all layers in a serialised model, in their order."""
    if isinstance(config, dict):
        named = "class_name" in config and isinstance(config.get("config"), dict) and "name" in config["config"]
        if named and "Policy" not in config["class_name"]:  # whose name is the number type
            yield config["config"]["name"]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _names(item)


def _renamed(config: Any, names: dict[str, str]) -> Any:
    """A serialised model with other names for its layers."""
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items() if key != "shared_object_id"}
    if isinstance(config, list):
        return [_renamed(item, names) for item in config]
    return names.get(config, config) if isinstance(config, str) else config


def load_model(archive: bytes, modules: Iterable[str] = ()) -> Any:
    """The ``keras.Model`` in a ``.keras`` archive, not compiled.

    Args:
        archive: its bytes.
        modules: modules of custom layers, to import first.

    Raises:
        SavedModelError: the bytes are no archive of Keras's, or hold what its safe mode does not load.
    """
    keras = import_keras()
    for module in modules:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, "network.keras")
        path.write_bytes(archive)
        if not zipfile.is_zipfile(path):
            raise SavedModelError(
                f"The network's {len(archive):,} bytes are no .keras archive: the saved model is damaged."
            )
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # of Keras, h5py, zipfile or a layer: whatever damage makes them raise
            what = str(error).split("\n")[0]
            raise SavedModelError(
                f"Keras {keras.version()} does not load the network: {type(error).__name__}: {what}"
            ) from error


def network_from_file(path: str) -> Network:
    """The network in a ``.keras`` file, anywhere that fsspec reads.

    Raises:
        InvalidInputError: there is no such file, or none that Keras loads.
    """
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            archive = file.read()
        untrusted.check_archive(archive)
        return Network.of(load_model(archive))
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(
            f"Param model: expected a keras.Model, or the path of a .keras file, received {path!r}: {error}"
        ) from error


def dump_model(model: Any) -> bytes:
    """A model as the bytes of a ``.keras`` archive, without its optimizer."""
    return _archive(model)


def layers_by_name(model: Any, prefix: str = "") -> dict[str, Any]:
    """All layers of a model by name; those inside a nested model as "outer/inner"."""
    keras = import_keras()
    found: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue  # has no activations
        found[prefix + layer.name] = layer
        if hasattr(layer, "layers"):
            found |= layers_by_name(layer, f"{prefix}{layer.name}/")
    return found


def find_layer(names: Any, wanted: str, param: str = "featureLayers") -> str:
    """The full name of a layer asked for by full name, or by its own name where only one layer has it.

    Raises:
        InvalidInputError: no layer, or several, have that name; the message lists those there are.
    """
    matches = [name for name in names if name == wanted] or [
        name for name in names if name.rsplit("/", 1)[-1] == wanted
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidInputError(f"Param {param}: several layers are named {wanted!r}. Say which of {matches}.")
    raise InvalidInputError(f"Param {param}: the network has no layer {wanted!r}. It has {list(names)}.")


def _refuse_unsafe(config: Any) -> None:
    """Raises InvalidInputError for Python code in a serialised model, which Keras's safe mode does not load again."""
    if isinstance(config, (list, tuple)):
        for item in config:
            _refuse_unsafe(item)
    if not isinstance(config, dict):
        return
    if config.get("class_name") in ("Lambda", "__lambda__"):
        inner = config.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
        raise InvalidInputError(
            f"Param model: {f'layer {name!r} is a Lambda' if name else 'an activation is a lambda'}, Python code "
            "that Keras's "
            "safe mode does not load again. Make it a keras.layers.Layer of your own, registered with "
            "@keras.saving.register_keras_serializable(), in a module that the executors can import; or use "
            "keras.ops, a Rescaling or another layer of Keras's that does the same."
        )
    for item in config.values():
        _refuse_unsafe(item)


def _config(model: Any) -> Any:
    """A model in Keras's serialised form; without Keras's warning about lambdas, which are refused anyway."""
    keras = import_keras()
    with _uncompiled(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda", category=UserWarning)
        try:
            return keras.saving.serialize_keras_object(model)
        except (NotImplementedError, OSError, TypeError, ValueError) as error:
            raise InvalidInputError(f"Param model: Keras can't save {model.name!r}: {error}") from error


def _check_loads(archive: bytes) -> None:
    """Raises InvalidInputError for a network that the ranks could not load: better here than there."""
    try:
        load_model(archive)
    except SavedModelError as error:
        raise InvalidInputError(f"Param model: what Keras saves of it, its safe mode does not load. {error}") from error


def _archive(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, "network.keras")
        with _uncompiled(model):  # else the archive holds the optimizer's state, twice the size of the weights
            model.save(path)
        return path.read_bytes()


@contextlib.contextmanager
def _uncompiled(model: Any) -> Iterator[None]:
    """For the length of a ``with`` block ``model`` is as it was before it was compiled."""
    if not getattr(model, "compiled", False):
        yield
        return
    optimizer = model.optimizer
    model.compiled, model.optimizer = False, None
    try:
        yield
    finally:
        model.compiled, model.optimizer = True, optimizer


def _tensor(tensor: Any) -> Tensor:
    return Tensor(tensor.name, tuple(tensor.shape[1:]), tensor.dtype)


def _output(tensor: Any) -> Tensor:
    layer = producer(tensor)
    return Tensor(layer.name, tuple(tensor.shape[1:]), tensor.dtype, _activation(layer))


def _activation(layer: Any) -> str | None:
    """The activation that ends ``layer``, a model in a model too; None where nothing says."""
    keras = import_keras()
    if isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
        return _activation(producer(layer.outputs[0]))
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    return getattr(function, "__name__", None)
