"""What a network is besides its archive: variables, flags and policies that Keras's format loses (every side).

Loading a ``.keras`` archive merges LoRA's adapters into the kernels, makes every variable trainable as its layer is,
and forgets the policy of a model. So a network is saved, loaded and compared; what differs travels in one more member
of the archive, as plain data: values by the number of the variable in the loaded network. Paths are no key, because the
automatic name of the model is part of them. Keras itself opens the archive too, and ignores the member.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from typing import Any

import numpy as np

from cos_ml.data import blobs
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.structure import input_structure, input_tensors
from cos_ml.network.untrusted import STATE

__all__ = [
    "apply_state",
    "check_outputs",
    "flags_of",
    "has_state",
    "state_of",
    "variables_of",
    "with_state",
    "without_effect",
]

ROWS, UNKNOWN = 2, 8  # of the rows that compare a network with its copy, and the size of their unknown dimensions
TOLERANCE = 1e-3  # relative to the largest output: a copy computes the same operations


def has_state(archive: bytes) -> bool:
    """Whether an archive carries state that Keras's format loses."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return STATE in file.namelist()


def flags_of(archive: bytes) -> bytes:
    """The part of an archive's state that no training changes; empty if it has none."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return bytes(blobs.load(file.read(STATE))["header"]) if STATE in file.namelist() else b""


def without_effect(model: Any) -> list[str]:
    """The layers whose LoRA adapters are all 0, so that no gradient reaches them: Keras's own archives load so."""
    adapters = {
        layer.path: [one for one in layer.variables if "lora" in one.name]
        for layer in all_layers(model)
        if getattr(layer, "lora_enabled", False)
    }
    return [name for name, found in adapters.items() if not any(np.asarray(one).any() for one in found)]


def with_state(archive: bytes, state: bytes) -> bytes:
    """An archive, which has none yet, with this state."""
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as members:
        members.writestr(STATE, state)
    return file.getvalue()


def state_of(model: Any, loaded: Any) -> bytes:
    """What ``loaded``, a copy of ``model`` that Keras has saved and loaded, lacks; empty if it lacks nothing.

    Raises:
        InvalidInputError: the copy has other variables, so its values can't be restored.
    """
    arrays, trainable = {}, [bool(one.trainable) for one in loaded.variables]
    for variable, index in _pairs(model, loaded):
        value = np.asarray(variable.numpy())
        differs = value.tobytes() != np.asarray(loaded.variables[index].numpy()).tobytes()
        if differs and not _is_seed(variable):  # each epoch sets the seeds
            arrays[f"value/{index}"] = value
        trainable[index] = bool(variable.trainable)
    layers = _layers(model, loaded)
    flags = [[index, one.trainable] for index, (one, copy) in enumerate(layers) if one.trainable != copy.trainable]
    policies = [
        [index, one.dtype_policy.name]
        for index, (one, copy) in enumerate(layers)
        if isinstance(one, import_keras().Model) and one.dtype_policy.name != copy.dtype_policy.name
    ]
    # Names that the copy has made up anew: of layers that the constructor of a class of its own makes.
    listed = enumerate(zip(_listed(model), _listed(loaded), strict=False))
    names = [[index, one.name] for index, (one, copy) in listed if one.name != copy.name]
    if not (arrays or flags or policies or names) and trainable == [bool(one.trainable) for one in loaded.variables]:
        return b""
    header = {"layers": flags, "policies": policies, "names": names, "trainable": trainable}
    return b"".join(blobs.dump({"header": json.dumps(header).encode(), **arrays}))


def apply_state(archive: bytes, loaded: Any) -> None:
    """Give the network that Keras has loaded from ``archive`` the state that the archive carries, if any.

    Raises:
        SavedModelError: the state is damaged, or is that of another network.
    """
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        if STATE not in file.namelist():
            return
        try:
            _apply(blobs.load(file.read(STATE)), loaded)
        except Exception as error:  # a damaged file raises errors of zipfile, NumPy and Keras
            raise SavedModelError(f"The network's archive is damaged: {STATE}: {error!s:.300}") from error


def _apply(items: dict[str, Any], loaded: Any) -> None:
    header = json.loads(items.pop("header"))
    variables, layers = loaded.variables, list(all_layers(loaded))
    listed = _listed(loaded) if header.get("names") else []
    for index, name in header.get("names", ()):
        _item(listed, index).name = str(name)
    for index, policy in header["policies"]:
        _item(layers, index).dtype_policy = str(policy)
    if header["layers"]:  # a layer's flag sets those of the layers in it, which come after it
        before = [(layer, layer.trainable) for layer in layers]
        for index, flag in header["layers"]:
            before[index] = (_item(layers, index), bool(flag))
        for layer, flag in before:
            layer.trainable = flag
    for name, value in items.items():
        variable = _item(variables, int(name.removeprefix("value/")))
        if tuple(variable.shape) != value.shape or variable.dtype != value.dtype.name:
            raise ValueError(f"{variable.path} is {variable.dtype} {tuple(variable.shape)}, the state another type")
        variable.assign(value)
    for variable, flag in zip(variables, header["trainable"], strict=True):
        variable.trainable = bool(flag)


