"""What the results of a training depend on in this machine's processor (every side)."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["LIMIT", "OPERATIONS", "instruction_set"]

# Environment variables: which instructions oneDNN may use, in TensorFlow's products of matrices, too, and whether its
# own operations replace TensorFlow's. They do by default where a processor has one of these.
LIMIT, OPERATIONS = "ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS"
ONEDNN_DEFAULT = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}

# oneDNN's names, as in LIMIT, and the flags that Linux shows; the newest first. Results in float32 differ between
# these; the extensions of AVX512_CORE and AVX2 are for bfloat16 and integers.
LEVELS = {
    "AVX512_CORE": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "AVX2": {"avx2", "fma"},
    "AVX": {"avx"},
    "SSE41": {"sse4_1"},
}


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The architecture, the newest instructions that oneDNN uses here, and whether its operations are on.

    Such as "x86_64 AVX512_CORE oneDNN"; where the flags of the processor are unknown, the architecture alone.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    limit, names = os.environ.get(LIMIT, "").upper(), list(LEVELS)
    newest = next((at for at, name in enumerate(names) if limit.startswith(name)), 0)
    level = next((name for name in names[newest:] if LEVELS[name] <= flags), "")
    chosen = os.environ.get(OPERATIONS, "").lower()
    operations = chosen in ("1", "true") if chosen else bool(ONEDNN_DEFAULT & flags)
    return " ".join([platform.machine(), *([level] if level else []), *(["oneDNN"] if operations else [])])
