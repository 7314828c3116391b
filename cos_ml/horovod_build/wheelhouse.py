"""Builds wheels of Horovod for several versions of TensorFlow and Python: ``cos-ml horovod-wheels`` (driver side)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import cos_ml
from cos_ml.errors import SetupError
from cos_ml.horovod_build import build

__all__ = ["build_wheels", "main"]


def build_wheels(
    tensorflow: Sequence[str] = (), python: Sequence[str] = (), output: str = "wheelhouse", gpu: bool = False
) -> None:
    """Build a wheel for each TensorFlow on each Python, in an environment of its own, and check it with an allreduce.

    Args:
        tensorflow: versions; ``2.20`` is the newest release of 2.20. None: that of this environment.
        python: interpreters, by name or path. None: this one.
        output: the folder of the wheels. What is there already is checked, and not built again.
        gpu: with NCCL.

    Raises:
        SetupError: an interpreter is missing, or a version is not one that Horovod builds on; or, after all others
            were built, some failed.
    """
    versions = tensorflow or [build.tensorflow_version()]
    for version in versions:
        build.check_version(version)
    interpreters = [_interpreter(name) for name in python or [sys.executable]]
    folder = Path(output).absolute()
    failed = []
    for interpreter, version in product(interpreters, versions):
        print(f"TensorFlow {version} on {interpreter}:", flush=True)
        try:
            _build_in_environment(interpreter, version, folder, gpu)
        except SetupError as error:
            print(error, file=sys.stderr, flush=True)
            failed.append(f"TensorFlow {version} on {interpreter}")
    print(f"{folder} has:", *sorted(wheel.name for wheel in folder.glob("horovod-*.whl")), sep="\n  ")
    if failed:
        raise SetupError("There is no wheel for: " + "; ".join(failed) + ". The reasons are above.")


def _interpreter(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SetupError(f"There is no Python {name!r}: --python takes names on the PATH, or paths.")
    return found


def _build_in_environment(interpreter: str, tensorflow: str, folder: Path, gpu: bool) -> None:
    package = "tensorflow[and-cuda]" if gpu else "tensorflow-cpu"
    release = f"{tensorflow}.*" if tensorflow.count(".") == 1 else tensorflow
    with tempfile.TemporaryDirectory(prefix="cos_ml-wheels-") as scratch:
        environment, source = Path(scratch, "environment"), Path(scratch, "source")
        _run([interpreter, "-m", "venv", str(environment)], "The environment could not be made")
        own = environment / "bin/python"
        build.pip(["install", f"{package}=={release}"], own)
        # Alone: beside it are packages of this Python and this TensorFlow.
        shutil.copytree(Path(cos_ml.__file__).parent, source / "cos_ml", ignore=shutil.ignore_patterns("__pycache__"))
        command = [str(own), "-m", "cos_ml.horovod_build.wheelhouse", str(folder), *(["gpu"] if gpu else [])]
        _run(command, "There is no wheel", PYTHONPATH=str(source))


def _run(command: list[str], problem: str, **environment: str) -> None:
    done = subprocess.run(command, env=os.environ | environment, check=False)
    if done.returncode:
        raise SetupError(f"{problem}: {' '.join(command)} ended with {done.returncode}.")


def main(arguments: Sequence[str]) -> int:
    """Build and check the wheel for the environment that runs this: FOLDER [gpu]; returns the exit status."""
    try:
        build.install(gpu="gpu" in arguments[1:], folder=arguments[0])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
