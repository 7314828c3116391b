"""What can be checked before ranks train: rows, slots, versions, memory and disk (driver and barrier task side).

``executor_facts`` runs in each barrier task of a fit, and of ``explain``. The tasks, or the driver, compare the facts
with the driver's versions and with what ranks will use.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from cos_ml import gpus
from cos_ml.cancellation import cancellable, job_tag
from cos_ml.data import frames, spool
from cos_ml.errors import ClusterError, CosMLError, from_spark
from cos_ml.job import containers, gang, rank_server, slots
from cos_ml.job.containers import format_bytes
from cos_ml.job.progress import Address
from cos_ml.job.settings import PORT_RANGE
from cos_ml.network.archive import Network, layers_by_name, load_model
from cos_ml.processor import LIMIT, OPERATIONS, instruction_set
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = ["count_hosts", "estimate", "executor_facts", "explain", "format_versions", "version_mismatch", "warnings"]

PROCESS = 450e6  # bytes of a rank that has imported TensorFlow and Horovod and loaded nothing
COPIES = 4  # of the weights: themselves, gradients, and two of an optimizer such as Adam
PAUSED = 3  # copies of the weights of a candidate that waits for its turn: themselves, and two of an optimizer
BATCHES = 8  # of rows that wait or are being made
SAMPLE = 1000  # rows that are checked
REMEDIES = {
    "memory": "Use fewer ranks per host (spark.executor.cores, numTrainWorkers), a smaller batchSize, or raise "
    "spark.executor.memoryOverhead, which includes the memory of ranks.",
    "disk": 'Give spark.local.dir a larger disk, use more hosts, or feed="parquet", which keeps rows in cacheDir.',
}


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def version_mismatch(driver: dict[str, str | None], executors: Sequence[dict[str, Any]]) -> str:
    """The error that names the versions that are not the driver's; "" where all are the same."""
    found = []
    for facts in executors:
        versions = facts["versions"]
        different = [
            f"{name} {versions[name] or 'missing'} (the driver has {version or 'none'})"
            for name, version in driver.items()
            if versions[name] != version and (version or name != "Horovod")
        ]
        if different:
            found.append(f"{facts['host']}: {', '.join(different)}")
    if not found:
        return ""
    return (
        f"The executors' Python environment differs from the driver's. {'; '.join(dict.fromkeys(found))}. Use one "
        "environment for both: set PYSPARK_PYTHON, or spark.pyspark.python, to one with these versions on every host, "
        "or ship the driver's with spark.archives."
    )


def cant_train_together(ports: range | None, executors: Sequence[dict[str, Any]]) -> str:
    """The error where ranks on these hosts can't exchange numbers, or not on these ports; "" if they can."""
    orders = {one["byte order"]: one["host"] for one in executors}
    if len(orders) > 1:
        hosts = ", ".join(f"{host} is {order}-endian" for order, host in orders.items())
        return f"Ranks exchange numbers as bytes, but {hosts}. Use hosts of one byte order."
    ignored = next((f"On {one['host']} ranks ignore it: {one['ports']}" for one in executors if one["ports"]), "")
    return f"{PORT_RANGE} is {ports[0]}-{ports[-1]}. {ignored}" if ports and ignored else ""


def processor_notes(executors: Sequence[dict[str, Any]]) -> list[str]:
    """A note where the ranks' processors differ, and with them the rounding of sums."""
    found = {one["host"]: one["processor"] for one in executors}
    kinds = sorted(set(found.values()))
    if len(kinds) < 2:
        return []
    hosts = "; ".join(f"{kind} on {', '.join(host for host in found if found[host] == kind)}" for kind in kinds)
    remedy = f"If that matters, set spark.executorEnv.{LIMIT}=AVX2 and spark.executorEnv.{OPERATIONS}=0."
    if len({kind.split()[0] for kind in kinds}) > 1:
        remedy = "Use hosts of one architecture if that matters."
    return [
        f"The ranks' processors differ: {hosts}. TensorFlow's kernels round differently on them, so another run, whose "
        f"ranks are elsewhere, may have slightly other weights. {remedy}"
    ]


