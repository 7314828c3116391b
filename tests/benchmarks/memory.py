"""The peak of every process of a fit to many rows: ``python -m tests.benchmarks.memory [GB [RESULT]]``.

Rows of 784 float32 in Parquet files, 2 ranks, all feeds and ``fitParquet``; Spark's JVM has a heap of 512 MB. It takes
about three times the size of the data as disk, in the folder for temporary files.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator
from tests.benchmarks import data

LIMIT = 1.5  # GB of resident memory
SMALL = 10 << 20  # bytes: a process that is just starting
INTERVAL = 0.1  # seconds between two looks for new processes; their peaks are the kernel's
SERVER = "cos_ml.rank.server"
KINDS = {
    SERVER: "rank server",
    "cos_ml.rank": "rank",
    "pyspark.daemon": "barrier task",
    "java": "Spark's JVM",
}


def main(gigabytes: str = "4", result: str = "") -> None:
    import keras

    rows = int(float(gigabytes) * 1e9 / 4 / data.FEATURES)
    with tempfile.TemporaryDirectory(prefix="cos_ml_memory_") as folder:
        spark = _session(folder)
        stored = _stored(spark, rows, f"{folder}/rows")
        estimator = DeepNetEstimator(
            model=data.network(keras),
            loss="sparse_categorical_crossentropy",
            epochs=1,
            batchSize=1024,
            numTrainWorkers=data.RANKS,
            cacheDir=f"{folder}/cache",
        )
        fits: dict[str, Callable[[], Any]] = {
            'feed="arrow"': lambda: estimator.fit(stored),
            'feed="parquet"': lambda: estimator.fit(stored, {estimator.feed: "parquet"}),
            'feed="petastorm"': lambda: estimator.fit(stored, {estimator.feed: "petastorm"}),
            "fitParquet": lambda: estimator.fitParquet(f"{folder}/rows"),
        }
        found: dict[str, dict[str, list[float]]] = {}
        for name, fit in fits.items():
            start = time.perf_counter()
            with peaks() as seen_peaks:
                seen = fit().summary.rows
            print(
                f"{name}: {seen:,} rows, {seen * data.FEATURES * 4 / 1e9:.1f} GB, {time.perf_counter() - start:.0f} s"
            )
            for (kind, pid), peak in sorted(seen_peaks.items()):
                found.setdefault(name, {}).setdefault(kind, []).append(peak / 1e9)
                print(
                    f"    {kind:<14}{pid:>8}{peak / 1e9:>8.2f} GB{'' if peak < LIMIT * 1e9 else '  more than wanted'}"
                )
        spark.stop()
    if result:
        data.report(result, found)


def _session(folder: str) -> SparkSession:
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    settings = {
        "spark.driver.memory": "512m",
        "spark.local.dir": f"{folder}/local",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{data.RANKS}]").appName("cos_ml benchmark of memory")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _stored(spark: SparkSession, rows: int, path: str) -> Any:
    """Random rows, written by the JVM alone."""
    number = F.pmod(F.hash("id"), F.lit(1000)).cast("float") / 1000
    features = F.transform(F.sequence(F.lit(1), F.lit(data.FEATURES)), lambda index: number * index.cast("float"))
    made = spark.range(rows, numPartitions=16).select(
        features.cast("array<float>").alias("features"), F.pmod("id", F.lit(data.CLASSES)).cast("int").alias("label")
    )
    made.write.option("parquet.block.size", 16 << 20).option("compression", "none").parquet(path)
    return spark.read.parquet(path)


@contextmanager
def peaks() -> Iterator[dict[tuple[str, int], int]]:
    """Bytes of the largest resident memory of every process below this one, by kind and process."""
    found: dict[tuple[str, int], int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            for process in _processes():
                try:
                    line, above = " ".join(process.cmdline()), process.parent()
                    parent = " ".join(above.cmdline()) if above else ""
                    high = Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
                except (psutil.Error, OSError, IndexError):
                    continue  # it has just ended
                kind = next((kind for part, kind in KINDS.items() if part in line), "driver")
                kind = "rank" if kind == "rank server" and parent == line else kind  # a fork of it
                if int(high) << 10 > SMALL:
                    found[kind, process.pid] = int(high) << 10

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _processes() -> list[psutil.Process]:
    """This process, those below it, and the rank servers of executors among them, which are nobody's children."""
    found = [psutil.Process(), *psutil.Process().children(recursive=True)]
    pids = {process.pid for process in found}
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if SERVER in line and process.pid not in pids and pids & set(json.loads(line[-1])["executor"]):
            found.append(process)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
