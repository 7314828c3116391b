"""A client's environment, as pip makes it from a wheel: ``python -m tests.connect_hosts.environment`` makes it.

What the wheel requires is installed once, into the cache that has the Horovod wheel; cos_ml itself anew each time.
"""

import configparser
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cos_ml.horovod_build.build import cache_folder
from tests.support.sessions import ROOT

CONSTRAINTS = ROOT / "constraints" / "latest.txt"
SOURCES = ("cos_ml", "pyspark_cos_ml", "pyspark_cos_ml_tfrecord", "setup.py", "setup.cfg", "README.md", "LICENSE")


def folder() -> Path:
    """The folder of the environment."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"] + setup["options.extras_require"]["client"]
    decisive = platform.python_version() + required + CONSTRAINTS.read_text()
    return cache_folder() / f"connect-client-{hashlib.sha256(decisive.encode()).hexdigest()[:12]}"


def make() -> None:
    """Make the environment, or replace the cos_ml in it."""
    environment = folder()
    with tempfile.TemporaryDirectory() as built:
        wheel = _wheel(Path(built))
        if not (environment / "made").exists():
            _run(sys.executable, "-m", "venv", "--clear", str(environment))
            _pip(environment, "install", f"{wheel}[client]", "-c", str(CONSTRAINTS))
            (environment / "made").touch()
        else:
            _pip(environment, "install", "--no-deps", "--force-reinstall", str(wheel))


def _wheel(built: Path) -> Path:
    """A wheel of this checkout, in which building would leave files."""
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, built / name)
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", built, built)
    return next(built.glob("cos_ml-*.whl"))


def _pip(environment: Path, *arguments: str) -> None:
    _run(environment / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    make()
