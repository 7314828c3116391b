"""Tells which networks differ in the values of variables alone, and gives one the weights of another (task side).

A graph that was traced for one of them computes the others too, bit for bit: loading and tracing take longer.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from cos_ml.network import untrusted
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.state import has_state

__all__ = ["depends_on_variables_alone", "load_weights", "shared_config"]

PLAIN = ("keras.src.layers.", "keras.src.models.", "cos_ml.layers")  # modules of classes whose code is known


def shared_config(archive: bytes) -> str:
    """The configuration of a network; empty if its archive holds more than that and the values of variables."""
    if not zipfile.is_zipfile(io.BytesIO(archive)):
        return ""  # damage, which load_model explains
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        if has_state(archive) or any(name.startswith("assets") for name in file.namelist()):
            return ""
    config, numbers = untrusted.config_of(archive), dict[int, int]()
    for one in untrusted.serialized_objects(config):
        if "shared_object_id" in one:  # where the object was in memory
            one["shared_object_id"] = numbers.setdefault(one["shared_object_id"], len(numbers))
    return json.dumps(config, sort_keys=True)


def depends_on_variables_alone(network: Any) -> bool:
    """Whether a loaded network computes with nothing but its configuration and its variables.

    Custom code may keep anything else. Preprocessing layers make constants and tables when they are loaded, and
    stateful layers remember earlier rows.
    """
    return all(
        type(layer).__module__.startswith(PLAIN)
        and not hasattr(layer, "finalize_state")
        and not getattr(layer, "stateful", False)
        for layer in [network, *all_layers(network)]
    )


def load_weights(archive: bytes, network: Any) -> None:
    """Give a network the values of the variables in the archive of another one, which has the same configuration."""
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
        path = Path(folder, "network.keras")
        path.write_bytes(archive)
        network.load_weights(path)
