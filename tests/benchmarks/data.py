"""What the product and its peers are given alike: the numbers of the job, the rows, and a Spark session.

Runs in the peer's environment too: no cos_ml, and nothing that PySpark 3.5 lacks.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS, FEATURES, CLASSES = 60_000, 784, 10
HIDDEN = 128  # units
EPOCHS, RANKS, BATCH = 3, 2, 128
FILES = 24
SEED = 7


def write_rows(folder: Path) -> None:
    """Write the rows as Parquet: random features, and the class that a random linear map gives them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(SEED)
    weights = rng.standard_normal((FEATURES, CLASSES), dtype=np.float32)
    count = ROWS // FILES
    offsets = pa.array(np.arange(0, (count + 1) * FEATURES, FEATURES, dtype=np.int32))
    folder.mkdir()
    for index in range(FILES):
        features = rng.standard_normal((count, FEATURES), dtype=np.float32)
        label = (features @ weights).argmax(axis=1).astype(np.float64)
        lists = pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1)))
        pq.write_table(pa.table({"features": lists, "label": label}), folder / f"{index:02d}.parquet")


def network(keras: Any) -> Any:
    """The network, in the caller's Keras: 2 in the peer's environment, 3 in the product's."""
    keras.utils.set_random_seed(SEED)
    return keras.Sequential(
        [
            keras.layers.InputLayer((FEATURES,)),
            keras.layers.Dense(HIDDEN, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def session(cores: int = RANKS) -> SparkSession:
    """Spark on two cores, with this interpreter for its Python workers."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    settings = {"spark.driver.memory": "4g", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    builder = SparkSession.builder.master(f"local[{cores}]").appName("cos_ml benchmarks")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def cached_rows(spark: SparkSession, folder: str) -> DataFrame:
    """The rows, in Spark's memory: reading Parquet is nobody's figure."""
    rows = spark.read.parquet(folder).cache()
    if rows.count() != ROWS:
        raise RuntimeError(f"{folder}: expected {ROWS} rows, found {rows.count()}")
    return rows


def run_all(frame: DataFrame) -> None:
    """Compute every column of every row, and keep none."""
    frame.write.format("noop").mode("overwrite").save()


def serve(ways: Mapping[str, Callable[[], Any]]) -> None:
    """Be a session of ``process.Session``: run the way that is named, and answer with what it returns, or seconds."""
    with os.fdopen(int(os.environ["COS_ML_BENCHMARK_FIGURES"]), "w", 1) as figures:
        figures.write("null\n")
        for line in sys.stdin:
            start = time.perf_counter()
            answer = ways[line.strip()]()
            seconds = time.perf_counter() - start
            figures.write(json.dumps(seconds if answer is None else answer) + "\n")


def report(file: str, figures: dict[str, Any]) -> None:
    """Hand the figures to the process that started this one; standard output belongs to Spark and TensorFlow."""
    Path(file).write_text(json.dumps(figures))
