"""The peer's environment: the newest stack on which Horovod's KerasEstimator works, made once and kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cos_ml.horovod_build.build import BUILD_SETTINGS, HOROVOD, cache_folder
from tests.benchmarks.process import run

PYTHON = (3, 11)  # the last that TensorFlow 2.15 has wheels for
STACK = (
    "tensorflow-cpu==2.15.1",
    "pyspark==3.5.9",
    "pyarrow==10.0.1",
    "petastorm==0.13.1",
    "numpy<2",
    "pandas<2.2",
    "setuptools<70",
    "wheel",
    "cmake==3.31.6",
)
ESTIMATOR = f"horovod[spark]=={HOROVOD}"


def python(log: Path) -> str:
    """The interpreter of the peer's environment in the cache folder, which is made where it is missing.

    Args:
        log: where the output of making it goes.
    """
    folder = cache_folder().absolute() / "peer"
    bin_folder = folder / "bin"
    interpreter = str(bin_folder / "python")
    stamp, wanted = folder / "ready.txt", "\n".join([*STACK, ESTIMATOR])
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(
            f"The peer's TensorFlow 2.15 needs CPython 3.11, and this is {sys.version.split()[0]}: "
            f"--peer names the python of an environment with {', '.join([*STACK, ESTIMATOR])}."
        )
    print(f"Making the peer's environment in {folder} (about 4 minutes, once) ...", flush=True)
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check", "install"]
    run([sys.executable, "-m", "venv", "--clear", str(folder)], log)
    run([*pip, *STACK], log)
    # Its build finds CMake by PATH.
    build = {**BUILD_SETTINGS, "PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    run([*pip, "--no-build-isolation", ESTIMATOR], log, **build)
    run([interpreter, "-c", "import horovod.spark.keras"], log)
    stamp.write_text(wanted)
    return interpreter
