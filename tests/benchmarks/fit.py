"""The product's fit, end to end from a cached DataFrame: ``python -m tests.benchmarks.fit ROWS RESULT``."""

from __future__ import annotations

import sys
import time

from cos_ml import DeepNetEstimator
from tests.benchmarks import data


def main(folder: str, result: str) -> None:
    import keras

    rows = data.cached_rows(data.session(), folder)
    estimator = DeepNetEstimator(
        model=data.network(keras),
        loss="sparse_categorical_crossentropy",
        optimizer="adam",
        metrics=["accuracy"],
        epochs=data.EPOCHS,
        batchSize=data.BATCH,
        numTrainWorkers=data.RANKS,
    )
    fits = []
    for _ in range(2):
        start = time.perf_counter()
        model = estimator.fit(rows)
        fits.append(time.perf_counter() - start)
    data.report(result, {"fits": fits, "loss": model.summary.history["loss"][-1]})


if __name__ == "__main__":
    main(*sys.argv[1:])
