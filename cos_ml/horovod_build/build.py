"""Builds and installs Horovod for this environment's TensorFlow: ``cos-ml install-horovod`` (driver side).

Horovod 0.28.1 is published as source only, and was written before TensorFlow moved some of the headers that it
includes. With TensorFlow 2.16 to 2.21 it builds with forwarding headers, more include paths, and a few changes to its
source (``CHANGES``).
"""

from __future__ import annotations

import hashlib
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
from cos_ml.horovod_build import cuda
from cos_ml.versions import TENSORFLOW, version_of

__all__ = [
    "HOROVOD",
    "TENSORFLOWS",
    "cache_folder",
    "check_version",
    "install",
    "local_version",
    "missing_tools",
    "pip",
    "tensorflow_version",
]

HOROVOD = "0.28.1"
TENSORFLOWS = ((2, 16), (2, 21))  # first and last minor version that has Keras 3 and is tested to build

# Horovod's CMake files need a CMake before 4, and its setup.py needs a setuptools before 80.
BUILD_TOOLS = ("setuptools<80", "wheel", "cmake==3.31.6")

BUILD_SETTINGS = {
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
}

# A header that Horovod includes -> its path in the versions of TensorFlow, newest first.
MOVED_HEADERS = {
    "tensorflow/compiler/xla/client/xla_builder.h": ("xla/hlo/builder/xla_builder.h", "xla/client/xla_builder.h")
}
EXTERNAL_HEADERS = ("external/highwayhash", "external/farmhash_archive/src")


@dataclass(frozen=True)
class Change:
    """A change to Horovod's source.

    Attributes:
        file: the file that is changed.
        after: the text, found once in the file, after which text is added.
        added: the text that is added.
    """

    file: str
    after: str
    added: str


CHANGES = (
    # The process set of all ranks, which every collective uses, ignores HOROVOD_GLOO_IFACE: ranks connect to each other
    # at the address of their own host's name, which is 127.0.1.1 on many hosts.
    Change(
        "horovod/common/gloo/gloo_context.cc",
        "  assert(global_context.IsEnabled());\n",
        "  gloo_iface_ = global_context.gloo_iface_;\n",
    ),
    # Gloo takes the first address of an interface, of either family: ranks listen at the one that their task has found.
    Change(
        "third_party/gloo/gloo/transport/tcp/device.cc",
        "struct attr CreateDeviceAttr(const struct attr& src) {\n  struct attr attr = src;\n",
        """\
  if (const char* address = getenv("COS_ML_GLOO_ADDRESS")) {
    attr.iface.clear();
    attr.hostname = address;
  }
""",
    ),
    # Gloo listens on any port, a new one for each other rank: with a range, on a free one of it.
    Change(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "constexpr size_t kMaxRecvBufferSize = 32 * 1024 * 1024;\n",
        """
// Listens on a free port of a range such as "40000-40099"; returns -1 if there is none.
int listenInRange(const struct attr& attr, const char* range) {
  unsigned low = 0, high = 0;
  if (sscanf(range, "%u-%u", &low, &high) != 2 || low > high) {
    return -1;
  }
  const unsigned count = high - low + 1;
  const unsigned first = std::random_device()();  // or else the ranks of a host would all try the same ports
  for (unsigned tried = 0; tried < count; tried++) {
    struct sockaddr_storage address = attr.ai_addr;
    const auto port = htons(low + (first % count + tried) % count);
    if (attr.ai_family == AF_INET6) {
      ((struct sockaddr_in6*)&address)->sin6_port = port;
    } else {
      ((struct sockaddr_in*)&address)->sin_port = port;
    }
    const int fd = socket(attr.ai_family, attr.ai_socktype, attr.ai_protocol);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (const sockaddr*)&address, attr.ai_addrlen) == 0 && ::listen(fd, 1024) == 0) {
      return fd;
    }
    ::close(fd);
  }
  return -1;
}
""",
    ),
    Change(
        "third_party/gloo/gloo/transport/tcp/pair.cc", "#include <array>\n", "#include <cstdio>\n#include <random>\n"
    ),
    Change(
        "third_party/gloo/gloo/transport/tcp/pair.cc",
        "  const auto& attr = device_->attr_;\n",
        """\
  if (const char* range = getenv("COS_ML_PORT_RANGE")) {
    fd_ = listenInRange(attr, range);
    if (fd_ == FD_INVALID) {
      signalAndThrowException(GLOO_ERROR_MSG("no port to listen on is free in the range ", range));
    }
    self_ = Address::fromSockName(fd_);
    changeState(LISTENING);
    device_->registerDescriptor(fd_, EPOLLIN, this);
    return;
  }
""",
    ),
    # TensorFlow 2.16 to 2.21 do not export the function that Horovod declares here; their streams have the handle.
    Change(
        "horovod/tensorflow/mpi_ops.cc",
        '#include "tensorflow/compiler/xla/stream_executor/stream.h"\n',
        "namespace stream_executor { namespace gpu {\n"
        "inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
        "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
        "}\n"
        "}}\n",
    ),
    # Without kernels that Horovod registers only with HOROVOD_ENABLE_XLA_OPS=1, and that need an old XLA.
    Change(
        "horovod/tensorflow/xla_mpi_ops.cc",
        '#include "tensorflow/core/platform/human_readable_{}.h"\n'.format("json"),  # see test_architecture's JVM names
        "#undef HAVE_GPU\n",
    ),
    # With the CUDA runtime of this nvcc: that of TensorFlow, of another release, would be found otherwise.
    Change(
        "horovod/common/ops/cuda/CMakeLists.txt",
        "add_library(horovod_cuda_kernels cuda_kernels.cu)\n",
        "target_link_libraries(horovod_cuda_kernels PUBLIC CUDA::cudart_static)\n",
    ),
    # Without paths of the build's folder in the libraries.
    Change("CMakeLists.txt", "project(horovod CXX)\n", "set(CMAKE_SKIP_RPATH ON)\n"),
)