def variables_of(model: Any, loaded: Any) -> list[Any]:
    """The variables of a network in the order of its copy."""
    return [variable for variable, _ in sorted(_pairs(model, loaded), key=lambda pair: pair[1])]


def _item(items: list[Any], index: Any) -> Any:
    if not isinstance(index, int) or not 0 <= index < len(items):
        raise ValueError(f"there is no part {index!r:.20} of {len(items)}")
    return items[index]


def _layers(model: Any, loaded: Any) -> list[tuple[Any, Any]]:
    """The layers of a network and of its copy, side by side; none if the copy is built another way."""
    found, copies = all_layers(model), all_layers(loaded)
    if [type(one).__name__ for one in found] != [type(one).__name__ for one in copies]:
        return []
    return list(zip(found, copies, strict=True))


def _listed(model: Any) -> list[Any]:
    """The layers that ``layers`` lists, and those of each model among them."""
    return [inner for layer in model.layers for inner in (layer, *(_listed(layer) if hasattr(layer, "layers") else ()))]


def _pairs(model: Any, loaded: Any) -> list[tuple[Any, int]]:
    """Each variable of a network, with its number in the copy.

    They are in the same order, but for some layers, whose variables the copy has made in another order.
    """
    variables, copies = model.variables, loaded.variables
    keys, numbers = _keys(model), {key: index for index, key in enumerate(_keys(loaded))}
    if set(keys) != numbers.keys():  # names that Keras makes up differ
        numbers = {key: index for index, key in enumerate(keys) if index < len(copies)}
    pairs = [(variable, numbers.get(key)) for variable, key in zip(variables, keys, strict=True)]
    for variable, index in pairs:
        copy = None if index is None else copies[index]
        if copy is None or copy.dtype != variable.dtype or tuple(copy.shape) != tuple(variable.shape):
            found = "none" if copy is None else f"{copy.dtype} {tuple(copy.shape)}"
            raise InvalidInputError(
                f"Param model: Keras saves {model.name!r} without all of its variables. Variable {variable.path!r}: "
                f"expected {variable.dtype} {tuple(variable.shape)} once it is loaded, received {found}. Make all "
                "variables of a layer of your own in build(), as its get_config() describes them."
            )
    if len(copies) > len(variables):
        extra = next(one for index, one in enumerate(copies) if index not in {number for _, number in pairs})
        raise InvalidInputError(
            f"Param model: once it is saved and loaded, {model.name!r} has a variable more: {extra.path!r}. Call the "
            "model once on some rows before it is passed, so that all of its variables exist."
        )
    return [(variable, index) for variable, index in pairs if index is not None]


def _keys(model: Any) -> list[tuple[int, str, int]]:
    """For each variable: the number of its layer, its own name, and which one of that name it is."""
    owners = {id(variable): index for index, layer in enumerate(all_layers(model)) for variable in layer.variables}
    seen: Counter[tuple[int, str]] = Counter()
    keys = []
    for variable in model.variables:
        key = (owners[id(variable)], variable.name)
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path and len(variable.shape) == 1


def check_outputs(model: Any, loaded: Any) -> None:
    """Compare a network's outputs with those of its copy, without changing either.

    Raises:
        InvalidInputError: they differ, because a layer has settings that its ``get_config()`` does not return.
    """
    try:
        right, found = _outputs(model), _outputs(loaded)
        if _same(right, found) or not _same(right, _outputs(model)):  # a network may sample
            return
    except Exception:  # a layer may raise anything for rows that it does not support
        return
    raise InvalidInputError(
        f"Param model: {model.name!r} computes other outputs once Keras has saved and loaded it. A class of your own "
        "has settings that its get_config() does not return: return all arguments of the constructor there."
    )


def _outputs(model: Any) -> list[np.ndarray]:
    """The outputs for a few random rows and seeds, always the same ones."""
    keras, random = import_keras(), np.random.default_rng(0)
    rows = []
    for tensor in input_tensors(model):
        shape = (ROWS, *(UNKNOWN if side is None else side for side in tensor.shape[1:]))
        kind = str(tensor.dtype)
        numbers = random.integers(0, 2, shape) if kind.startswith(("int", "uint", "bool")) else random.random(shape)
        rows.append(keras.ops.convert_to_tensor(numbers.astype(bool) if kind == "bool" else numbers, kind))
    trainable = [one.value for one in model.trainable_variables]
    others = [keras.ops.zeros_like(one.value) if _is_seed(one) else one.value for one in model.non_trainable_variables]
    packed = keras.tree.pack_sequence_as(input_structure(model), rows)
    outputs, _ = model.stateless_call(trainable, others, packed, training=False)
    return [np.asarray(one, np.float64) for one in keras.tree.flatten(outputs)]


def _same(right: list[np.ndarray], found: list[np.ndarray]) -> bool:
    if [one.shape for one in right] != [one.shape for one in found]:
        return False
    largest = (np.nanmax(np.abs(one), initial=0.0) for one in right)
    return all(
        np.allclose(other, one, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
        for one, other, scale in zip(right, found, largest, strict=True)
    )
