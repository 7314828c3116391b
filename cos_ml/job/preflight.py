"""What can be known before ranks train: versions, disk and memory, wherever a rank would run (both sides).

``facts`` runs in each barrier task, before its rank trains, and in the tasks of ``explain``. The driver, or the tasks
among themselves, compare them with what the fit needs.
"""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_ml.data.spool import local_folder
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = [
    "Resources",
    "estimate_resources",
    "executor_facts",
    "format_bytes",
    "resource_warnings",
    "version_mismatch",
]

GB = 1e9
PROCESS = 450e6  # bytes of a rank that has imported TensorFlow and Horovod and loaded nothing
COPIES = 4  # of the weights: themselves, gradients, and two of an optimizer such as Adam
BATCHES = 8  # of rows that wait or are in the making


@dataclass(frozen=True)
class Resources:
    """What one rank takes of its machine, estimated; bytes.

    Attributes:
        memory: at least so much.
        disk: for its rows; None where nobody has counted them.
    """

    memory: float
    disk: float | None = None


def executor_facts() -> dict[str, Any]:
    """This executor, as plain values: host, versions, and bytes of disk and memory that are free."""
    folder = local_folder()
    return {
        "host": socket.gethostname(),
        "versions": shared_versions(),
        "folder": folder,
        "disk": shutil.disk_usage(folder).free,
        "memory": _free_memory(),
    }


def _free_memory() -> float:
    """Bytes that this process and its children may still take: of the machine, or of its container."""
    import psutil

    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # version 2
    try:
        limit = (group / "memory.max").read_text().strip()
        used = float((group / "memory.current").read_text())
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    files = float(kinds.get("inactive_file", 0)) + float(kinds.get("active_file", 0))  # given back where it is needed
    return free if limit == "max" else min(free, float(limit) - used + files)


def version_mismatch(driver: dict[str, str | None], executors: Sequence[dict[str, Any]]) -> str:
    """Which versions are not the driver's, and what to do; "" where all are the same."""
    found = []
    for one in executors:
        there = one["versions"]
        wrong = [
            f"{name} {there[name] or 'missing'} (the driver has {version or 'none'})"
            for name, version in driver.items()
            if there[name] != version and (version or name != "Horovod")
        ]
        if wrong:
            found.append(f"{one['host']}: {', '.join(wrong)}")
    if not found:
        return ""
    return (
        f"The executors' Python environment is not the driver's. {'; '.join(dict.fromkeys(found))}. Let both use one: "
        "set PYSPARK_PYTHON, or spark.pyspark.python, to an environment with these versions on every host, or ship the "
        "driver's with spark.archives."
    )


def estimate_resources(
    spec: TrainSpec,
    weights: float,
    activations: float = 0.0,
    rows: int | None = None,
    ranks: int = 1,
    started: bool = False,
) -> Resources:
    """What a rank will take.

    Args:
        spec: what it trains.
        weights: bytes of the network's.
        activations: bytes of all layers' outputs for one row.
        rows: that all ranks share.
        ranks: how many there are.
        started: whether it has imported TensorFlow already.
    """
    row = sum(8 if column.size is None else column.size * _width(column.dtype) for column in spec.columns)
    batch = spec.batch_size * (row * BATCHES + 2 * activations)  # what a gradient needs of the way there
    process = 0.0 if started else PROCESS
    return Resources(process + COPIES * weights + batch, None if rows is None else math.ceil(rows / ranks) * (row + 8))


def _width(dtype: str) -> int:
    return {"bool": 1, "int64": 8}.get(dtype, 4)


def resource_warnings(need: Resources, executors: Sequence[dict[str, Any]]) -> list[str]:
    """What is too little for a rank on each of these executors, with the remedy; estimates, so no errors."""
    found = []
    for host in dict.fromkeys(one["host"] for one in executors):
        here = [one for one in executors if one["host"] == host]
        memory, disk = min(one["memory"] for one in here), min(one["disk"] for one in here)
        if need.memory * len(here) > memory:
            found.append(
                f"{host} has {format_bytes(memory)} of memory left, and {len(here)} ranks take about "
                f"{format_bytes(need.memory * len(here))}: use fewer ranks a host (spark.executor.cores, numTrainWorkers), a "
                "smaller batchSize, or raise spark.executor.memoryOverhead, which is what a rank's memory comes from."
            )
        if need.disk is not None and need.disk * len(here) > disk:
            found.append(
                f"{host} has {format_bytes(disk)} of disk left in {here[0]['folder']}, and its ranks' rows take about "
                f"{format_bytes(need.disk * len(here))}: give spark.local.dir a larger disk, use more hosts, or "
                'feed="petastorm", which keeps them in cacheDir.'
            )
    return found


def format_bytes(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