def tensorflow_version() -> str:
    """Version of the TensorFlow installed here, found without importing it.

    Raises:
        SetupError: none is installed, or Horovod does not build on it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise SetupError(
            "TensorFlow is not installed in this environment. Horovod is built against it, so install it first: "
            "pip install 'cos-ml[cpu]' (or 'cos-ml[gpu]')."
        )
    version = version_of(*TENSORFLOW)
    if version is None:
        raise SetupError("TensorFlow can be imported, but no package records its version. Install it with pip.")
    check_version(version)
    return version


def check_version(version: str) -> None:
    """Check that Horovod builds on this version of TensorFlow.

    Raises:
        SetupError: it doesn't, or nobody has tried.
    """
    minor = tuple(int(part) for part in version.split(".")[:2])
    first, last = (".".join(map(str, one)) for one in TENSORFLOWS)
    if TENSORFLOWS[0] <= minor <= TENSORFLOWS[1]:
        return
    if minor < TENSORFLOWS[0]:
        problem = f"TensorFlow {version} has Keras 2, but cos_ml needs Keras 3"
    else:
        problem = f"Horovod {HOROVOD} is not tested with TensorFlow {version}"
    raise SetupError(
        f"{problem}: expected TensorFlow {first} to {last}. Install one with: pip install 'tensorflow-cpu=={last}.*'"
    )


def missing_tools() -> list[str]:
    """The tools that compile Horovod and are missing on this machine, each with the command that installs it."""
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
    """Check that TensorFlow can be imported, which it can't with a NumPy that is too new.

    Raises:
        SetupError: it can't, or it is for CPUs only although ``gpu`` is set.
    """
    program = "import tensorflow as tf; print(tf.sysconfig.get_build_info().get('cuda_version', ''))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(
            f"TensorFlow {version} is installed, but can't be imported: {last} To find the conflict, run: pip check"
        )
    if gpu and not done.stdout.strip():
        raise SetupError(
            f"TensorFlow {version} is built for CPUs only, but Horovod with NCCL needs one built for CUDA. Run: pip "
            "uninstall tensorflow-cpu, then pip install 'cos-ml[gpu]'."
        )


def cache_folder() -> Path:
    """The folder of built wheels: in $COS_ML_CACHE, or in the user's cache folder."""
    base = os.environ.get("COS_ML_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cos_ml"


def local_version(tensorflow: str, gpu: bool = False) -> str:
    """What tells builds of Horovod apart, as the local part of their version: tf2.21.0.c371f7795, or tf2.21.0.nccl....

    The last part stands for the changes to Horovod's source.
    """
    changes = hashlib.sha256(json.dumps([vars(change) for change in CHANGES]).encode()).hexdigest()[:8]
    return f"tf{re.sub('[^a-z0-9]+', '.', tensorflow.lower())}.{'nccl.' if gpu else ''}c{changes}"


def install(
    force: bool = False, gpu: bool = False, find_links: str | None = None, folder: str | Path | None = None
) -> None:
    """Install Horovod into this environment, from a wheel or by a build, and check it with an allreduce.

    Args:
        force: install even if Horovod is installed, and build even if a wheel is cached.
        gpu: with NCCL, for allreduce between GPUs; CPUs use Gloo in either case.
        find_links: where pip finds the wheel: a folder, or the URL of a page with links. Nothing is built then.
        folder: where built wheels are and go. None: in the cache.

    Raises:
        SetupError: something is missing, the build failed, or the allreduce gave a wrong result.
    """
    version = tensorflow_version()
    if not force and _installed_for(version, gpu):
        print(f"Horovod {HOROVOD} for TensorFlow {version}{' and NCCL' if gpu else ''} is already installed.")
        check(gpu)
        return
    if find_links is None:
        wheel = str(_wheel(version, gpu, Path(folder or cache_folder() / "wheels"), force))
        pip(["install", "--force-reinstall", "--no-deps", wheel])
        pip(["install", wheel])  # its missing dependencies
    else:
        _install_found(version, gpu, find_links)
    check(gpu)


def _install_found(version: str, gpu: bool, find_links: str) -> None:
    """Install a wheel that pip finds, by its exact version: no index has another one of that version.

    Raises:
        SetupError: there is none for this TensorFlow, Python and platform.
    """
    wanted = f"horovod=={HOROVOD}+{local_version(version, gpu)}"
    source = ["--only-binary", "horovod", "--find-links", find_links, wanted]
    try:
        pip(["install", "--force-reinstall", "--no-deps", "--no-index", *source])
    except SetupError as error:
        raise SetupError(
            f"pip installed no wheel of {wanted} for {_platform()} from {find_links}. Build one on a machine with a "
            f"compiler: cos-ml horovod-wheels --tensorflow {version}{' --gpu' if gpu else ''}\n{error}"
        ) from error
    pip(["install", *source])  # its missing dependencies, from the usual index


def _wheel(version: str, gpu: bool, folder: Path, force: bool) -> Path:
    """The wheel in ``folder`` for this TensorFlow, Python and platform; built if there is none, or by ``force``."""
    pattern = f"horovod-{HOROVOD}+{local_version(version, gpu)}-{_platform()}.whl"
    found = [] if force else sorted(folder.glob(pattern))
    if not found:
        return _build(version, folder, gpu)
    print(f"Using the wheel {found[0]}")
    return found[0]


def check(gpu: bool = False) -> None:
    """Run an allreduce between two ranks on this machine's CPUs, and check the result.

    Args:
        gpu: whether Horovod must have NCCL.

    Raises:
        SetupError: Horovod can't be loaded, or its result is wrong.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cos_ml.horovod_build.check"], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SetupError(f"Horovod is installed, but does not work:\n{(done.stdout + done.stderr)[-4000:]}")
    if gpu and "NCCL True" not in done.stdout:
        raise SetupError(f"Horovod was built without NCCL: {done.stdout.strip()}")
    print(done.stdout, end="")


def _source(scratch: Path, environment: dict[str, str], output: Any) -> Path:
    """Download Horovod's source, and make ``CHANGES``.

    Raises:
        SetupError: pip can't download it, or it is not the source that the changes are for.
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
            raise SetupError(f"The source of Horovod is not that of {HOROVOD}: {change.file} differs.")
        (source / change.file).write_text(text.replace(change.after, change.after + change.added))
    return source


def _build(version: str, folder: Path, gpu: bool = False) -> Path:
    missing = missing_tools()
    if missing:
        raise SetupError("Horovod is compiled on this machine, but these are missing:\n  " + "\n  ".join(missing))
    check_tensorflow_loads(version, gpu)
    print(f"Building Horovod {HOROVOD} for TensorFlow {version}: about 2 minutes on 2 cores ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="cos_ml-horovod-") as scratch:
        tools, headers, out = (Path(scratch, name) for name in ("tools", "headers", "out"))
        pip(["install", "--target", str(tools), *BUILD_TOOLS])
        log = Path(scratch, "build.log")
        settings = BUILD_SETTINGS | (cuda.nccl_settings(Path(scratch)) if gpu else {})
        environment = os.environ | settings | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")])),
            "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CPLUS_INCLUDE_PATH": os.pathsep.join(_include_path(headers)),
            "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        }  # fmt: skip
        with log.open("w") as output:
            source = _source(Path(scratch), environment, output)
            environment |= {"HOROVOD_LOCAL_VERSION": local_version(version, gpu)}  # not before: pip would reject it
            done = subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", out, source],
                env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode:
            saved = cache_folder() / "horovod-build.log"
            saved.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, saved)
            raise SetupError(
                f"Horovod {HOROVOD} did not build on TensorFlow {version}. The first errors were:\n"
                f"{_first_errors(saved)}\nThe whole output is in {saved}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (wheel,) = out.glob("horovod-*.whl")
        unfinished = folder / f"{wheel.name}.{os.getpid()}"  # renamed once complete: another process may look for it
        shutil.copy(wheel, unfinished)
        return unfinished.rename(folder / wheel.name)


def _include_path(headers: Path) -> list[str]:
    """The folders in which Horovod's includes find headers that TensorFlow has under other names."""
    spec = importlib.util.find_spec("tensorflow")
    assert spec is not None
    assert spec.origin is not None
    include = Path(spec.origin).parent / "include"
    for wanted, moved in MOVED_HEADERS.items():
        target = next((path for path in moved if (include / path).exists()), None)
        if not (include / wanted).exists() and target:
            header = headers / wanted
            header.parent.mkdir(parents=True)
            header.write_text(f'#include "{target}"\n')
    headers.mkdir(exist_ok=True)
    return [str(headers), *(str(include / path) for path in EXTERNAL_HEADERS)]


def _first_errors(log: Path, count: int = 5) -> str:
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line.lower() or "fatal" in line.lower()]
    return "\n".join(f"  {line.strip()}" for line in (errors or lines[-count:])[:count])


def _tail(log: Path, count: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def pip(arguments: list[str], python: str | Path = sys.executable) -> None:
    """Run the pip of an environment, this one's by default, and show its output only if it fails.

    Raises:
        SetupError: it fails.
    """
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments, "-q"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SetupError(f"pip {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def _platform() -> str:
    """The tags of a wheel for this Python and platform, with * for what differs between systems."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{python}-{python}{sys.abiflags}-{platform.system().lower()}*{platform.machine()}"


def _installed_for(version: str, gpu: bool) -> bool:
    """Whether Horovod is installed for this TensorFlow; a build with NCCL also serves CPUs."""
    return version_of("horovod") in {f"{HOROVOD}+{local_version(version, nccl)}" for nccl in {gpu, True}}
