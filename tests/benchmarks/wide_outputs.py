"""The peak of every process of a transform with large outputs: ``python -m tests.benchmarks.wide_outputs [ROWS SIZE]``.

Feature layers of 30,000 numbers for 12,000 rows in one partition, and as many in another, with a heap of 1 GB.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from pyspark.sql import functions as F

from cos_ml import DeepNetModel
from tests.benchmarks import memory
from tests.support.sessions import session

FEATURES = 10


def main(rows: int = 12_000, size: int = 30_000) -> None:
    import keras

    with tempfile.TemporaryDirectory(prefix="cos_ml_wide_") as folder:
        spark = next(session("local[2]", Path(folder), **{"spark.driver.memory": "1g"}))
        features = F.array(*(F.rand(index).cast("float") for index in range(FEATURES)))
        df = spark.range(0, 2 * rows, 1, 2).select("id", features.alias("features"))
        inputs = keras.Input((FEATURES,))
        wide = keras.layers.Dense(size, name="wide")(inputs)
        network = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(wide))
        out = DeepNetModel(model=network, featureLayers=["wide"]).transform(df)
        start = time.perf_counter()
        with memory.peaks() as peaks:
            out.write.format("noop").mode("overwrite").save()
        print(f"{2 * rows:,} rows with {size:,} numbers: {time.perf_counter() - start:.0f} s")
        report(peaks)
        spark.stop()


def report(peaks: dict[tuple[str, int], int]) -> None:
    """Print the peak of each process, and whether it is more than wanted."""
    for (kind, pid), peak in sorted(peaks.items()):
        more = "" if peak < memory.LIMIT * 1e9 else "  more than wanted"
        print(f"    {kind:<14}{pid:>8}{peak / 1e9:>8.2f} GB{more}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
