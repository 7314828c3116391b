"""Streams from a table of Delta into others, through a saved pipeline: ``stream.py FOLDER`` dies in mid-batch."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from tests.support.sessions import session
from tests.tables import lake

DIES_IN = 1  # the number of the batch
IN_BATCH = 20  # rows of a batch, by their ids
LONGEST = 300  # seconds until the other query is in its batch


def start(spark: SparkSession, folder: Path, dies: bool) -> list[StreamingQuery]:
    """Two queries that score what is in the table ``source``: into ``sink``, and batch by batch into ``batches``."""
    pipeline = PipelineModel.load(str(folder / "pipeline"))
    source = spark.readStream.format("delta").option("maxFilesPerTrigger", 1).load(str(folder / "source"))
    scored = pipeline.transform(source)
    halted = scored.withColumn("id", _wait(str(folder / "waits"))("id")) if dies else scored
    return [
        _writer(halted, folder, "sink").format("delta").start(str(folder / "sink")),
        _writer(scored, folder, "batches").foreachBatch(partial(_write, folder, dies)).start(),
    ]


def _writer(scored: DataFrame, folder: Path, name: str) -> Any:
    checkpoint = str(folder / f"{name}-checkpoint")
    return scored.writeStream.option("checkpointLocation", checkpoint).trigger(availableNow=True)


def _write(folder: Path, dies: bool, batch: DataFrame, number: int) -> None:
    """Append a batch; Delta knows it by the name of the writer and the number, should it come again."""
    once = {"txnAppId": "scores", "txnVersion": number}
    batch.write.format("delta").mode("append").options(**once).save(str(folder / "batches"))
    if dies and number == DIES_IN:  # its rows are there, and Spark has not recorded it
        deadline = time.monotonic() + LONGEST
        while not (folder / "waits").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(0, signal.SIGKILL)  # this program, and its JVM


def _wait(mark: str) -> Any:
    """A function of ids, whose task does not return from that of a row in the batch in which the program dies."""

    def same(number: int) -> int:
        if number == DIES_IN * IN_BATCH:
            Path(mark).touch()
            signal.pause()
        return number

    return F.udf(same, "bigint")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    for spark in session("local[3]", given / "spark", **lake.settings(given / "lake")):
        for query in start(spark, given, dies=True):
            query.awaitTermination(LONGEST)
