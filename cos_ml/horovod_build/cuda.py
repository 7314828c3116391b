"""Finds CUDA and NCCL for a build of Horovod for GPUs (driver side)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cos_ml.errors import SetupError

__all__ = ["Cuda", "find_cuda", "nccl_settings"]

# With --gpu. TensorFlow loads NCCL from the same wheel; the path is relative, as both are in site-packages.
NCCL_SETTINGS = {
    "HOROVOD_GPU": "CUDA",
    "HOROVOD_GPU_OPERATIONS": "NCCL",
    "HOROVOD_NCCL_LINK": "SHARED",
    "LDFLAGS": "-Wl,-rpath,'$ORIGIN/../../nvidia/nccl/lib'",
}


@dataclass(frozen=True)
class Cuda:
    """The libraries for a build with NCCL.

    Attributes:
        home: the folder of the CUDA toolkit, with bin/nvcc.
        nccl: the folder of NCCL, with include/nccl.h; None if it is in the toolkit's or the system's folders.
    """

    home: Path
    nccl: Path | None


def find_cuda() -> Cuda:
    """Find the CUDA toolkit of this machine, and the NCCL that TensorFlow's GPU wheels installed, or the system's.

    Raises:
        SetupError: one of them is missing.
    """
    homes = [os.environ.get(name) for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    folders = [*filter(None, homes), "/usr/local/cuda", *([str(Path(nvcc).resolve().parents[1])] if nvcc else [])]
    home = next((Path(folder) for folder in folders if Path(folder, "bin/nvcc").exists()), None)
    if home is None:
        raise SetupError(
            "Horovod with NCCL is compiled with NVIDIA's nvcc, which was not found in $HOROVOD_CUDA_HOME, $CUDA_HOME, "
            "/usr/local/cuda and $PATH. Install the CUDA toolkit of your TensorFlow's CUDA release "
            "(Debian, Ubuntu, with NVIDIA's repository: apt-get install cuda-toolkit-12-9), or set CUDA_HOME."
        )
    own = os.environ.get("HOROVOD_NCCL_HOME")
    spec = importlib.util.find_spec("nvidia") if own is None else None
    wheels = [Path(folder, "nccl") for folder in (spec.submodule_search_locations or ())] if spec else []
    for nccl in [Path(own)] if own else wheels:
        if (nccl / "include/nccl.h").exists():
            return Cuda(home, nccl)
    if own is None and any(Path(folder, "nccl.h").exists() for folder in (home / "include", "/usr/include")):
        return Cuda(home, None)
    raise SetupError(
        f"NCCL was not found: no nccl.h in {'$HOROVOD_NCCL_HOME/include' if own else 'the nvidia-nccl wheel'}, in "
        f"{home}/include or in /usr/include. TensorFlow's GPU wheels install it: pip install 'cos-ml[gpu]'."
    )


def nccl_settings(scratch: Path) -> dict[str, str]:
    """Variables for a build with NCCL; a wheel's library is linked under the name that the linker expects."""
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
