"""Which GPU a rank uses: the one that Spark gave its task, and no other (driver, task, rank and scoring side)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cos_ml.errors import ClusterError, InvalidInputError, RankError

__all__ = ["check", "environment", "is_exclusive", "profile", "show_to_task", "use"]

TASK, EXECUTOR = "spark.task.resource.gpu.amount", "spark.executor.resource.gpu.amount"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
PCI = "PCI_BUS_ID"  # the order in which nvidia-smi, and so discovery scripts, count; CUDA's own begins with the fastest


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(settings: Any, wanted: bool) -> str:
    """What GPUs the ranks will have, as a text.

    Args:
        settings: Spark's, by ``get(name, default)``.
        wanted: whether they shall train on GPUs.

    Raises:
        ClusterError: GPUs are asked for, and Spark was given none to hand out, or hands out other than one a task.
    """
    if not wanted:
        return "not asked for: ranks train on CPUs (Param useGpu)"
    each, offered = settings.get(TASK, None), settings.get(EXECUTOR, None)
    if _local(settings) and not each:
        return "useGpu=True on a local master: ranks take the GPUs that this machine shows, in their order"
    if not offered:
        raise ClusterError(
            f"useGpu=True, and Spark has no GPUs to hand out: {EXECUTOR} is not set. Start the application with "
            f"--conf {EXECUTOR}=N for N GPUs in each executor, and with spark.executor.resource.gpu.discoveryScript "
            "unless the cluster manager has one."
        )
    if each and float(each) != 1:
        raise ClusterError(
            f"useGpu=True, and {TASK}={each}: a rank uses exactly one GPU, and shares it with no other. Set it to 1, "
            "or not at all: the training then asks for its GPUs by itself."
        )
    how = "as every task has" if each else "for the training alone (stage-level scheduling)"
    return f"1 for each rank, {how}; {offered} in each executor"


def is_exclusive(settings: Any, wanted: bool) -> bool:
    """Whether fits side by side would take the same GPUs: where Spark hands out none, each counts from the first."""
    return wanted and not settings.get(TASK, None) and (_local(settings) or not settings.get(EXECUTOR, None))


def profile(settings: Any, wanted: bool) -> Any:
    """A ResourceProfile of one GPU a task, where only the training asks for GPUs; else None, Spark's default."""
    if not wanted or settings.get(TASK, None) or not settings.get(EXECUTOR, None) or _local(settings):
        return None
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cpus = int(settings.get("spark.task.cpus", "1") or 1)
    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(cpus).resource("gpu", 1)).build


def _local(settings: Any) -> bool:
    """Whether the tasks run in the driver's JVM, where what is said of executors (in a cluster's defaults) is void."""
    return re.match(r"local(\[|$)", settings.get("spark.master", None) or "") is not None


# ── task ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def environment(
    wanted: bool, addresses: Sequence[str] | None, local_rank: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The variables that show a rank its GPU, to be set before TensorFlow loads.

    Args:
        wanted: whether it shall train on one.
        addresses: what Spark gave its task, indices or UUIDs; None where Spark does not hand out GPUs.
        local_rank: among the ranks of this host.
        inherited: the task's own environment.

    Raises:
        InvalidInputError: Spark gave it none or several, or there are fewer GPUs than ranks on this host.
    """
    if not wanted:
        return {VISIBLE: "-1"}
    if addresses is None:
        visible = inherited.get(VISIBLE)  # "" hides all
        listed = None if visible is None else [one.strip() for one in visible.split(",") if one.strip()]
        if listed is not None and local_rank >= len(listed):
            raise InvalidInputError(
                f"useGpu=True, and {VISIBLE}={visible} shows {len(listed)} GPUs to the ranks of this host, "
                f"of which there are more: two ranks never share one. Set "
                + (f"numTrainWorkers to {len(listed)}." if listed else "useGpu=False.")
            )
        if listed is not None:  # counted in whatever order was meant
            return {VISIBLE: listed[local_rank]}
        addresses = [str(local_rank)]
    if len(addresses) != 1:
        raise InvalidInputError(f"useGpu=True, and Spark gave this task the GPUs {list(addresses)}: expected one.")
    return {VISIBLE: addresses[0], ORDER: inherited.get(ORDER, PCI)}


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def use(wanted: bool, tf: Any) -> None:
    """Let TensorFlow take memory of this rank's GPU as it needs it.

    Args:
        wanted: whether the rank shall train on one.
        tf: TensorFlow, before it has used a device.

    Raises:
        RankError: TensorFlow does not see exactly one; it would train on the CPU, or on another rank's.
    """
    if not wanted:
        return
    seen = tf.config.list_physical_devices("GPU")
    if len(seen) != 1:
        built = "is" if tf.test.is_built_with_cuda() else "is not"
        raise RankError(
            f"useGpu=True, and TensorFlow {tf.__version__} sees {len(seen) or 'no'} GPU{'s' if len(seen) > 1 else ''} "
            f"({VISIBLE}={os.environ.get(VISIBLE)}; this TensorFlow {built} built for CUDA). On every executor, "
            '"nvidia-smi" has to list the GPU, and TensorFlow has to be the one with CUDA: '
            'pip install "tensorflow[and-cuda]". To train on CPUs: useGpu=False.'
        )
    tf.config.experimental.set_memory_growth(seen[0], True)


# ── scoring task ──────────────────────────────────────────────────────────────────────────────────────────────────────


def show_to_task() -> bool:
    """Show TensorFlow, before it loads, the GPU that Spark gave the task of this Python worker; False for none."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assigned = context.resources().get("gpu") if context else None
    if assigned:
        os.environ[VISIBLE] = assigned.addresses[0]
        os.environ.setdefault(ORDER, PCI)
    return bool(assigned)
