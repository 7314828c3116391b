"""How fast rows reach two ranks by either feed: ``python -m tests.benchmarks.feeds ROWS RESULT``.

To the batches of one pass, with nobody who trains on them: for the Arrow feed from a cached DataFrame through Spark to
memory-mapped rows, for the petastorm feed from the Parquet files.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark import TaskContext

from cos_ml import feeds
from cos_ml.columns import Column
from cos_ml.petastorm_feed import ShardRows, Shards, plan
from cos_ml.spec import TrainSpec
from tests.benchmarks import data

SPEC = TrainSpec(
    inputs=(Column("features", "x0", (data.FEATURES,)),), labels=(Column("label", "y0", classes=data.CLASSES),)
)
NAMES = {"x0": "features", "y0": "label"}


def main(folder: str, result: str) -> None:
    spark = data.session()
    rows = data.cached_rows(spark, folder)
    moved = feeds.spread(feeds.narrow(rows, SPEC), data.RANKS)
    in_two = rows.repartition(data.RANKS).cache()
    in_two.count()
    stay = feeds.spread(feeds.narrow(in_two, SPEC), data.RANKS)
    with feeds.small_batches(spark, SPEC):
        arrow = {
            "arrow, rows move": _rows_per_second(lambda: moved.mapInArrow(_spooled, "rows long")),
            "arrow, rows stay": _rows_per_second(lambda: stay.mapInArrow(_spooled, "rows long")),
        }
    shards = plan(folder, SPEC, NAMES, data.RANKS)
    ranks = spark.range(data.RANKS, numPartitions=data.RANKS)
    data.report(
        result,
        arrow | {"petastorm": _rows_per_second(lambda: ranks.mapInArrow(partial(_shard, shards), "rows long"))},
    )


def _rows_per_second(job: Callable[[], Any]) -> float:
    """The best of four runs: the first ones start Python, and Java compiles the plan."""
    seconds = math.inf
    for _ in range(4):
        start = time.perf_counter()
        if sum(row["rows"] for row in job().collect()) != data.ROWS:
            raise RuntimeError("rows are missing")
        seconds = min(seconds, time.perf_counter() - start)
    return data.ROWS / seconds


def _spooled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    spool = feeds.Spool(SPEC)
    spool.fill(batches)
    descriptors = {field: os.dup(fd) for field, fd in spool.descriptors()["train"].items()}
    rows = feeds.Rows(descriptors, spool.rows["train"], spool.shapes, spool.dtypes)
    yield _counted(rows)
    spool.close()


def _shard(shards: Shards, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _ in batches:
        pass
    yield _counted(ShardRows("train", SPEC, shards, TaskContext.get().partitionId()))  # type: ignore[union-attr]


def _counted(rows: Any) -> pa.RecordBatch:
    steps = -(-rows.count // data.BATCH)
    count = sum(batch.real for batch in rows.ordered(True, (data.SEED,)).batches(data.BATCH, steps, {}))
    return pa.RecordBatch.from_arrays([pa.array([count], pa.int64())], ["rows"])


if __name__ == "__main__":
    main(*sys.argv[1:])
