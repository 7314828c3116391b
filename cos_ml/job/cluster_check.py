"""What a cluster offers a fit, and how fast its ranks are connected: ``cos-ml check`` (driver side).

The ranks' side is ``cos_ml/rank/measure.py``.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import gpus, spark_internals
from cos_ml.cancellation import cancellable
from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.job import barrier, horovod_env, preflight, rank_server
from cos_ml.job.messages import Job
from cos_ml.job.settings import port_range
from cos_ml.rank.measure import SIZE, SMALL
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = ["report", "results"]

MEGA = 1_000_000


def report(
    spark: SparkSession,
    numTrainWorkers: int,
    useGpu: bool = False,
    interface: str | None = None,
    megabytes: int = 64,
    useBarrier: bool = True,
) -> str:
    """Start ranks as a fit does, let them sum an array with an allreduce, and report what they found.

    Args:
        spark: the session whose cluster is checked.
        numTrainWorkers: number of ranks.
        useGpu: whether each rank uses the GPU that Spark assigns to it.
        interface: the network interface between ranks, as in the Param horovodOptions; None for Spark's own.
        megabytes: size of the array, in units of 10^6 bytes.
        useBarrier: whether the ranks are tasks of a barrier stage, as in the Param of that name.

    Returns:
        str: lines with versions; each rank's GPU, network interfaces, and whether it is a fork of a rank server; and
        the time of the allreduce. Its bandwidth is that of a ring: what each rank sends, 2 (n - 1) / n times the array,
        divided by the time. NCCL's tests call it "bus bandwidth"
        (https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).

    Raises:
        ClusterError: there are too few slots, no GPUs, or other versions on the executors.
        RankError: a rank failed: it sees no GPU, or its host has no such interface.
        InvalidInputError: a number is not positive, or the idle timeout of rank servers is not a duration.
    """
    if numTrainWorkers < 1 or megabytes < 1:
        raise InvalidInputError(
            f"Expected numTrainWorkers >= 1 and megabytes >= 1, received {numTrainWorkers} and {megabytes}."
        )
    devices = gpus.check(spark.conf, useGpu)
    ranks = results(spark, numTrainWorkers, useGpu, interface, megabytes * MEGA, useBarrier)
    lines = [*_cluster_lines(spark, devices, ranks), *_allreduce_lines(ranks, megabytes * MEGA)]
    return "\n".join(f"{name:<11}{text}" for name, text in lines)


def results(
    spark: SparkSession,
    workers: int,
    use_gpu: bool = False,
    interface: str | None = None,
    size: int = 64 * MEGA,
    use_barrier: bool = True,
) -> list[dict[str, Any]]:
    """What each rank reports, by rank; ``size`` is that of the array, in bytes."""
    options = {} if interface is None else {"networkInterface": interface}
    variables = horovod_env.variables(horovod_env.converted(options)) | {SIZE: str(size)}
    spec = TrainSpec(inputs=(Column("id", "x0"),), labels=(), use_gpu=use_gpu, variables=variables)
    versions = {} if spark_internals.is_connect(spark) else shared_versions()
    idle = rank_server.idle_timeout(spark.conf)
    function, ports = "cos_ml.rank.measure:measure", port_range(spark.conf)
    job = Job(function, (spec,), (b"",), versions=versions, idle_timeout=idle, ports=ports)
    rows = frames.select_columns(spark.range(workers), spec)
    found = cancellable(spark, partial(barrier.run, rows, job, workers, use_barrier)).results
    return [json.loads(one["measured"]) | {"servers": json.loads(one["server"])} for one in found]


def _cluster_lines(spark: SparkSession, devices: str, ranks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and texts of the lines about versions and ranks."""
    versions = ranks[0]["versions"]
    same = all(one["versions"] == versions for one in ranks)
    builds = [one["built"] for one in ranks]
    build = builds[0] if len(set(builds)) == 1 else "; ".join(f"rank {rank} {one}" for rank, one in enumerate(builds))
    lines = [
        ("Spark", f"{spark.version}, {spark.conf.get('spark.master', 'master unknown')}"),
        ("versions", f"{preflight.format_versions(versions)}{': the same everywhere' if same else ' on rank 0'}"),
        ("Horovod", build or "not needed by one rank"),
        ("GPUs", devices),
    ]
    for rank, one in enumerate(ranks):
        speeds = one["speeds"]  # of network interfaces, in 10^6 bits/s
        interfaces = ", ".join(
            f"{name} {address}" + (f" ({speeds[name] / 1000:g} Gb/s)" if speeds[name] else "")
            for address, name in one["interfaces"].items()
        )
        held = sum(one["servers"].values())
        start = f"a fork of a rank server of {held / 1e9:.2f} GB" if held else "a new process"
        lines.append((f"rank {rank}", f"on {one['host']}, {one['device']}, {start}; {interfaces}"))
    return lines


def _allreduce_lines(ranks: list[dict[str, Any]], size: int) -> list[tuple[str, str]]:
    """Names and texts of the lines about the allreduce of ``size`` bytes."""
    if len(ranks) == 1:
        return [("allreduce", "none: there is only one rank")]
    first, hosts = ranks[0], preflight.count_hosts(ranks)
    large, small = (max(one["seconds"][which] for one in ranks) for which in ("large", "small"))
    sent = 2 * (len(ranks) - 1) / len(ranks) * size / large
    one_host = hosts == "1 host"
    nccl = first["by"] == "NCCL"  # which chooses and logs the interface with NCCL_DEBUG=INFO
    speed = None if one_host or nccl else first["speeds"].get(first["interface"])
    share = f", {sent * 8 / (speed * MEGA):.0%} of the link" if speed else ""
    over = "" if nccl else f" over {first['interface'] or 'the default interface'}"
    over += ", within one host" if one_host else ""
    how = f"{size / MEGA:g} MB among {len(ranks)} ranks on {hosts}, by {first['by']}{over}: the sum is correct"
    return [
        ("allreduce", how),
        ("", f"{large * 1e3:.1f} ms: each rank sends {sent / 1e9:.2f} GB/s{share}"),
        ("", f"{SMALL} bytes: {small * 1e3:.2f} ms"),
    ]