def format_versions(versions: dict[str, str | None]) -> str:
    """Versions as a person reads them, without what is not installed."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def count_hosts(facts: Sequence[dict[str, Any]]) -> str:
    """The number of hosts of executors or ranks, as "1 host" or "2 hosts"."""
    hosts = len({one["host"] for one in facts})
    return f"{hosts} host{'s' if hosts > 1 else ''}"


# ── memory and disk ───────────────────────────────────────────────────────────────────────────────────────────────────


def executor_facts() -> dict[str, Any]:
    """This executor, as plain values: its host, its versions, its local folder, and free bytes of disk and memory."""
    folder = spool.local_folder()
    disk = shutil.disk_usage(folder).free
    facts = {"host": socket.gethostname(), "versions": shared_versions(), "processor": instruction_set()}
    facts["byte order"] = sys.byteorder
    container = os.environ.get("CONTAINER_ID", "")  # YARN's; one host has several
    return facts | {"folder": folder, "disk": disk, "memory": _free_memory(), "container": container}


def _free_memory() -> float:
    """Bytes that this process and its children may still use: of the host, or of its container."""
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")  # version 2
    try:
        limit = (group / "memory.max").read_text().strip()
        used = float((group / "memory.current").read_text())
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    cached = float(kinds.get("inactive_file", 0)) + float(kinds.get("active_file", 0))  # freed when memory is short
    return free if limit == "max" else min(free, float(limit) - used + cached)


def estimate(
    spec: TrainSpec, weights: float, activations: float = 0.0, rows: int | None = None, ranks: int = 1
) -> dict[str, float]:
    """Estimate what one rank needs: bytes of "memory" at least, and of "disk" for its rows if their number is known.

    ``weights`` are bytes, ``activations`` bytes of all layers' outputs for one row, ``rows`` those of all ranks.
    """
    widths = {"bool": 1, "int64": 8}
    row = sum(8 if column.size is None else column.size * widths.get(column.dtype, 4) for column in spec.columns)
    batch = spec.batch_size * (row * BATCHES + 2 * activations)  # the backward pass needs them again
    disk = {} if rows is None else {"disk": math.ceil(rows / ranks) * (row + 8)}
    return {"memory": PROCESS + COPIES * weights + batch} | disk


def warnings(need: Mapping[str, float], executors: Sequence[dict[str, Any]]) -> list[str]:
    """A warning for each host and kind of resource ("memory", "disk") that its ranks may run out of, with the remedy.

    They are no errors, because ``need`` is an estimate of what one rank needs.
    """
    found = []
    for host in dict.fromkeys(one["host"] for one in executors):
        own = [one for one in executors if one["host"] == host]
        for kind, each in need.items():
            free, needed = min(one[kind] for one in own), each * len(own)
            if needed > free:
                where = f" in {own[0]['folder']}" if kind == "disk" else ""
                found.append(
                    f"{host} has {format_bytes(free)} of {kind} left{where}, but the ranks there ({len(own)}) need "
                    f"about {format_bytes(needed)}. {REMEDIES[kind]}"
                )
    return found


# ── explain ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def explain(dataset: DataFrame, spec: TrainSpec, network: Network, ranks: int, use_barrier: bool = True) -> str:
    """A line for each check of ``DeepNetEstimator.explain``: "ok" with what was found, or "PROBLEM" with the remedy."""
    spark, lines = dataset.sparkSession, []
    found: dict[str, Any] = {}

    def check(name: str, find: Callable[..., tuple[str, Any]], *arguments: Any) -> bool:
        try:
            text, found[name] = cancellable(spark, partial(find, *arguments))
        except CosMLError as error:
            lines.append(f"{'PROBLEM':<9}{name:<10}{error}")
            return False
        lines.append(f"{'ok':<9}{name:<10}{text}")
        return True

    check("columns", _describe_columns, spec)
    check("rows", _count_rows, dataset, spec)
    check("GPUs", lambda: (gpus.check(spark.conf, spec.use_gpu), None))
    if check("slots", _check_slots, spark, spec, ranks, use_barrier) and check(
        "versions", _check_versions, spark, ranks, use_barrier
    ):
        need = estimate(spec, *_network_bytes(network), found.get("rows"), ranks)
        for kind in ("disk", "memory"):
            check(kind, _check_resource, kind, need.get(kind), found["versions"], spark)
    problems = sum(line.startswith("PROBLEM") for line in lines)
    end = f"{problems} problem{'s' if problems > 1 else ''} to fix before fitting." if problems else "Ready to fit."
    return "\n".join([*lines, end])


def _describe_columns(spec: TrainSpec) -> tuple[str, None]:
    """The columns that the network reads; they were checked when the spec was made."""
    sizes = ["any number of" if column.size is None else f"{column.size:,}" for column in spec.inputs]
    inputs = [f"{one.name!r} ({size} {one.dtype})" for one, size in zip(spec.inputs, sizes, strict=True)]
    labels = [f"{one.name!r}" + (f" (classes 0 to {one.classes - 1})" if one.classes else "") for one in spec.labels]
    return f"inputs {', '.join(inputs)}; labels {', '.join(labels)}", None


def _count_rows(dataset: DataFrame, spec: TrainSpec) -> tuple[str, int]:
    """Check the first rows as a fit checks all, and count the rows."""
    table = frames.select_columns(dataset, spec).limit(SAMPLE).toArrow().combine_chunks()
    skipped = sum(int((~spool.usable_rows(batch, spec, 0)[1]).sum()) for batch in table.to_batches())
    if spec.validation_fraction:
        rows, validation = _count_parts(frames.select_columns(dataset, spec), spec)
        parts = f" ({validation:,} for validation)"
    else:
        rows, parts = dataset.count(), ""
    bad = f", {skipped} of them will be skipped" if skipped else ""
    return f"{rows:,}{parts}; checked the first {table.num_rows:,}{bad}; a fit checks all", rows


def _count_parts(rows: DataFrame, spec: TrainSpec) -> tuple[int, int]:
    """The number of rows, and of those that validationFraction selects, in one pass."""
    try:
        counts = rows.mapInArrow(partial(_send_counts, spec), "rows bigint, validation bigint")
        [sums] = counts.groupBy().sum().collect()
    except Exception as error:
        raise from_spark(error) or error from None
    return int(sums[0] or 0), int(sums[1] or 0)


def _send_counts(spec: TrainSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The numbers of rows and of validation rows of each batch (task side)."""
    for batch in batches:
        arrays, kept = spool.usable_rows(batch, spec, 0)
        marked = spool.validates(spool.row_keys(arrays), spec) & kept
        counts = [pa.array([int(count)], pa.int64()) for count in (batch.num_rows, marked.sum())]
        yield pa.RecordBatch.from_arrays(counts, ["rows", "validation"])


