"""The GPU of each rank: the one that Spark assigned to its task, and no other (driver, task, rank and scoring task)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cos_ml.errors import ClusterError, InvalidInputError, RankError

__all__ = ["check", "environment", "is_exclusive", "profile", "show_to_task", "use"]

TASK, EXECUTOR = "spark.task.resource.gpu.amount", "spark.executor.resource.gpu.amount"
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
PCI = "PCI_BUS_ID"  # the order of nvidia-smi, and so of discovery scripts; CUDA's default lists the fastest GPU first


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(settings: Any, use_gpu: bool) -> str:
    """Describe the GPUs that the ranks will have, according to Spark's ``settings`` (read by ``get(name, default)``).

    Raises:
        ClusterError: ``use_gpu`` is True, but Spark has no GPU resources, or does not assign one GPU per task.
    """
    if not use_gpu:
        return "none requested: ranks train on CPUs (Param useGpu)"
    per_task, per_executor = settings.get(TASK, None), settings.get(EXECUTOR, None)
    if _is_local(settings) and not per_task:
        return "useGpu=True on a local master: ranks take the visible GPUs of this machine in order"
    if not per_executor:
        raise ClusterError(
            f"useGpu=True, but Spark has no GPU resources configured: {EXECUTOR} is not set. Start the application "
            f"with --conf {EXECUTOR}=N for N GPUs per executor, and with spark.executor.resource.gpu.discoveryScript "
            "unless the cluster manager provides one."
        )
    if per_task and float(per_task) != 1:
        raise ClusterError(
            f"useGpu=True, but {TASK}={per_task}: a rank needs exactly one GPU of its own. Set it to 1, or leave it "
            "unset: the training stage then requests GPUs for itself."
        )
    source = "as for every task" if per_task else "for the training stage alone (stage-level scheduling)"
    return f"1 per rank, {source}; {per_executor} per executor"


def is_exclusive(settings: Any, use_gpu: bool) -> bool:
    """Whether concurrent fits would use the same GPUs: without GPUs from Spark, each fit counts from the first GPU."""
    return use_gpu and not settings.get(TASK, None) and (_is_local(settings) or not settings.get(EXECUTOR, None))


def profile(settings: Any, use_gpu: bool) -> Any:
    """A ResourceProfile of one GPU per task if only the training stage needs GPUs; else None, for Spark's default."""
    if not use_gpu or settings.get(TASK, None) or not settings.get(EXECUTOR, None) or _is_local(settings):
        return None
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    cpus = int(settings.get("spark.task.cpus", "1") or 1)
    return ResourceProfileBuilder().require(TaskResourceRequests().cpus(cpus).resource("gpu", 1)).build


def _is_local(settings: Any) -> bool:
    """Whether tasks run in the driver's JVM, which ignores settings of executors (such as a cluster's defaults)."""
    return re.match(r"local(\[|$)", settings.get("spark.master", None) or "") is not None


# ── task ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def environment(
    use_gpu: bool, addresses: Sequence[str] | None, local_rank: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment variables that make one GPU visible to a rank; they must be set before TensorFlow loads.

    Args:
        use_gpu: whether the rank trains on a GPU.
        addresses: indices or UUIDs of the GPUs that Spark assigned to its task; None if Spark does not assign GPUs.
        local_rank: index of the rank among those of this host.
        inherited: the environment of the task.

    Raises:
        InvalidInputError: Spark assigned other than one GPU, or this host has fewer visible GPUs than ranks.
    """
    if not use_gpu:
        return {VISIBLE: "-1"}
    if addresses is None and VISIBLE in inherited:
        listed = [entry.strip() for entry in inherited[VISIBLE].split(",") if entry.strip()]  # "" hides all GPUs
        if local_rank >= len(listed):
            raise InvalidInputError(
                f"useGpu=True, but {VISIBLE}={inherited[VISIBLE]} shows {len(listed) or 'no'} "
                f"GPU{'' if len(listed) == 1 else 's'}, and this host runs more ranks: ranks never share a GPU. "
                f"Set {f'numTrainWorkers={len(listed)}' if listed else 'useGpu=False'}."
            )
        return {VISIBLE: listed[local_rank]}  # without ORDER: the list is in the order that its author meant
    if addresses is None:
        addresses = [str(local_rank)]
    if len(addresses) != 1:
        raise InvalidInputError(f"useGpu=True: expected one GPU per task, but Spark assigned {list(addresses)}.")
    return {VISIBLE: addresses[0], ORDER: inherited.get(ORDER, PCI)}


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def use(use_gpu: bool, tf: Any) -> None:
    """Make TensorFlow allocate memory of this rank's GPU as needed; it must not have used any device yet.

    Raises:
        RankError: TensorFlow does not see exactly one GPU, so it would use the CPU or another rank's GPU.
    """
    if not use_gpu:
        return
    seen = tf.config.list_physical_devices("GPU")
    if len(seen) != 1:
        built = "is" if tf.test.is_built_with_cuda() else "is not"
        raise RankError(
            f"useGpu=True, but TensorFlow {tf.__version__} sees {len(seen) or 'no'} GPU{'s' if len(seen) > 1 else ''} "
            f"({VISIBLE}={os.environ.get(VISIBLE)}; this TensorFlow {built} built for CUDA). On every host, nvidia-smi "
            "must list a GPU for each rank (else lower numTrainWorkers), and TensorFlow be built for "
            'CUDA: pip install "tensorflow[and-cuda]". To train on CPUs, set useGpu=False.'
        )
    tf.config.experimental.set_memory_growth(seen[0], True)


# ── scoring task ──────────────────────────────────────────────────────────────────────────────────────────────────────


def show_to_task() -> bool:
    """Make the GPU of this Python worker's task visible, before TensorFlow loads; False if Spark assigned none."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assigned = context.resources().get("gpu") if context else None
    if assigned:
        os.environ[VISIBLE] = assigned.addresses[0]
        os.environ.setdefault(ORDER, PCI)
    return bool(assigned)
