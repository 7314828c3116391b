"""``DeepNetEstimator.explain``: whether a fit would work, and what it takes, before it starts (driver side)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from cos_ml import gpus
from cos_ml.data import frames, spool
from cos_ml.errors import ClusterError, CosMLError, from_spark
from cos_ml.job import preflight, slots
from cos_ml.network.archive import Network, layers_by_name, load_model
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = ["explain"]

SAMPLE = 1000  # rows that are looked at


def explain(dataset: DataFrame, spec: TrainSpec, network: Network, workers: int) -> str:
    """A line for each check: "ok" with what was found, or "PROBLEM" with the remedy."""
    report = _Report()
    spark = dataset.sparkSession
    rows: list[int] = []
    report.check("columns", lambda: _columns(spec))
    report.check("rows", lambda: _rows(dataset, spec, rows))
    report.check("GPUs", lambda: gpus.check(spark.conf, spec.use_gpu))
    if report.check("slots", lambda: _slots(spark, workers, spec)):
        executors: list[dict[str, Any]] = []
        if report.check("versions", lambda: _versions(spark, workers, executors)):
            need = preflight.estimate_resources(spec, *_sizes(network), rows[0] if rows else None, workers)
            _report_need(report, need, executors)
    return report.text()


class _Report:
    """The lines so far."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool, str, str]] = []

    def check(self, name: str, find: Callable[[], str]) -> bool:
        """Add what ``find`` returns, or the error that it raises; returns whether all is well."""
        try:
            self.lines.append((True, name, find()))
        except CosMLError as error:
            self.lines.append((False, name, str(error)))
        return self.lines[-1][0]

    def text(self) -> str:
        problems = sum(not good for good, _, _ in self.lines)
        end = f"{problems} to mend before a fit" if problems else "A fit can start"
        lines = [f"{'ok' if good else 'PROBLEM':<9}{name:<10}{what}" for good, name, what in self.lines]
        return "\n".join([*lines, f"{end}."])


def _columns(spec: TrainSpec) -> str:
    """What the network takes of the DataFrame; that it is there was checked when the spec was made."""
    inputs = ", ".join(
        f"{column.name!r} ({'any number of' if column.size is None else f'{column.size:,}'} {column.dtype})"
        for column in spec.inputs
    )
    labels = ", ".join(
        f"{column.name!r}" + (f" (classes 0 to {column.classes - 1})" if column.classes else "")
        for column in spec.labels
    )
    return f"inputs {inputs}; labels {labels}"


def _rows(dataset: DataFrame, spec: TrainSpec, counted: list[int]) -> str:
    """Looks at the first rows as a fit looks at all, and counts them."""
    selected = frames.select_columns(dataset, spec)
    table = selected.limit(SAMPLE).toArrow().combine_chunks()
    skipped = 0
    for batch in table.to_batches():
        skipped += spool.usable_rows(batch, spec, 0)[2]
    counted.append(dataset.count())
    told = f", {skipped} of them to be skipped" if skipped else ""
    return f"{counted[0]:,}; the first {table.num_rows:,} were looked at{told}, a fit looks at each"


def _slots(spark: SparkSession, workers: int, spec: TrainSpec) -> str:
    slots.check_cluster(spark, workers, gpus.profile(spark.conf, spec.use_gpu))
    return f"{workers} for numTrainWorkers={workers}"


def _versions(spark: SparkSession, workers: int, executors: list[dict[str, Any]]) -> str:
    """Asks tasks that run where ranks would."""
    asked = spark.range(workers, numPartitions=workers).mapInArrow(_facts, "facts string", barrier=True)
    try:
        with slots.acquire(spark, workers):
            executors += [json.loads(row["facts"]) for row in asked.collect()]
    except Exception as error:
        raise from_spark(error) or error from None
    here = shared_versions()
    problem = preflight.version_mismatch(here, executors)
    if problem:
        raise ClusterError(problem)
    hosts = len({one["host"] for one in executors})
    found = ", ".join(f"{name} {version}" for name, version in here.items() if version)
    return f"{found}: the same on the driver and on {hosts} host{'s' if hosts > 1 else ''} of executors"


def _facts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One task of the cluster tells about its executor (barrier task side)."""
    for _ in batches:
        pass
    yield pa.RecordBatch.from_arrays([pa.array([json.dumps(preflight.executor_facts())])], ["facts"])


def _sizes(network: Network) -> tuple[float, float]:
    """Bytes of a network's weights, and of all its layers' outputs for one row."""
    model = load_model(network.archive, network.modules)
    outputs = 0
    for layer in layers_by_name(model).values():
        shape = getattr(getattr(layer, "output", None), "shape", None) or ()
        outputs += math.prod(side or 1 for side in shape[1:])
    return 4.0 * model.count_params(), 4.0 * outputs


def _report_need(report: _Report, need: preflight.Resources, executors: list[dict[str, Any]]) -> None:
    problems = preflight.resource_warnings(need, executors)

    def raising(word: str, otherwise: str) -> str:
        mine = [problem for problem in problems if f" of {word} left" in problem]
        if mine:
            raise ClusterError(" ".join(mine))
        return otherwise

    memory, disk = (min(one[what] for one in executors) for what in ("memory", "disk"))
    rows = "" if need.disk is None else f"a rank's rows take about {preflight.format_bytes(need.disk)}; "
    report.check("disk", lambda: raising("disk", f"{rows}{preflight.format_bytes(disk)} free"))
    report.check(
        "memory",
        lambda: raising(
            "memory", f"a rank takes about {preflight.format_bytes(need.memory)}; {preflight.format_bytes(memory)} free"
        ),
    )
