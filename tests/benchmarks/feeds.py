"""How fast rows reach two ranks by each feed: ``python -m tests.benchmarks.feeds ROWS RESULT``.

The Arrow feed from a cached DataFrame to memory-mapped rows, a Spark job with all that belongs to one; the feeds by
Parquet files from these to the batches of one pass, by the clock of the ranks, for Spark has no part in it. Peaks
of memory: ``tests.benchmarks.memory``.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.data.parquet import Shards
from cos_ml.data.parquet_plan import plan
from cos_ml.data.spool import Spool, SpooledRows
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import TrainSpec
from tests.benchmarks import data

SPEC = TrainSpec(
    inputs=(Column("features", "x0", (data.FEATURES,)),), labels=(Column("label", "y0", classes=data.CLASSES),)
)
SCHEMA = "rows long, began double, ended double"
NAMES = {"x0": "features", "y0": "label"}


def main(folder: str, result: str) -> None:
    spark = data.session()
    rows = data.cached_rows(spark, folder)
    moved = frames.repartition_to_ranks(frames.select_columns(rows, SPEC), data.RANKS)
    in_two = rows.repartition(data.RANKS).cache()
    in_two.count()
    stay = frames.repartition_to_ranks(frames.select_columns(in_two, SPEC), data.RANKS)
    with frames.small_batches(spark, SPEC):
        arrow = {
            "arrow, rows move": _rows_per_second(lambda: moved.mapInArrow(_spooled, SCHEMA), of_job),
            "arrow, rows stay": _rows_per_second(lambda: stay.mapInArrow(_spooled, SCHEMA), of_job),
        }
    ranks = spark.range(data.RANKS, numPartitions=data.RANKS)
    stored = {}
    for reader in ("parquet", *(["petastorm"] if importlib.util.find_spec("petastorm") else [])):
        shards = plan(folder, SPEC, NAMES, data.RANKS, reader=reader)
        stored[reader] = _rows_per_second(lambda: ranks.mapInArrow(partial(_shard, shards), SCHEMA), of_ranks)  # noqa: B023
    data.report(result, arrow | stored)


def of_job(job: float, ranks: list[Any]) -> float:
    """Seconds of the whole job."""
    return job


def of_ranks(job: float, ranks: list[Any]) -> float:
    """Seconds from the first rank's start to the last one's end."""
    return max(rank["ended"] for rank in ranks) - min(rank["began"] for rank in ranks)


def _rows_per_second(job: Callable[[], Any], seconds_of: Callable[[float, list[Any]], float]) -> float:
    """The best of twenty runs: the first ones start Python, and Java compiles the plan."""
    seconds = math.inf
    for _ in range(20):
        start = time.perf_counter()
        ranks = job().collect()
        if sum(rank["rows"] for rank in ranks) != data.ROWS:
            raise RuntimeError("rows are missing")
        seconds = min(seconds, seconds_of(time.perf_counter() - start, ranks))
    return data.ROWS / seconds


def _spooled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    began = time.time()
    spool = Spool(SPEC)
    spool.fill(batches)
    descriptors = {field: os.dup(fd) for field, fd in spool.descriptors()["train"].items()}
    rows = SpooledRows(descriptors, spool.rows["train"], spool.shapes, spool.dtypes)
    yield _told(len(rows.arrays["x0"]), began)
    spool.close()


def _shard(shards: Shards, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _ in batches:
        pass
    began = time.time()
    rows = ShardRows("train", SPEC, shards, TaskContext.get().partitionId())  # type: ignore[union-attr]
    steps = -(-rows.count // data.BATCH)
    count = sum(batch.num_valid for batch in rows.ordered(True, (data.SEED,)).batches(data.BATCH, steps, {}))
    yield _told(count, began)


def _told(rows: int, began: float) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"rows": rows, "began": began, "ended": time.time()}])


if __name__ == "__main__":
    main(*sys.argv[1:])
