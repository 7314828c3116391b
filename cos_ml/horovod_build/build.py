"""Build and install Horovod for the TensorFlow of this environment (driver side; behind ``cos-ml install-horovod``).

Horovod 0.28.1 comes as source only, and was written before TensorFlow moved some of the headers that it includes.
Forwarding headers and include paths, in a folder of this build's own, are what TensorFlow 2.16 to 2.21 need, and five
places of its source have to read otherwise (``CHANGES``).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_ml.errors import SetupError

__all__ = ["HOROVOD", "TENSORFLOWS", "cache_folder", "find_cuda", "install", "missing_tools", "tensorflow_version"]

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


@dataclass(frozen=True)
class Change:
    """Of Horovod's source: what is added in ``file`` behind the one place that reads ``after``."""

    file: str
    after: str
    added: str


CHANGES = (
    # The process set of all ranks, which every collective uses, forgets HOROVOD_GLOO_IFACE: ranks call each other at
    # the address of their own host's name, and on many hosts that is 127.0.1.1.
    Change(
        "horovod/common/gloo/gloo_context.cc",
        "  assert(global_context.IsEnabled());\n",
        "  gloo_iface_ = global_context.gloo_iface_;\n",
    ),
    # TensorFlow 2.16 to 2.21 do not export the function that Horovod declares here; their streams tell by themselves.
    Change(
        "horovod/tensorflow/mpi_ops.cc",
        '#include "tensorflow/compiler/xla/stream_executor/stream.h"\n',
        "namespace stream_executor { namespace gpu {\n"
        "inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
        "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
        "}\n"
        "}}\n",
    ),
    # Kernels that Horovod registers with HOROVOD_ENABLE_XLA_OPS=1 alone, for an XLA of long ago.
    Change(
        "horovod/tensorflow/xla_mpi_ops.cc",
        '#include "tensorflow/core/platform/human_readable_json.h"\n',
        "#undef HAVE_GPU\n",
    ),
    # Of CUDA's runtime, the one that nvcc belongs to: without, TensorFlow's of another release would be found.
    Change(
        "horovod/common/ops/cuda/CMakeLists.txt",
        "add_library(horovod_cuda_kernels cuda_kernels.cu)\n",
        "target_link_libraries(horovod_cuda_kernels PUBLIC CUDA::cudart_static)\n",
    ),
    # No folder of the build in the libraries that come of it.
    Change("CMakeLists.txt", "project(horovod CXX)\n", "set(CMAKE_SKIP_RPATH ON)\n"),
)

# With --gpu. TensorFlow loads NCCL from the same wheel; both lie in site-packages, wherever that moves.
NCCL_SETTINGS = {
    "HOROVOD_GPU": "CUDA",
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../nvidia/nccl/lib'",
}


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


def check_tensorflow_loads(version: str, gpu: bool = False) -> None:
    """Raises SetupError where TensorFlow can't be imported, as beside a NumPy that is too new, or is for CPUs only."""
    program = "import tensorflow as tf; print(tf.sysconfig.get_build_info().get('cuda_version', ''))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(
            f"TensorFlow {version} is installed, and can't be imported: {last} To see what does not fit: pip check"
        )
    if gpu and not done.stdout.strip():
        raise SetupError(
            f"TensorFlow {version} is one for CPUs only, and Horovod with NCCL needs one for CUDA: pip uninstall "
            "tensorflow-cpu, then pip install 'cos-ml[gpu]'."
        )


