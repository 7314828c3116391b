"""The processor of this machine, as far as the results of a training depend on it (every side)."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["LIMIT", "instruction_set"]

LIMIT = "ONEDNN_MAX_CPU_ISA"  # environment variable of oneDNN, TensorFlow's library of kernels for processors

# oneDNN's names, as in LIMIT, and the flags that Linux shows; the newest first. Results in float32 differ between
# these; the extensions of AVX512_CORE and AVX2 are for bfloat16 and integers.
LEVELS = {
    "AVX512_CORE": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "AVX2": {"avx2", "fma"},
    "AVX": {"avx"},
    "SSE41": {"sse4_1"},
}


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The architecture, and the newest instructions that oneDNN uses here if they are known, such as "x86_64 AVX2"."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    limit, names = os.environ.get(LIMIT, "").upper(), list(LEVELS)
    newest = next((at for at, name in enumerate(names) if limit.startswith(name)), 0)
    level = next((name for name in names[newest:] if LEVELS[name] <= flags), "")
    return f"{platform.machine()} {level}".strip()
