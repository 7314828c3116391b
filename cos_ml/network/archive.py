"""A Keras network as plain bytes and plain facts (driver side; ``load_model`` also in ranks and scoring tasks)."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cos_ml.errors import InvalidInputError, ParamTypeError, SavedModelError
from cos_ml.network import untrusted
from cos_ml.network.compiled import compile_arguments
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers, producer, uncompiled
from cos_ml.network.registered import custom_modules
from cos_ml.network.state import (
    apply_state,
    check_outputs,
    flags_of,
    has_state,
    state_of,
    variables_of,
    with_state,
    without_effect,
)
from cos_ml.network.structure import (
    embedded_below,
    has_call,
    input_structure,
    input_tensors,
    integer_inputs,
    is_functional,
    output_structure,
    paired_inputs,
    required_arguments,
)
from cos_ml.network.tokenizers import with_vocabularies
from cos_ml.network.traits import Traits, find_traits
from cos_ml.network.untrusted import serialized_objects
from cos_ml.paths import as_string, local_path, qualified_file
from cos_ml.stores import open_filesystem, retried

__all__ = [
    "Network",
    "Tensor",
    "default_names",
    "dump_model",
    "find_layer",
    "layers_by_name",
    "load_model",
    "network_from_file",
    "read_file",
]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: the input's name, or the name of the layer that computes the output.
        shape: the shape of one row; None for an unknown dimension.
        dtype: its Keras dtype.
        activation: the activation of the layer that computes an output; None if unknown.
        key: the output's key, where the network's outputs are a dict.
        below: the number of rows of the Embedding that takes an input as indices; None where there is none, or it is
            unknown.
        padding: the number that pads rows of an input whatever the Param says: an EmbeddingBag skips -1.
        values: the place of the input that an EmbeddingBag takes as the values of these indices; None if there is none.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    activation: str | None = None
    key: str | None = None
    below: int | None = field(default=None, compare=False)  # it follows from the network
    padding: float | None = field(default=None, compare=False)
    values: int | None = field(default=None, compare=False)

    @property
    def units(self) -> int | None:
        """The size of the last axis of one row; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1


@dataclass(frozen=True, repr=False)
class Network:
    """An immutable Keras network, so that copies of a Param that holds it share no mutable state.

    Attributes:
        archive: the network in Keras's own ``.keras`` format, weights included.
        inputs, outputs: the signature, in the network's order.
        layers: the names of all layers; those of a nested model as "outer/inner".
        modules: the modules that define its custom layers, to import before the network is loaded.
        compiled: the arguments it was compiled with, in Keras's serialized form; None if it was not compiled.
        traits: what its class and its layers ask of a training; None if a version of cos_ml saved it that did not know.
    """

    archive: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]
    modules: tuple[str, ...] = ()
    compiled: dict[str, Any] | None = None
    traits: Traits | None = None

    @classmethod
    def of(cls, model: Any) -> Network:
        """Freeze a Keras model.

        Raises:
            InvalidInputError: it is not a Keras model, is not built, or can't be saved and loaded in Keras's safe mode.
        """
        if not isinstance(model, import_keras().Model):
            received = f"{type(model).__name__} {model!r:.60}"
            raise ParamTypeError(f"Param model: expected a keras.Model, received {received}.")
        _check_built(model)
        archive = _saved(model)
        config = untrusted.config_of(archive)
        _refuse_lambdas(config)
        modules = custom_modules(config, "model")
        try:
            loaded = load_model(archive)
        except SavedModelError as error:  # better here than in the ranks
            raise InvalidInputError(f"Param model: Keras's safe mode refuses the saved model. {error}") from error
        if found := state_of(model, loaded):
            archive = with_state(archive, found)
            apply_state(archive, loaded)
        check_outputs(model, loaded)
        return cls(
            archive=archive,
            inputs=_inputs(model, loaded),
            outputs=_outputs(model),
            layers=tuple(layers_by_name(model)),
            modules=modules,
            compiled=compile_arguments(model, variables_of(model, loaded)),
            traits=find_traits(model, loaded, layers_by_name(model)),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the archive, which identifies the network and its weights."""
        return hashlib.sha256(self.archive).hexdigest()

    @cached_property
    def contents(self) -> str:
        """SHA-256 of the archive without the time at which it was saved: the same for all archives of one model."""
        found = hashlib.sha256()
        with zipfile.ZipFile(io.BytesIO(self.archive)) as file:
            for name in sorted({*file.namelist()} - {untrusted.METADATA}):
                found.update(f"{name} {file.getinfo(name).file_size} ".encode())
                found.update(file.read(name))
        return found.hexdigest()

    @cached_property
    def architecture(self) -> str:
        """SHA-256 of the layers and their settings, without their weights and names, which differ from run to run."""
        config = untrusted.config_of(self.archive)
        names = {name: f"#{index}" for index, name in enumerate(dict.fromkeys(_names(config)))}
        renamed = json.dumps(_renamed(config, names), sort_keys=True).encode()
        return hashlib.sha256(renamed + flags_of(self.archive)).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Network({len(self.layers)} layers, {len(self.archive):,} bytes, {self.digest[:8]})"

    def with_archive(self, archive: bytes) -> Network:
        """The same network with other weights."""
        return replace(self, archive=archive)

    def facts(self) -> str:
        """All attributes but the archive, as JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "archive"})

    @classmethod
    def from_facts(cls, facts: str, archive: bytes) -> Network:
        """The network of which ``facts()`` and the archive were stored."""
        values = json.loads(facts)
        for name in ("inputs", "outputs"):
            values[name] = tuple(Tensor(**tensor | {"shape": tuple(tensor["shape"])}) for tensor in values[name])
        for name in ("layers", "modules"):
            values[name] = tuple(values[name])
        if values.get("traits"):
            plain: dict[str, Any] = {
                name: tuple(one) if isinstance(one, list) else one for name, one in values["traits"].items()
            }
            values["traits"] = Traits(**plain)
        return cls(archive=archive, **values)