def cache_folder() -> Path:
    """Where built wheels are kept: $COS_ML_CACHE, else the user's own cache folder."""
    base = os.environ.get("COS_ML_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cos_ml"


def install(force: bool = False, gpu: bool = False) -> None:
    """Install Horovod into this environment, from the cache or by a build, and prove it with an allreduce.

    Args:
        force: build again even where Horovod works already or a built wheel is cached.
        gpu: with NCCL, for allreduce between GPUs; CPUs use Gloo in either.

    Raises:
        SetupError: something is missing, the build failed, or the allreduce gave a wrong result.
    """
    version = tensorflow_version()
    if not force and _installed_for(version, gpu):
        print(f"Horovod {HOROVOD} for TensorFlow {version}{' and NCCL' if gpu else ''} is installed already.")
        check(gpu)
        return
    folder = cache_folder() / "wheels" / f"horovod-{_variant(gpu)}-tensorflow-{version}-{_platform()}"
    wheels = [] if force else sorted(folder.glob("horovod-*.whl"))
    if wheels:
        print(f"Using the Horovod wheel built before: {wheels[0]}")
    else:
        wheels = [_build(version, folder, gpu)]
    _pip(["install", "--force-reinstall", "--no-deps", str(wheels[0])])
    _pip(["install", str(wheels[0])])  # its dependencies, where they are missing
    check(gpu)
    _stamp(version, gpu)


def check(gpu: bool = False) -> None:
    """Run an allreduce between two ranks on this machine, on its CPUs, and compare its result.

    Args:
        gpu: Horovod has to be one with NCCL.

    Raises:
        SetupError: Horovod does not load, or what it computes is wrong.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cos_ml.horovod_build.check"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SetupError(f"Horovod is installed but does not work:\n{(done.stdout + done.stderr)[-4000:]}")
    if gpu and "NCCL True" not in done.stdout:
        raise SetupError(f"Horovod was built without NCCL: {done.stdout.strip()}")
    print(done.stdout, end="")


@dataclass(frozen=True)
class Cuda:
    """What a build with NCCL finds on this machine.

    Attributes:
        home: of the CUDA toolkit, with bin/nvcc.
        nccl: of NCCL, with include/nccl.h; None where the toolkit's or the system's own folders have it.
    """

    home: Path
    nccl: Path | None


def find_cuda() -> Cuda:
    """The CUDA toolkit of this machine, and the NCCL that TensorFlow's GPU wheels brought, or the system's.

    Raises:
        SetupError: one of them is not here.
    """
    homes = [os.environ.get(name) for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    places = [*filter(None, homes), "/usr/local/cuda", *([str(Path(nvcc).resolve().parents[1])] if nvcc else [])]
    home = next((Path(place) for place in places if Path(place, "bin/nvcc").exists()), None)
    if home is None:
        raise SetupError(
            "Horovod with NCCL is compiled with NVIDIA's nvcc, which is not here (looked in $HOROVOD_CUDA_HOME, "
            "$CUDA_HOME, /usr/local/cuda and $PATH). Install the CUDA toolkit of your TensorFlow's CUDA release "
            "(Debian, Ubuntu, with NVIDIA's repository: apt-get install cuda-toolkit-12-9), or set CUDA_HOME."
        )
    own = os.environ.get("HOROVOD_NCCL_HOME")
    spec = importlib.util.find_spec("nvidia") if own is None else None
    wheels = [Path(place, "nccl") for place in (spec.submodule_search_locations or ())] if spec else []
    for nccl in [Path(own)] if own else wheels:
        if (nccl / "include/nccl.h").exists():
            return Cuda(home, nccl)
    if own is None and any(Path(place, "nccl.h").exists() for place in (home / "include", "/usr/include")):
        return Cuda(home, None)
    raise SetupError(
        f"NCCL is not here: no nccl.h in {'$HOROVOD_NCCL_HOME/include' if own else 'the nvidia-nccl wheel'}, in "
        f"{home}/include or in /usr/include. TensorFlow's GPU wheels bring it: pip install 'cos-ml[gpu]'."
    )


def _nccl_settings(scratch: Path) -> dict[str, str]:
    """The environment of a build with NCCL; a wheel's library gets the name that the linker looks for."""
    cuda = find_cuda()
    settings = NCCL_SETTINGS | {"HOROVOD_CUDA_HOME": str(cuda.home)}
    print(f"CUDA: {_cuda_release(cuda.home)} in {cuda.home}. NCCL: {cuda.nccl or 'the system'}.", flush=True)
    if cuda.nccl is not None:
        links = scratch / "nccl"
        links.mkdir()
        (links / "libnccl.so").symlink_to(sorted((cuda.nccl / "lib").glob("libnccl.so*"))[0])
        settings |= {"HOROVOD_NCCL_INCLUDE": str(cuda.nccl / "include"), "HOROVOD_NCCL_LIB": str(links)}
    return settings


def _cuda_release(home: Path) -> str:
    done = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "of unknown release"


def _source(scratch: Path, environment: dict[str, str], output: Any) -> Path:
    """Horovod's source, with ``CHANGES``.

    Raises:
        SetupError: it can't be had, or is not the one that the changes are for.
    """
    command = ["download", "--no-deps", "--no-build-isolation", "--no-binary", "horovod", "--no-cache-dir"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "-d", str(scratch / "source"), f"horovod=={HOROVOD}"],
        env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    archives = list((scratch / "source").glob("horovod-*.tar.gz"))
    if done.returncode or not archives:
        raise SetupError(f"pip could not download the source of Horovod {HOROVOD}:\n{_tail(Path(output.name))}")
    with tarfile.open(archives[0]) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # CPython has none before 3.11.4
        archive.extractall(scratch / "source")
    source = scratch / "source" / f"horovod-{HOROVOD}"
    for change in CHANGES:
        text = (source / change.file).read_text()
        if text.count(change.after) != 1:
            raise SetupError(f"The source of Horovod is not that of {HOROVOD}: {change.file} reads otherwise.")
        (source / change.file).write_text(text.replace(change.after, change.after + change.added))
    return source


def _build(version: str, folder: Path, gpu: bool = False) -> Path:
    missing = missing_tools()
    if missing:
        raise SetupError("Horovod is compiled on this machine, which lacks:\n  " + "\n  ".join(missing))
    check_tensorflow_loads(version, gpu)
    print(f"Building Horovod {HOROVOD} for TensorFlow {version}: about 2 minutes on 2 cores ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="cos_ml-horovod-") as scratch:
        tools, headers, out = (Path(scratch, name) for name in ("tools", "headers", "out"))
        _pip(["install", "--target", str(tools), *BUILD_TOOLS])
        log = Path(scratch, "build.log")
        settings = BUILD_SETTINGS | (_nccl_settings(Path(scratch)) if gpu else {})
        environment = os.environ | settings | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")])),
            "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CPLUS_INCLUDE_PATH": os.pathsep.join(_include_path(headers)),
            "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        }  # fmt: skip
        with log.open("w") as output:
            source = _source(Path(scratch), environment, output)
            done = subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", out, source],
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


def _tail(log: Path, count: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


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


def _variant(gpu: bool) -> str:
    """What a built wheel is the build of: the version, the changes to it, and whether it has NCCL."""
    changes = hashlib.sha256(json.dumps([vars(change) for change in CHANGES]).encode()).hexdigest()[:8]
    return f"{HOROVOD}-{changes}{'-nccl' if gpu else ''}"


def _stamp_file() -> Path:
    return Path(sysconfig.get_paths()["purelib"]) / "cos_ml_horovod_build.txt"


def _stamp(version: str, gpu: bool) -> None:
    """Remember which TensorFlow this environment's Horovod was built for: its C++ interface differs by version."""
    _stamp_file().write_text(_stamp_of(version, gpu))


def _stamp_of(version: str, gpu: bool) -> str:
    return f"horovod {_variant(gpu)} tensorflow {version}\n"


def _installed_for(version: str, gpu: bool) -> bool:
    """Whether Horovod is here already; one with NCCL does for CPUs too."""
    if importlib.util.find_spec("horovod") is None or not _stamp_file().exists():
        return False
    return _stamp_file().read_text() in {_stamp_of(version, True), _stamp_of(version, gpu)}


def _dotted(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
