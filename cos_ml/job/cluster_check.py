"""What a cluster has for a fit, and how fast its ranks are connected, for ``cos-ml check`` (driver and rank side)."""

from __future__ import annotations

import json
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import gpus, spark_internals
from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.job import barrier, horovod_env
from cos_ml.job.messages import Job
from cos_ml.rank.measure import SIZE, SMALL
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = ["report", "results"]

MEGA = 1_000_000


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(
    spark: SparkSession, numTrainWorkers: int, useGpu: bool = False, interface: str | None = None, megabytes: int = 64
) -> str:
    """Start ranks as a fit does, let them add up an array, and tell what they saw.

    Args:
        spark: the session whose cluster it is.
        numTrainWorkers: how many ranks.
        useGpu: each on the GPU that Spark gives it.
        interface: the network interface between them, as in the Param horovodOptions; None for Spark's own.
        megabytes: size of the array, in units of 10^6 bytes.

    Returns:
        str: lines of versions, ranks with their GPUs and network interfaces, and the time of an allreduce. Its
        bandwidth is that of a ring: what each rank sends, 2 (n - 1) / n times the array, by its time; the same is "bus
        bandwidth" in NCCL's tests (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).

    Raises:
        ClusterError: there are too few slots, no GPUs, or other versions on the executors.
        RankError: a rank failed, as where its GPU can't be seen or an interface is not there.
        InvalidInputError: a number is not positive.
    """
    if numTrainWorkers < 1 or megabytes < 1:
        raise InvalidInputError(f"Expected 1 rank and 1 MB or more, received {numTrainWorkers} and {megabytes}.")
    devices = gpus.check(spark.conf, useGpu)
    told = results(spark, numTrainWorkers, useGpu, interface, megabytes * MEGA)
    return "\n".join(f"{what:<11}{text}" for what, text in _lines(spark, devices, told, megabytes * MEGA))


def results(
    spark: SparkSession, workers: int, use_gpu: bool = False, interface: str | None = None, size: int = 64 * MEGA
) -> list[dict[str, Any]]:
    """What each rank tells, by rank; ``size`` is the array's, in bytes."""
    options = {} if interface is None else {"networkInterface": interface}
    variables = horovod_env.variables(horovod_env.converted(options)) | {SIZE: str(size)}
    spec = TrainSpec(inputs=(Column("id", "x0"),), labels=(), use_gpu=use_gpu, variables=variables)
    versions = {} if spark_internals.is_connect(spark) else shared_versions()
    job = Job("cos_ml.rank.measure:measure", (spec,), (b"",), versions=versions)
    rows = frames.select_columns(spark.range(workers), spec)
    return [json.loads(result["measured"]) for result in barrier.run(rows, job, workers).results]


def _lines(spark: SparkSession, devices: str, told: list[dict[str, Any]], size: int) -> list[tuple[str, str]]:
    """What is told of a cluster by its ranks, as pairs of a word and a text."""
    hosts = len({one["host"] for one in told})
    first = told[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    same = all(one["versions"] == first["versions"] for one in told)
    lines = [
        ("Spark", f"{spark.version}, {spark.conf.get('spark.master', 'master unknown')}"),
        ("versions", f"{versions}{': the same everywhere' if same else ' on rank 0'}"),
        ("Horovod", _built(told) or "not needed by one rank"),
        ("GPUs", devices),
    ]
    for rank, one in enumerate(told):
        interfaces = ", ".join(
            f"{name} {address}{_link(one['speeds'][name])}" for address, name in one["interfaces"].items()
        )
        lines.append((f"rank {rank}", f"on {one['host']}, {one['device']}; {interfaces}"))
    if len(told) == 1:
        return [*lines, ("allreduce", "none: one rank has no other")]
    large, small = (max(one["seconds"][which] for one in told) for which in ("large", "small"))
    sent = 2 * (len(told) - 1) / len(told) * size / large
    speed = first["speeds"].get(first["interface"])
    nccl = first["by"] == "NCCL"  # which chooses its way by itself, and tells with NCCL_DEBUG=INFO
    share = f", {sent * 8 / (speed * MEGA):.0%} of the link" if speed and hosts > 1 and not nccl else ""
    over = "" if nccl else f" over {first['interface'] or 'the default interface'}"
    over += "" if hosts > 1 else ", within one host"
    return [
        *lines,
        ("allreduce", f"{size / MEGA:g} MB among {len(told)} ranks on {hosts} host{'s' if hosts > 1 else ''}, by "
         f"{first['by']}{over}: the sum is right"),
        ("", f"{large * 1e3:.1f} ms: each rank sends {sent / 1e9:.2f} GB/s{share}"),
        ("", f"{SMALL} bytes: {small * 1e3:.2f} ms"),
    ]  # fmt: skip


def _built(told: list[dict[str, Any]]) -> str:
    """What Horovod was built with, where ranks differ by rank."""
    kinds = {one["built"] for one in told}
    return kinds.pop() if len(kinds) == 1 else "; ".join(f"rank {rank} {one['built']}" for rank, one in enumerate(told))


def _link(speed: int | None) -> str:
    return f" ({speed / 1000:g} Gb/s)" if speed else ""


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
