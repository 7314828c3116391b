"""Execute notebooks from top to bottom and keep their outputs: run_notebooks.py [PATH ...]. Default: the examples."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples/notebooks"
TIMEOUT = 300  # seconds for a cell
PROGRESS = re.compile(r"(candidate \d+/\d+, )?epoch +\d+/\d+ - .*")  # what a fit prints that is worth keeping
LAST_LINES = 3  # of a fit


def execute(path: Path, **environment: str) -> Any:
    """The notebook at ``path`` with the outputs of a fresh kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env={**os.environ, "PYTHONPATH": paths, "TMPDIR": folder, **environment})
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """The notebook without what differs from machine to machine: times, the kernel's version, log lines, paths."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index}", {}
        if cell.cell_type == "code":
            cell.outputs = _cleaned(cell.outputs)
    return notebook


def _cleaned(outputs: list[Any]) -> list[Any]:
    """The outputs, the texts of a stream in one piece; of standard error, the last epochs alone."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            same = next((one for one in kept if one.get("name") == output.name), None)
            if same is not None:
                same.text += output.text
                continue
        elif "text/html" in output.get("data", {}):
            output.data.pop("text/plain", None)
        kept.append(output)
    for output in [one for one in kept if one.output_type == "stream"]:
        lines = output.text.replace("\r", "\n").splitlines()
        if output.name == "stderr":
            lines = [line for line in lines if PROGRESS.fullmatch(line)][-LAST_LINES:]
        output.text = "".join(f"{line}\n" for line in lines)
    return [one for one in kept if one.output_type != "stream" or one.text]


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
        done = execute(Path(name))
        nbformat.write(done, name)
        print(f"{Path(name).name}: {Path(name).stat().st_size / 1000:.0f} kB")
