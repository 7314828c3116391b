"""Checks of files that come from elsewhere, before Keras opens them (driver side).

A saved model is data. When Keras loads the weights, it refuses HDF5 links, data sets in other files, and tensors that
claim to be huge. What Keras lets through is refused here: unexpected archive members, archives that unpack to far more
than their size, and functions and modules that a network calls by name. So is what Keras refuses only in its safe mode,
which a program can turn off for all of Keras: code, and vocabularies in files. ``docs/security.md`` lists both.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cos_ml.errors import SavedModelError

__all__ = [
    "STATE",
    "check_archive",
    "check_config",
    "check_h5",
    "check_h5_library",
    "check_zip",
    "config_of",
    "imported_on_demand",
    "modules_of",
    "newer_keras",
    "serialized_objects",
]

CONFIG = "config.json"
METADATA = "metadata.json"
STATE = "cos_ml_state.bin"  # what Keras's format loses, see state.py
MEMBER = re.compile(rf"(metadata\.json|config\.json|{re.escape(STATE)}|model(_\d+)?\.weights\.(h5|json)|assets/.+)")
MAX_RATIO = 100  # of unpacked bytes to packed ones; Keras itself does not compress
HARMLESS_BYTES = 64 << 20  # accepted whatever the ratio
MAX_MEMBERS = 10_000  # of an archive; Keras's have some three, and those of tokenizers
MAX_CONFIG_BYTES = 64 << 20
MAX_CONFIG_PARTS = 2_000_000  # lists and objects in it
MAX_H5_OBJECTS = 50_000  # groups and arrays of an HDF5 file: a layer has some five
MAX_H5_DEPTH = 100  # of groups in groups
MAX_LOOK_SECONDS = 60.0  # for a process of its own, which has a limit of the processor's time, too
MAX_H5_SECONDS = 10.0  # of the processor, to look at them
MAX_METADATA_BYTES = 1 << 16
CODE = ("Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper")
DIRECTORY_ENTRY = b"PK\1\2"  # how each member's begins at the end of an archive
SYMLINK = 0o12  # file type in the upper bits of a zip member's attributes
FILE_AS_BASE64 = re.compile(r"[A-Za-z0-9+/]{2048,}={0,2}")  # keras-hub takes shorter ones for a path
OWN_MODULES = re.compile(r"builtins|keras(?!\.(src\.)?(utils|applications|datasets)|\.src\.saving|\.config)(\.\w+)*")


# The only modules that a saved file may cause to be imported: those of cos_ml that register layers, losses and so on.
ON_DEMAND = frozenset({
    "cos_ml.caffe.fillers", "cos_ml.caffe.layers", "cos_ml.caffe.losses", "cos_ml.caffe.normalization",
    "cos_ml.caffe.recurrent", "cos_ml.caffe.transform", "cos_ml.layers", "cos_ml.optimizers",
})  # fmt: skip


def imported_on_demand(modules: Iterable[str]) -> set[str]:
    """Import those of the modules that are cos_ml's own, and return the others."""
    for module in ON_DEMAND.intersection(modules):
        importlib.import_module(module)
    return set(modules) - ON_DEMAND


def check_archive(archive: bytes) -> None:
    """Raises SavedModelError for a ``.keras`` archive that is more than layers and numbers.

    Keras checks the weights itself when it loads them.
    """
    try:
        check_zip(archive, "network", MEMBER)
        check_config(config_of(archive))
    except SavedModelError as error:
        raise SavedModelError(f"{error}{newer_keras(archive)}") from error


def newer_keras(archive: bytes) -> str:
    """A remark, with a space before it, on an archive that a newer Keras than this one saved; else nothing."""
    from cos_ml.network.keras_import import import_keras

    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as file, file.open(METADATA) as metadata:
            saved = str(json.loads(metadata.read(MAX_METADATA_BYTES))["keras_version"])
        current = str(import_keras().version())
        newer = _numbers(saved) > _numbers(current)
    except Exception:  # damaged bytes make zipfile and json raise various types
        return ""
    what = f" (Keras {saved:.20} saved it, which is newer than Keras {current} here: install Keras {saved:.20}, or "
    return f"{what}save it with Keras {current})" if newer else ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def modules_of(archive: bytes) -> set[str]:
    """The modules of the custom classes that an archive names."""
    objects = serialized_objects(config_of(archive))
    return {str(one["module"]) for one in objects if ">" in str(one.get("registered_name"))}


