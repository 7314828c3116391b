"""Build and install Horovod for the TensorFlow of this environment (driver side; behind ``cos-ml install-horovod``).

Horovod 0.28.1 comes as source only, and was written before TensorFlow moved some of the headers that it includes.
Nothing of its source is changed here: forwarding headers and include paths, in a folder of this build's own, are all
that TensorFlow 2.16 to 2.21 need.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cos_ml.errors import SetupError

__all__ = ["HOROVOD", "TENSORFLOWS", "cache_folder", "install", "missing_tools", "tensorflow_version"]

HOROVOD = "0.28.1"
TENSORFLOWS = ((2, 16), (2, 21))  # the minor versions that carry Keras 3 and were seen to build, first and last

# Horovod's CMake files predate CMake 4, and its setup.py setuptools 80.
BUILD_TOOLS = ("setuptools<80", "wheel", "cmake==3.31.6")

BUILD_SETTINGS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
}

# What Horovod includes -> where the TensorFlow versions keep it, newest first.
MOVED_HEADERS = {
    "tensorflow/compiler/xla/client/xla_builder.h": ("xla/hlo/builder/xla_builder.h", "xla/client/xla_builder.h")
}
EXTERNAL_HEADERS = ("external/highwayhash", "external/farmhash_archive/src")


def tensorflow_version() -> str:
    """Version of the TensorFlow installed here, found without importing it.

    Raises:
        SetupError: there is none, or it is not one of those that Horovod builds on.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise SetupError(
            "TensorFlow is not installed in this environment. Horovod is built against it, so it comes first: "
            "pip install 'cos-ml[cpu]' (or 'cos-ml[gpu]')."
        )
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly"):
        try:
            version = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    else:
        raise SetupError("TensorFlow is here, but no installed package says which version it is: install it with pip.")
    minor = tuple(int(part) for part in version.split(".")[:2])
    first, last = TENSORFLOWS
    if minor < first:
        raise SetupError(
            f"TensorFlow {version} carries Keras 2, and cos_ml needs Keras 3: expected TensorFlow "
            f"{_dotted(first)} to {_dotted(last)}. Install one with: pip install 'tensorflow-cpu=={_dotted(last)}.*'"
        )
    if minor > last:
        raise SetupError(
            f"Horovod {HOROVOD} was not seen to build on TensorFlow {version}: expected {_dotted(first)} to "
            f"{_dotted(last)}. Install one with: pip install 'tensorflow-cpu=={_dotted(last)}.*'"
        )
    return version


def missing_tools() -> list[str]:
    """What this machine lacks to compile Horovod, each with the command that installs it."""
    missing = []
    if not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")):
        missing.append("a C++17 compiler   (Debian, Ubuntu: apt-get install g++; Fedora, RHEL: dnf install gcc-c++)")
    if not shutil.which("make"):
        missing.append("make               (Debian, Ubuntu: apt-get install make; Fedora, RHEL: dnf install make)")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append(
            "Python's headers   (Debian, Ubuntu: apt-get install python3-dev; Fedora, RHEL: dnf install python3-devel)"
        )
    return missing