def _names(config: Any) -> list[str]:
    """The names of all layers in a serialized model, in order; not those of dtype policies, which are dtypes."""
    return [
        one["config"]["name"]
        for one in serialized_objects(config)
        if isinstance(one.get("config"), dict) and "name" in one["config"] and "Policy" not in one["class_name"]
    ]


def _renamed(config: Any, names: dict[str, str]) -> Any:
    """A serialized model with other names for its layers."""
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items() if key != "shared_object_id"}
    if isinstance(config, list):
        return [_renamed(item, names) for item in config]
    return names.get(config, config) if isinstance(config, str) else config


def load_model(archive: bytes, modules: Iterable[str] = ()) -> Any:
    """The ``keras.Model`` in a ``.keras`` archive, not compiled.

    Args:
        archive: the bytes of the archive.
        modules: the modules that define its custom layers, to import first.

    Raises:
        SavedModelError: the bytes are not a ``.keras`` archive, or contain what Keras's safe mode refuses.
    """
    keras = import_keras()
    for module in modules:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, "network.keras")
        path.write_bytes(archive)
        if not zipfile.is_zipfile(path):
            raise SavedModelError(f"The network is damaged: its {len(archive):,} bytes are not a .keras archive.")
        untrusted.imported_on_demand(untrusted.modules_of(archive))
        try:
            with warnings.catch_warnings():  # of a class that compiles itself: archives have no optimizer
                warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
                # A class without call() can't be built by it; its models have been.
                warnings.filterwarnings("ignore", message="Model '.*' had a build config")
                warnings.filterwarnings("ignore", message=r"`compile\(\)` was not called")  # of a class's own
                loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # damage makes Keras, h5py, zipfile and layers raise various types
            # Keras quotes whole configurations before the cause.
            cause = " ".join(str(error).rsplit("Exception encountered: ", 1)[-1].split())
            raise SavedModelError(
                f"Keras {keras.version()} does not load the network: {type(error).__name__}: {cause:.500}"
                f"{untrusted.newer_keras(archive)}"
            ) from error
    apply_state(archive, loaded)
    return loaded


