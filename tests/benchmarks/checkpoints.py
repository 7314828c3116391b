"""What a checkpoint after each epoch costs: ``python -m tests.benchmarks.checkpoints ROWS RESULT``.

Fits with and without ``checkpointDir`` take turns in one session, on the rows of the other benchmarks.
"""

from __future__ import annotations

import sys
import tempfile
import time

from cos_ml import DeepNetEstimator
from tests.benchmarks import data

TURNS = 5


def main(rows: str, result: str) -> None:
    import keras

    df = data.cached_rows(data.session(), rows)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS + 1):
            for kind in sorted(seconds, reverse=bool(turn % 2)):  # neither is always the second one
                estimator = DeepNetEstimator(
                    model=data.network(keras), loss="sparse_categorical_crossentropy", epochs=data.EPOCHS,
                    batchSize=data.BATCH, numTrainWorkers=data.RANKS, progress=False,
                    checkpointDir=f"{folder}/{turn}" if kind == "with" else None,
                )  # fmt: skip
                start = time.perf_counter()
                estimator.fit(df)
                if turn:  # the first one warms up
                    seconds[kind].append(time.perf_counter() - start)
    data.report(result, seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
