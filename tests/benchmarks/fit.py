"""The product's fit, end to end from a cached DataFrame: a session, ``python -m tests.benchmarks.fit ROWS``."""

from __future__ import annotations

import sys
from typing import Any

from cos_ml import DeepNetEstimator
from tests.benchmarks import data


def main(folder: str) -> None:
    import keras

    rows = data.cached_rows(data.session(), folder)
    estimator = DeepNetEstimator(
        model=data.network(keras), loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"],
        epochs=data.EPOCHS, batchSize=data.BATCH, numTrainWorkers=data.RANKS, progress=False,
    )  # fmt: skip
    models: list[Any] = []
    data.serve(
        {"fit": lambda: models.append(estimator.fit(rows)), "loss": lambda: models[-1].summary.history["loss"][-1]}
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
