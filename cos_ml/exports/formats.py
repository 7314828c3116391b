"""The formats of exported files: what they hold, how they are written and run (driver side)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from cos_ml.errors import ExportError, SetupError
from cos_ml.exports import run

__all__ = ["FORMATS", "Format", "FreeBatchError", "check_installed", "convert", "run_exported"]

PROGRAMS = Path(__file__).parent


@dataclass(frozen=True)
class Format:
    """A format of exported files.

    Attributes:
        name: its name as an argument of ``export``.
        title: its name in messages.
        modules: the modules that write it and run it, beside TensorFlow.
        reads_files: whether it holds what decodes image files.
    """

    name: str
    title: str
    modules: tuple[str, ...] = ()
    reads_files: bool = False


FORMATS = {
    one.name: one
    for one in (
        Format("saved_model", "a SavedModel", reads_files=True),
        Format("onnx", "ONNX", ("tf2onnx", "onnx", "onnxruntime")),
        Format("litert", "LiteRT", ("ai_edge_litert",)),
    )
}


class FreeBatchError(Exception):
    """The format holds this network for a fixed number of rows alone."""


def check_installed(form: Format) -> None:
    """Raises SetupError if a package is missing that the format needs."""
    if missing := [name for name in form.modules if find_spec(name) is None]:
        raise SetupError(
            f"To export to {form.title}, cos_ml needs {', '.join(missing).replace('_', '-')}, which is not installed: "
            f'pip install "cos-ml[{form.name}]"'
        )


def convert(form: Format, folder: str, target: str, metadata: str, layers: Mapping[str, str]) -> None:
    """Convert a SavedModel.

    Args:
        form: the format to convert to.
        folder: the SavedModel.
        target: the file to write.
        metadata: JSON that the file carries.
        layers: the classes of the network's layers by their names, for errors.

    Raises:
        ExportError: the format can't hold a layer, or the converter fails.
        FreeBatchError: it can hold the network, with a fixed number of rows.
    """
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as scratch:
        report = Path(scratch, "report.json")
        printed = _run("convert.py", form.name, folder, target, metadata, str(report))
        if not report.exists():
            raise ExportError(f"The converter to {form.title} crashed: {_last_line(printed)}")
        found = json.loads(report.read_text())
    if "element_shape to be static" in found["error"]:
        raise FreeBatchError
    if found["unsupported"]:
        raise ExportError(_cannot_hold(form, found["unsupported"], layers))
    if found["error"]:
        raise ExportError(f"The converter to {form.title} failed: {' '.join(found['error'].split()):.300}")


def run_exported(form: Format, path: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of an exported file for these inputs, by the format's own runtime in a process of its own.

    Raises:
        ExportError: the runtime fails.
    """
    with tempfile.TemporaryDirectory(prefix="cos_ml-") as scratch:
        inputs, outputs = (str(Path(scratch, name)) for name in ("inputs.npz", "outputs.npz"))
        run.write(inputs, arrays)
        printed = _run("run.py", form.name, path, inputs, outputs)
        if not os.path.exists(outputs):
            raise ExportError(f"The runtime of {form.title} does not run the exported file: {_last_line(printed)}")
        return run.read(outputs)


def _run(program: str, *arguments: str) -> str:
    """Run one of this package's programs to its end; returns what it has printed."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}  # ranks may use GPUs
    command = [sys.executable, "-P", str(PROGRAMS / program), *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False,
    ).stdout  # fmt: skip


def _last_line(printed: str) -> str:
    """The last line of a traceback, or of what else was printed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it printed nothing':.300}"


def _cannot_hold(form: Format, unsupported: Iterable[Sequence[str]], layers: Mapping[str, str]) -> str:
    """The message about operators that a format lacks, by the layers that need them."""
    found: dict[str, list[str]] = {}
    for operator, place in unsupported:
        layer = layer_at(place, layers)
        what = f"layer {layer!r} ({layers[layer]})" if layer in layers else layer or "what transform adds"
        found.setdefault(what, []).append(operator)
    shown = "; ".join(f"{what}: no operator {', '.join(dict.fromkeys(names))}" for what, names in found.items())
    return (
        f"{form.title} can't hold this network. {shown}. Export a SavedModel, which holds all that TensorFlow "
        "computes, or take the layer out of the network and apply it before."
    )


def layer_at(place: str, layers: Iterable[str]) -> str:
    """The full name of the layer at a place of a graph, such as "serve/model_1/text_1/Lower"; "" if there is none.

    TensorFlow appends numbers to names that it meets again.
    """
    names = {name.rpartition("/")[2]: name for name in layers}
    for part in reversed(place.split("/")[:-1]):
        while part not in names and (shorter := re.sub(r"_\d+$", "", part)) != part:
            part = shorter
        if part in names:
            return names[part]
    return ""