def check_zip(data: bytes, what: str, member: re.Pattern[str] = re.compile(r"\w+\.npy")) -> None:
    """Raises SavedModelError for a zip file with unexpected members, or one that unpacks to far more than its size."""
    if data.count(DIRECTORY_ENTRY) > MAX_MEMBERS:  # counted before zipfile makes an object of each
        raise SavedModelError(f"Refusing to load the {what}: its archive has more than {MAX_MEMBERS:,} members.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
    except Exception as error:  # damaged bytes make zipfile raise various types
        raise SavedModelError(f"The {what} ({len(data):,} bytes) is damaged: not a zip archive ({error}).") from error
    if len({info.filename for info in members}) < len(members):
        raise SavedModelError(f"Refusing to load the {what}: an archive member is in it twice.")
    for info in members:
        parts = info.filename.replace("\\", "/").split("/")
        if not member.fullmatch(info.filename) or ".." in parts or info.external_attr >> 28 == SYMLINK:
            raise SavedModelError(f"Refusing to load the {what}: unexpected archive member {info.filename!r:.80}.")
        if info.filename == CONFIG and info.file_size > MAX_CONFIG_BYTES:
            raise SavedModelError(f"Refusing to load the {what}: its {CONFIG} exceeds {MAX_CONFIG_BYTES:,} bytes.")
    unpacked = sum(info.file_size for info in members)
    if unpacked > MAX_RATIO * len(data) + HARMLESS_BYTES:
        raise SavedModelError(f"Refusing to load the {what}: {len(data):,} bytes would unpack to {unpacked:,}.")


def check_h5(file: Any, size: int) -> None:
    """Raises SavedModelError for an open HDF5 file of ``size`` bytes that links elsewhere, or unpacks to far more.

    Each object is looked at once, and only so many of them, so deep and for so long.
    """
    import h5py

    todo, looked, unpacked, begun = [(file, 0)], 0, 0, time.thread_time()
    seen = {h5py.h5o.get_info(file.id).addr}
    while todo:
        group, depth = todo.pop()
        for name in group:
            looked += 1
            if looked > MAX_H5_OBJECTS or depth > MAX_H5_DEPTH or time.thread_time() - begun > MAX_H5_SECONDS:
                raise SavedModelError(
                    f"Refusing to load the HDF5 file: it has more than {MAX_H5_OBJECTS:,} objects, is deeper than "
                    f"{MAX_H5_DEPTH} groups, or takes longer than {MAX_H5_SECONDS:g} s to look at."
                )
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise SavedModelError(f"Refusing to load the HDF5 file: {name!r:.80} is a link.")
            one = group[name]
            place = h5py.h5o.get_info(one.id).addr
            if isinstance(one, h5py.Group):
                if place in seen:  # which may contain itself
                    raise SavedModelError(f"Refusing to load the HDF5 file: the group {name!r:.80} is in it twice.")
                todo.append((one, depth + 1))
            elif isinstance(one, h5py.Dataset) and place not in seen:
                if one.external or one.is_virtual:
                    raise SavedModelError(f"Refusing to load the HDF5 file: the values of {name!r:.80} are elsewhere.")
                unpacked += one.nbytes
            seen.add(place)
    if unpacked > MAX_RATIO * size + HARMLESS_BYTES:
        raise SavedModelError(f"Refusing to load the HDF5 file: {size:,} bytes would unpack to {unpacked:,}.")


def check_h5_library(data: bytes) -> None:
    """Raises SavedModelError for an HDF5 file that the HDF5 library does not survive: a process of its own tries it.

    What it only refuses is left to the caller, who reads it again.
    """
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, "file.h5")
        path.write_bytes(data)
        command = [sys.executable, "-P", str(Path(__file__).with_name("h5_look.py")), str(path)]
        try:
            code = subprocess.run(command, capture_output=True, timeout=MAX_LOOK_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code < 0:
        raise SavedModelError(
            "Refusing to load the HDF5 file: the HDF5 library crashes on it, or does not return from it."
        )


def config_of(archive: bytes) -> Any:
    """The serialized model in a ``.keras`` archive. Raises SavedModelError if it is damaged."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        try:
            content = file.read(CONFIG)
            if content.count(b"{") + content.count(b"[") > MAX_CONFIG_PARTS:
                raise ValueError(f"its {CONFIG} has more than {MAX_CONFIG_PARTS:,} parts")
            return json.loads(content)
        except Exception as error:  # damaged bytes make zipfile and json raise various types
            raise SavedModelError(f"The network's archive is damaged: {error}.") from error


def check_config(config: Any) -> None:
    """Raises SavedModelError for a serialized Keras object that names anything but layers, losses, metrics and so on.

    Keras would import modules of ``keras_hub`` and its like by name, and call functions such as ``keras.utils``'s.
    """
    for one in serialized_objects(config):
        module, registered, inner = one.get("module"), str(one.get("registered_name")), one.get("config")
        if one["class_name"] in CODE:
            raise SavedModelError(
                f"Refusing to load: the network contains a {one['class_name']}, code that would run here. Build the "
                "network with a registered layer instead, and save it again."
            )
        if isinstance(inner, dict) and (path := _vocabulary_path(inner)):
            raise SavedModelError(
                f"Refusing to load: a {one['class_name']} reads its vocabulary from {path!r:.80}. Build it with a list "
                "of words, and save it again."
            )
        if not isinstance(module, str) or OWN_MODULES.fullmatch(module):
            continue
        # For a module that is not imported yet, persistence raises a clearer error that asks to import it.
        if ">" in registered and (module not in sys.modules or _is_registered(registered)):
            continue
        raise SavedModelError(
            f"Refusing to load: the network names {module}.{one['class_name']}, which is neither one of Keras's "
            "layers nor registered with @keras.saving.register_keras_serializable()."
        )


def _vocabulary_path(config: dict[str, Any]) -> str | None:
    """The file from which a layer would read words, or a tokenizer of keras-hub its rules; None where there is none."""
    found = [config.get(name) for name in ("vocabulary", "merges", "proto")]
    # A tokenizer takes the bytes of such a file as base64, too.
    return next((one for one in found if isinstance(one, str) and not FILE_AS_BASE64.fullmatch(one)), None)


def _is_registered(name: str) -> bool:
    from cos_ml.network.keras_import import import_keras

    return import_keras().saving.get_registered_object(name) is not None


def serialized_objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object in a serialized Keras object, outer ones before inner ones, in order."""
    todo = [config]
    while todo:  # not recursive: a file may nest as deep as it likes
        one = todo.pop()
        if isinstance(one, dict):
            if "class_name" in one:
                yield one
            one = list(one.values())
        if isinstance(one, (list, tuple)):
            todo.extend(reversed(one))