def read_file(path: str) -> bytes:
    """The bytes of a file at any path or URL; where there is a session, a path means what it means to Spark."""
    url = qualified_file(path)
    local = local_path(url)
    if local is not None and os.path.isfile(local):  # fsspec takes some characters of a name for its own syntax
        return Path(local).read_bytes()
    filesystem, name = open_filesystem(url)
    try:
        return bytes(retried(lambda: filesystem.cat_file(name)))
    except FileNotFoundError as error:
        hint = f" For the file on this machine: file://{os.path.abspath(path)}" if os.path.isfile(path) else ""
        raise FileNotFoundError(f"{url} does not exist.{hint}") from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # each storage has its own exceptions
        raise OSError(f"{type(error).__name__}: {error}") from error


def network_from_file(path: str | os.PathLike[str]) -> Network:
    """The network in a ``.keras`` file, at any path or URL that fsspec reads.

    Raises:
        InvalidInputError: there is no such file, or Keras can't load it.
    """
    path = as_string(path)
    try:
        archive = read_file(path)
        untrusted.check_archive(archive)
        model = load_model(archive)
        if found := without_effect(model):
            warnings.warn(
                f"{path}: the LoRA adapters of {', '.join(found)} are 0, so they learn nothing. Keras merges adapters "
                "into the kernels when it saves a model. Pass the model itself, or save a DeepNetModel.",
                stacklevel=2,
            )
        return Network.of(model)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(
            f"Param model: expected a keras.Model, or the path of a .keras file, received {path!r}: {error}"
        ) from error


def dump_model(model: Any, like: bytes = b"") -> bytes:
    """A model as the bytes of a ``.keras`` archive, without its optimizer, whose state can be twice the weights.

    Args:
        model: the model.
        like: the archive from which the model was loaded: if it carries state that Keras's format loses, so does this.
    """
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder, uncompiled(model), with_vocabularies(model):
        path = Path(folder, "network.keras")
        model.save(path)
        archive = path.read_bytes()
    if like and has_state(like) and (found := state_of(model, load_model(archive))):
        return with_state(archive, found)
    return archive


def layers_by_name(model: Any, prefix: str = "") -> dict[str, Any]:
    """All layers of a model by name; those of a nested model as "outer/inner"."""
    keras = import_keras()
    found: dict[str, Any] = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue  # has no activations
        found[prefix + layer.name] = layer
        if hasattr(layer, "layers"):
            found |= layers_by_name(layer, f"{prefix}{layer.name}/")
    return found


