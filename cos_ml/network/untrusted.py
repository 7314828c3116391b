"""Checks of files that come from elsewhere, before Keras opens them (driver side).

A saved model is data. What would make it more than that is refused: Python code, functions that are looked up by name,
paths, and sizes that are not those of its bytes. docs/security.md lists what this protects from.
"""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cos_ml.errors import SavedModelError

__all__ = ["check_archive", "check_config", "check_zip", "modules_of"]

MEMBER = re.compile(r"(metadata\.json|config\.json|model(_\d+)?\.weights\.(h5|json)|assets/.+)")
RATIO = 100  # of unpacked bytes to packed ones; what Keras writes is not packed at all
SMALL = 64 << 20  # bytes that are no danger, whatever they are packed into
LARGEST_CONFIG = 64 << 20  # bytes
OWN_MODULES = re.compile(r"builtins|keras(?!\.(src\.)?utils|\.src\.saving|\.config)(\.\w+)*")


def check_archive(archive: bytes) -> None:
    """Raises SavedModelError for a ``.keras`` archive that is more than layers and numbers."""
    check_zip(archive, "network", MEMBER)
    check_config(_config(archive))
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for name in file.namelist():
            if name.endswith(".h5"):
                _check_weights(name, file)


def modules_of(archive: bytes) -> set[str]:
    """The modules of the custom classes that an archive names."""
    return {str(config["module"]) for config in _objects(_config(archive)) if ">" in str(config.get("registered_name"))}


def check_zip(data: bytes, what: str, member: re.Pattern[str] = re.compile(r"\w+\.npy")) -> None:
    """Raises SavedModelError for a zip file with other members than these, or with bytes that unpack to far more."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = file.infolist()
    except Exception as error:  # zipfile raises what it likes
        raise SavedModelError(
            f"The {what}'s {len(data):,} bytes are no archive: what was saved is damaged ({error})."
        ) from error
    for one in members:
        parts = one.filename.replace("\\", "/").split("/")
        if not member.fullmatch(one.filename) or ".." in parts or one.external_attr >> 28 == 0o12:
            raise SavedModelError(
                f"The {what}'s archive has a member {one.filename!r:.80} that does not belong there: it is not opened."
            )
    _check_size(sum(one.file_size for one in members), len(data), f"{what}'s archive")


def _check_size(unpacked: int, packed: int, what: str) -> None:
    if unpacked > RATIO * packed + SMALL:
        raise SavedModelError(f"The {what} of {packed:,} bytes would unpack to {unpacked:,}: it is not opened.")


def _config(archive: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        try:
            if file.getinfo("config.json").file_size > LARGEST_CONFIG:
                raise SavedModelError("The network's config.json is too large: it is not opened.")
            return json.loads(file.read("config.json"))
        except SavedModelError:
            raise
        except Exception as error:
            raise SavedModelError(f"The network's archive is damaged: {error}.") from error


def check_config(config: Any) -> None:
    """Raises SavedModelError for a serialised Keras object that holds code, or would call, import or read something."""
    for one in _objects(config):
        kind, module, registered = (one.get(name) for name in ("class_name", "module", "registered_name"))
        inner = one.get("config")
        if kind in ("Lambda", "__lambda__"):
            raise SavedModelError(
                "The network has a Lambda, Python code that would run here: it is not opened. Build it again with a "
                "registered layer in place of the Lambda, and save it."
            )
        own = not isinstance(module, str) or OWN_MODULES.fullmatch(module) is not None
        if not own and ">" in str(registered):
            # Where the module is not imported yet, that is what is to be said: to load a stage checks it next.
            own = str(module) not in sys.modules or _is_registered(str(registered))
        if not own:
            raise SavedModelError(
                f"The network names {module}.{kind}, which is neither Keras's nor registered with "
                "@keras.saving.register_keras_serializable(): it is not opened."
            )
        if isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
            raise SavedModelError(
                f"A {kind} of the network reads its vocabulary from {inner['vocabulary']!r:.80}: give the layer the "
                "words themselves."
            )


def _is_registered(name: str) -> bool:
    from cos_ml.network.keras_import import import_keras

    return import_keras().saving.get_registered_object(name) is not None


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialised object in a serialised object."""
    waiting = [config]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "class_name" in one:
                yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _check_weights(name: str, archive: zipfile.ZipFile) -> None:
    """Raises SavedModelError for an HDF5 file that points at other files, or claims more numbers than it holds."""
    import h5py

    try:
        data = archive.read(name)
        with h5py.File(io.BytesIO(data), "r") as file:
            size = sum(_sizes(file, name))
    except SavedModelError:
        raise
    except Exception as error:  # zipfile's and HDF5's own
        raise SavedModelError(f"The network's {name} is damaged: {error}") from error
    _check_size(size, len(data), name)


def _sizes(group: Any, name: str) -> Iterator[int]:
    import h5py

    for key in group:
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise SavedModelError(f"The network's {name} has a link at {key!r:.80}: it is not opened.")
        one = group[key]
        if isinstance(one, h5py.Group):
            yield from _sizes(one, name)
            continue
        if one.external or one.is_virtual:
            raise SavedModelError(f"The network's {name} reads {key!r:.80} from another file: it is not opened.")
        yield int(np.prod(one.shape or (), dtype=object)) * one.dtype.itemsize
