"""Whether ranks fit into executors' containers, which YARN and Kubernetes kill for using more (driver side)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cos_ml.errors import InvalidInputError

__all__ = ["Container", "container", "format_bytes", "problems", "ranks_together"]

MIB = 1 << 20
UNITS = {unit: 1024**power for power, unit in enumerate("bkmgtp")}
WORKER = 200e6  # bytes of Spark's Python worker, which runs a barrier task
SERVER = 400e6  # bytes of a rank server
MAPPED = 3e9  # bytes of address space that TensorFlow maps in a rank; 2.6 GB were seen
OVERHEAD, PYTHON = "spark.executor.memoryOverhead", "spark.executor.pyspark.memory"
MANAGERS = {"yarn": "YARN", "k8s": "Kubernetes"}


@dataclass(frozen=True)
class Container:
    """The container of an executor.

    Attributes:
        manager: who kills it for using more memory than it has.
        size: bytes for all but the JVM's heap, and so for ranks.
        settings: the settings of Spark that say so.
    """

    manager: str
    size: float
    settings: str


def container(settings: Any) -> Container | None:
    """The container that Spark's ``settings`` request for each executor; None where executors have none."""
    manager = MANAGERS.get(re.split(r"\W", settings.get("spark.master", None) or "", maxsplit=1)[0])
    if manager is None:
        return None
    if overhead := settings.get(OVERHEAD, None):
        size, text = _bytes(OVERHEAD, overhead), f"{OVERHEAD}={overhead}"
    else:
        factors = ["spark.executor.memoryOverheadFactor"]
        factors += ["spark.kubernetes.memoryOverheadFactor"] if manager == "Kubernetes" else []
        factor = next((value for name in factors if (value := settings.get(name, None))), "0.1")
        heap = settings.get("spark.executor.memory", None) or "1g"
        least = settings.get("spark.executor.minMemoryOverhead", None) or "384m"
        size = max(float(factor) * _bytes("spark.executor.memory", heap), _bytes("minMemoryOverhead", least))
        default = f"the larger of {float(factor):.0%} of spark.executor.memory={heap} and {least}"
        text = f"{OVERHEAD} is not set, so {default}"
    # On Kubernetes, only for programs that Spark submitted to a pod (cluster mode), and so knows to be Python's.
    counts = manager != "Kubernetes" or settings.get("spark.kubernetes.resource.type", None) == "python"
    if counts and (python := settings.get(PYTHON, None)):
        size, text = size + _bytes(PYTHON, python), f"{text}, and {PYTHON}={python}"
    return Container(manager, size, text)


def ranks_together(settings: Any, ranks: int, executors: Sequence[Mapping[str, Any]] = ()) -> int:
    """The ranks of the fullest container: counted from the facts of ``executors``, else the least that is possible."""
    if executors:
        return max(Counter((one["host"], one.get("container")) for one in executors).values())
    return math.ceil(ranks / max(1, int(settings.get("spark.executor.instances", None) or 2)))


def problems(settings: Any, each: float, together: int, server: bool) -> list[str]:
    """The errors, with what to do, where containers have too little memory for their ranks.

    Args:
        settings: Spark's settings.
        each: bytes that a rank needs.
        together: the ranks of one container.
        server: whether there is a rank server.
    """
    return [text for text in (_too_small(settings, each, together, server), _too_narrow(settings)) if text]


def _too_small(settings: Any, each: float, together: int, server: bool) -> str:
    found, need = container(settings), together * (each + WORKER) + (SERVER if server else 0)
    if found is None or need <= found.size:
        return ""
    advised = math.ceil(need / MIB / 256) * 256
    parts = f"{format_bytes(each)} each, {format_bytes(WORKER)} for its Python worker"
    return (
        f"An executor's ranks ({together}) need about {format_bytes(need)} outside of the JVM ({parts}"
        f"{f', and {format_bytes(SERVER)} for the rank server' if server else ''}), but its container has "
        f"{format_bytes(found.size)} for it ({found.settings}). {found.manager} kills containers that use more. Set "
        f"{OVERHEAD}={advised}m, or use fewer ranks per executor (spark.executor.cores, numTrainWorkers) or a smaller "
        "batchSize."
    )


def _too_narrow(settings: Any) -> str:
    """The error where Spark limits the address space of its Python workers, and so that of ranks."""
    given, cores = settings.get(PYTHON, None), int(settings.get("spark.executor.cores", None) or 1)
    if not given or _bytes(PYTHON, given) / cores >= MAPPED:
        return ""
    return (
        f"{PYTHON}={given} limits the address space of every Python worker, and of its rank, to "
        f"{format_bytes(_bytes(PYTHON, given) / cores)} (spark.executor.cores={cores} share it), but TensorFlow "
        f"maps about {format_bytes(MAPPED)}, most of which it does not use. Leave it unset, and set {OVERHEAD} instead."
    )


def _bytes(name: str, text: str) -> float:
    """A size as Spark writes it, in MiB without a unit.

    Raises:
        InvalidInputError: the text is no size.
    """
    if not (found := re.fullmatch(r"(\d+)\s*([bkmgtp]?)(?:i?b)?", text.strip().lower())):
        raise InvalidInputError(f'{name} is {text!r}; must be a size such as "2g" or "512m".')
    return float(found[1]) * UNITS[found[2] or "m"]


def format_bytes(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