def find_layer(names: Iterable[str], wanted: str, param: str = "featureLayers") -> str:
    """The full name of a layer, given by its full name, or by its own name if only one layer has it.

    A name that Caffe spells with ``/`` finds the layer that ``cos_ml.caffe`` names with ``_`` instead.

    Raises:
        InvalidInputError: no layer, or several, have that name; the message lists the candidates.
    """
    names = list(names)
    if wanted in names:
        return wanted
    spellings = (wanted, wanted.replace("/", "_"))
    matches = next(
        (found for one in spellings if (found := [name for name in names if name.rsplit("/", 1)[-1] == one])), []
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidInputError(f"Param {param}: several layers are named {wanted!r}. Choose one of {matches}.")
    raise InvalidInputError(f"Param {param}: the network has no layer {wanted!r}. It has {names}.")


def default_names(names: Sequence[str], layers: Iterable[str]) -> list[str]:
    """The names of the columns of these layers: their own, without a nested model's; Caffe's as they are spelled."""
    found = ((name, find_layer(names, name)) for name in layers)
    return [name.rsplit("/", 1)[-1] if full.endswith(name) else name for name, full in found]


def _refuse_lambdas(config: Any) -> None:
    """Raises InvalidInputError for Python code in a serialized model, which Keras's safe mode refuses to load again."""
    for one in serialized_objects(config):
        if one["class_name"] in ("Lambda", "__lambda__"):
            inner = one.get("config")
            name = inner.get("name") if isinstance(inner, dict) else None
            raise InvalidInputError(
                f"Param model: {f'layer {name!r} is a Lambda' if name else 'an activation is a lambda'}, Python code "
                "that Keras's safe mode refuses to load again. Use a keras.layers.Layer of your own, registered with "
                "@keras.saving.register_keras_serializable() in a module that the executors can import, or keras.ops, "
                "a Rescaling or another Keras layer that computes the same."
            )


def _check_built(model: Any) -> None:
    """Raises InvalidInputError for a model whose inputs are unknown, or whose layers have no weights yet."""
    own = not isinstance(model, import_keras().Sequential) and not is_functional(model)
    if not own and not (model.built and getattr(model, "inputs", None)):
        raise InvalidInputError(
            f"Param model: {model.name!r} does not know its input shape yet. Begin it with keras.Input(shape), or "
            "make it a functional model."
        )
    if not own:
        return
    arguments = required_arguments(model) if has_call(model) else []
    if len(arguments) > 1 or "shapes_dict" in (model.get_build_config() or {}):
        raise InvalidInputError(
            f"Param model: call of {type(model).__name__} takes several arguments ({', '.join(arguments)}), but "
            "keras.Model.fit passes one. Let it take one list or one dict of tensors."
        )
    layers = [layer.name for layer in all_layers(model) if not layer.built]
    if input_structure(model) is None or layers:
        missing = f"layers {layers[:5]} have no weights yet" if model.built and layers else "it is not built"
        remedy = "call it once on keras.Input(shape)"
        if not has_call(model):
            remedy = "as it has no call(), build the models in it, then call its build((None, *shape of a row))"
        raise InvalidInputError(f"Param model: {model.name!r} does not know its inputs, {missing}: {remedy}.")


def _saved(model: Any) -> bytes:
    """``dump_model``, without Keras's warning about lambdas, which are refused anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lambda", category=UserWarning)
        try:
            return dump_model(model)
        except (NotImplementedError, OSError, TypeError, ValueError) as error:
            raise InvalidInputError(f"Param model: Keras can't save {model.name!r}: {error}") from error


def _tensor(tensor: Any, layer: Any = None) -> Tensor:
    """The facts of a symbolic tensor that is an input, or that ``layer`` computes."""
    name = tensor.name if layer is None else layer.name
    return Tensor(name, tuple(tensor.shape[1:]), tensor.dtype, _activation(layer))


def _inputs(model: Any, loaded: Any) -> tuple[Tensor, ...]:
    """The inputs of a model; where a class of its own was built with shapes alone, its use of them tells integers."""
    found = tuple(_tensor(tensor) for tensor in input_tensors(model))
    if is_functional(model):
        values = paired_inputs(model)
        return tuple(
            replace(one, below=below, padding=-1.0 if skips else None, values=values.get(place))
            for place, (one, (below, skips)) in enumerate(zip(found, embedded_below(model), strict=True))
        )
    if not has_call(model) or {one.dtype for one in found} - {"float32", "float64"}:
        return found
    kinds = integer_inputs(loaded, input_tensors(model))
    return tuple(replace(one, dtype=kind or one.dtype) for one, kind in zip(found, kinds, strict=True))


def _outputs(model: Any) -> tuple[Tensor, ...]:
    """The outputs of a model; those in a dict have its keys, which Keras sorts."""
    if not is_functional(model):
        return _outputs_of_class(model)
    found = tuple(_tensor(tensor, producer(tensor)) for tensor in model.outputs)
    structure = getattr(model, "output", None)
    if not isinstance(structure, dict) or len(structure) != len(found):
        return found
    keys = {id(tensor): key for key, tensor in structure.items()}
    return tuple(replace(one, key=keys.get(id(tensor))) for one, tensor in zip(found, model.outputs, strict=True))


def _outputs_of_class(model: Any) -> tuple[Tensor, ...]:
    """The outputs of a model with a ``call`` of its own; none if it has none. What computes them is unknown."""
    try:
        structure = output_structure(model)
    except Exception as error:  # whatever the user's code raises
        cause = " ".join(str(error).split())
        raise InvalidInputError(
            f"Param model: call of {type(model).__name__} fails on symbolic tensors of the shapes that it was built "
            f"with: {type(error).__name__}: {cause:.300}"
        ) from error
    keyed = isinstance(structure, dict)
    found = () if structure is None else import_keras().tree.flatten(structure)
    return tuple(Tensor(one.name, tuple(one.shape[1:]), one.dtype, key=one.name if keyed else None) for one in found)


def _activation(layer: Any) -> str | None:
    """The activation that ends ``layer``, looked up in a nested model too; None if unknown."""
    keras = import_keras()
    if isinstance(layer, keras.Model) and is_functional(layer):
        return _activation(producer(layer.outputs[0]))
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", None)