def check_tensorflow_loads(version: str) -> None:
    """Raises SetupError where TensorFlow is installed and can't be imported, as beside a NumPy that is too new."""
    command = [sys.executable, "-c", "import tensorflow"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(
            f"TensorFlow {version} is installed, and can't be imported: {last} To see what does not fit: pip check"
        )


def cache_folder() -> Path:
    """Where built wheels are kept: $COS_ML_CACHE, else the user's own cache folder."""
    base = os.environ.get("COS_ML_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cos_ml"


def install(force: bool = False) -> None:
    """Install Horovod into this environment, from the cache or by a build, and prove it with an allreduce.

    Args:
        force: build again even where Horovod works already or a built wheel is cached.

    Raises:
        SetupError: something is missing, the build failed, or the allreduce gave a wrong result.
    """
    version = tensorflow_version()
    if not force and _installed_for(version):
        print(f"Horovod {HOROVOD} for TensorFlow {version} is installed already.")
        check()
        return
    folder = cache_folder() / "wheels" / f"horovod-{HOROVOD}-tensorflow-{version}-{_platform()}"
    wheels = [] if force else sorted(folder.glob("horovod-*.whl"))
    if wheels:
        print(f"Using the Horovod wheel built before: {wheels[0]}")
    else:
        wheels = [_build(version, folder)]
    _pip(["install", "--force-reinstall", "--no-deps", str(wheels[0])])
    _pip(["install", str(wheels[0])])  # its dependencies, where they are missing
    _stamp(version)
    check()


def check() -> None:
    """Run an allreduce between two ranks on this machine, and compare its result.

    Raises:
        SetupError: Horovod does not load, or what it computes is wrong.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cos_ml.horovod_check"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SetupError(f"Horovod is installed but does not work:\n{(done.stdout + done.stderr)[-4000:]}")
    print(done.stdout, end="")


def _build(version: str, folder: Path) -> Path:
    missing = missing_tools()
    if missing:
        raise SetupError("Horovod is compiled on this machine, which lacks:\n  " + "\n  ".join(missing))
    check_tensorflow_loads(version)
    print(f"Building Horovod {HOROVOD} for TensorFlow {version}: about 2 minutes on 2 cores ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="cos_ml-horovod-") as scratch:
        tools, headers, out = (Path(scratch, name) for name in ("tools", "headers", "out"))
        _pip(["install", "--target", str(tools), *BUILD_TOOLS])
        log = Path(scratch, "build.log")
        environment = os.environ | BUILD_SETTINGS | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")])),
            "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CPLUS_INCLUDE_PATH": os.pathsep.join(_include_path(headers)),
            "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        }  # fmt: skip
        with log.open("w") as output:
            command = ["wheel", "-v", "--no-deps", "--no-build-isolation", "--no-binary", "horovod", "--no-cache-dir"]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command, "-w", str(out), f"horovod=={HOROVOD}"],
                env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode:
            kept = cache_folder() / "horovod-build.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, kept)
            raise SetupError(
                f"Horovod {HOROVOD} did not build on TensorFlow {version}. The first errors were:\n"
                f"{_first_errors(kept)}\nThe whole output is in {kept}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (wheel,) = out.glob("horovod-*.whl")
        unfinished = folder / f"{wheel.name}.{os.getpid()}"  # renamed when whole: another build may be looking
        shutil.copy(wheel, unfinished)
        return unfinished.rename(folder / wheel.name)


def _include_path(headers: Path) -> list[str]:
    """Folders that let Horovod's includes find what TensorFlow ships under other names."""
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    assert spec.origin is not None
    include = Path(spec.origin).parent / "include"
    for wanted, places in MOVED_HEADERS.items():
        target = next((place for place in places if (include / place).exists()), None)
        if not (include / wanted).exists() and target:
            header = headers / wanted
            header.parent.mkdir(parents=True)
            header.write_text(f'#include "{target}"\n')
    headers.mkdir(exist_ok=True)
    return [str(headers), *(str(include / place) for place in EXTERNAL_HEADERS)]


def _first_errors(log: Path, count: int = 5) -> str:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line.lower() or "fatal" in line.lower()]
    return "\n".join(f"  {line.strip()}" for line in (errors or lines[-count:])[:count])


def _pip(arguments: list[str]) -> None:
    """Run pip in this environment; a registry that lacks one of several places to look is no news to the user."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "-q"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SetupError(f"pip {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def _platform() -> str:
    return f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}".lower()


def _stamp_file() -> Path:
    return Path(sysconfig.get_paths()["purelib"]) / "cos_ml_horovod_build.txt"


def _stamp(version: str) -> None:
    """Remember which TensorFlow this environment's Horovod was built for: its C++ interface differs by version."""
    _stamp_file().write_text(f"horovod {HOROVOD} tensorflow {version}\n")


def _installed_for(version: str) -> bool:
    if importlib.util.find_spec("horovod") is None or not _stamp_file().exists():
        return False
    return _stamp_file().read_text() == f"horovod {HOROVOD} tensorflow {version}\n"


def _dotted(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