def _check_slots(spark: SparkSession, spec: TrainSpec, ranks: int, use_barrier: bool) -> tuple[str, None]:
    slots.check_cluster(spark, ranks, gpus.profile(spark.conf, spec.use_gpu), use_barrier)
    return f"{ranks} for numTrainWorkers={ranks}", None


def _check_versions(spark: SparkSession, ranks: int, use_barrier: bool) -> tuple[str, list[dict[str, Any]]]:
    """Run tasks where ranks would run, and return the facts of their executors."""
    try:
        with (
            job_tag(spark) as tag,
            gang.gathered(spark, ranks, tag.cancel, not use_barrier) as server,
            slots.acquire(spark, ranks, use_barrier=use_barrier),
        ):
            send = partial(_send_facts, server.address if server else None)
            tasks = spark.range(ranks, numPartitions=ranks).mapInArrow(send, "facts string", barrier=use_barrier)
            executors = [json.loads(row["facts"]) for row in tasks.collect()]
    except Exception as error:
        raise from_spark(error) or error from None
    versions = shared_versions()
    if mismatch := version_mismatch(versions, executors):
        raise ClusterError(mismatch)
    same = f"the same on the driver and on {count_hosts(executors)} of executors"
    return f"{format_versions(versions)}: {same}", executors


def _send_facts(address: Address | None, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Return the facts of this task's executor (barrier task side)."""
    for _ in batches:
        pass
    with gang.task_context(address) as context:
        context.getTaskInfos()  # in a gang, waits for the others: all run at the same time
        yield pa.RecordBatch.from_arrays([pa.array([json.dumps(executor_facts())])], ["facts"])


def _network_bytes(network: Network) -> tuple[float, float]:
    """Bytes of a network's weights, and of all its layers' outputs for one row."""
    model = load_model(network.archive, network.modules)
    outputs = 0
    for layer in layers_by_name(model).values():
        shape = getattr(getattr(layer, "output", None), "shape", None) or ()
        outputs += math.prod(size or 1 for size in shape[1:])
    return 4.0 * model.count_params(), 4.0 * outputs


def _check_resource(
    kind: str, needed: float | None, executors: Sequence[dict[str, Any]], spark: SparkSession
) -> tuple[str, None]:
    free = f"{format_bytes(min(one[kind] for one in executors))} free"
    if needed is None:
        return free, None
    found = warnings({kind: needed}, executors)
    if kind == "memory":
        together = containers.ranks_together(spark.conf, len(executors), executors)
        found += containers.problems(spark.conf, needed, together, bool(rank_server.idle_timeout(spark.conf)))
        if limit := containers.container(spark.conf):
            free += f"; {format_bytes(limit.size)} outside of the JVM in each container, for its ranks ({together})"
    if found:
        raise ClusterError(" ".join(found))
    return f"a rank needs about {format_bytes(needed)}; {free}", None
