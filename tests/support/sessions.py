"""Spark sessions of the two kinds of tests, and DataFrames with exactly the partitions that a test wants."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from cos_ml.job import barrier
from tests.support.warm_daemon import RANKS

ROOT = Path(__file__).parents[2]
DAEMON = "spark.python.daemon.module"
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.stage.maxConsecutiveAttempts": "2",
    "spark.driver.memory": "2g",
    DAEMON: "tests.support.warm_daemon",
}
# For a program that knows nothing of these tests: its ranks are forks, and its scoring tasks find TensorFlow imported.
# Workers are used once, so that none forks a rank after it has scored, which starts TensorFlow's runtime.
FORKED = {
    "PYSPARK_SUBMIT_ARGS": f"--conf {DAEMON}={SETTINGS[DAEMON]} --conf spark.python.worker.reuse=false pyspark-shell",
    RANKS: "forked",
}
SCHEMA = T.StructType(
    [
        T.StructField("features", VectorUDT()),
        T.StructField("label", T.DoubleType()),
        T.StructField("weight", T.DoubleType()),
    ]
)


def session(master: str, folder: Path, **settings: str) -> Iterator[SparkSession]:
    """A quiet session that keeps its files in ``folder``; as a generator, for a fixture to yield from."""
    os.environ["PYSPARK_PYTHON"] = sys.executable  # executors run this environment
    os.environ["PYTHONPATH"] = str(ROOT)  # and find the tests' own layers
    builder = SparkSession.builder.master(master).appName("cos_ml tests")
    folders = {"spark.local.dir": str(folder / "local"), "spark.sql.warehouse.dir": str(folder / "warehouse")}
    for name, value in (SETTINGS | folders | settings).items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    # The process's first session starts its JVM, with its settings as properties that later sessions would inherit.
    for name in SETTINGS | folders | settings:
        spark.sparkContext._jvm.java.lang.System.clearProperty(name)
    spark.sparkContext.setLogLevel("OFF")
    yield spark
    spark.stop()


@contextlib.contextmanager
def forked_ranks(spark: SparkSession) -> Iterator[None]:
    """Let the ranks of barrier jobs be forks, which start 2.5 s sooner (``tests/support/warm_daemon.py``).

    Spark keeps workers of other environments apart, so that no transform starts TensorFlow's runtime in the processes
    that are forked. The workers of transforms are forks that have imported TensorFlow as well.
    """
    run, environment = barrier.run, spark.sparkContext.environment
    environment[RANKS] = "none"

    @functools.wraps(run)
    def forked(*arguments: Any) -> Any:
        environment[RANKS] = "forked"
        try:
            return run(*arguments)
        finally:
            environment[RANKS] = "none"

    barrier.run = forked
    try:
        yield
    finally:
        barrier.run = run


def rows_of(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> list[tuple[object, float, float]]:
    weights = np.ones(len(features)) if weights is None else weights
    return [
        (Vectors.dense(x), float(y), float(w)) for x, y, w in zip(features.astype(float), labels, weights, strict=True)
    ]


def frame(spark: SparkSession, partitions: Sequence[Sequence[tuple[object, float, float]]]) -> DataFrame:
    """A DataFrame of these partitions, in this order: features (Vector), label, weight."""
    rdd = spark.sparkContext.parallelize([list(rows) for rows in partitions], len(partitions))
    return spark.createDataFrame(rdd.flatMap(list), SCHEMA)
