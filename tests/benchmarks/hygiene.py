"""What many fits and transforms leave in one session: ``python -m tests.benchmarks.hygiene [FITS TRANSFORMS MB]``.

Prints memory, threads and open files of the driver, Spark's JVM and the Python workers, and the disk that all of them
use, as time passes. The transforms are of a network of so many MB.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import keras
import psutil

from cos_ml import DeepNetEstimator, DeepNetModel
from tests.support import reference
from tests.support.sessions import frame, rows_of, session

LOOKS = 10


def main(fits: int = 100, transforms: int = 1000, megabytes: int = 40) -> None:
    with tempfile.TemporaryDirectory(prefix="cos_ml_hygiene_") as name:
        folder = Path(name)
        spark = next(session("local[2]", folder / "spark"))
        df = frame(spark, [rows_of(*reference.data(64))] * 2)
        estimator = DeepNetEstimator(
            model=reference.network(), loss="sparse_categorical_crossentropy", numTrainWorkers=2, progress=False,
            checkpointDir=str(folder / "states"), resume="never",
        )  # fmt: skip
        print(f"{'':<18}{'driver':>22}{'JVM':>16}{'Python workers':>22}   left behind")
        print(f"{'':<18}{'MB':>8}{'threads':>8}{'files':>6}{'MB':>10}{'files':>6}{'MB':>10}{'processes':>12}")
        for number in range(1, fits + 1):
            model = estimator.fit(df)
            if number % max(fits // LOOKS, 1) == 0:
                print(f"{number:>6} fits       {look(folder)}", flush=True)
        units = int((megabytes * 250_000) ** 0.5)
        layers = [keras.Input((12,)), *(keras.layers.Dense(size) for size in (units, units, 1))]
        model = DeepNetModel(model=keras.Sequential(layers))
        for number in range(1, transforms + 1):
            assert model.transform(df).count() == 128
            model.transform(df).select("prediction").collect()
            if number % max(transforms // LOOKS, 1) == 0:
                print(f"{number:>6} transforms {look(folder)}", flush=True)
        keras.backend.clear_session()
        spark.stop()


def look(folder: Path) -> str:
    """Memory, threads, files and processes now, as one line."""
    gc.collect()
    driver = psutil.Process()
    children = driver.children(recursive=True)
    jvm = next(process for process in children if process.name() == "java")
    workers = [process for process in children if "python" in process.name()]
    left = list((folder / "spark").rglob("cos_ml-*"))
    disk = sum(path.stat().st_size for path in (folder / "spark").rglob("*") if path.is_file())
    return (
        f"{driver.memory_info().rss / 1e6:>8.0f}{driver.num_threads():>8}{driver.num_fds():>6}"
        f"{jvm.memory_info().rss / 1e6:>10.0f}{jvm.num_fds():>6}"
        f"{sum(process.memory_info().rss for process in workers) / 1e6:>10.0f}{len(workers):>12}   "
        f"{len(left)} files, {disk / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
