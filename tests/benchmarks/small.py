"""A small fit, such as in a notebook: a session, ``python -m tests.benchmarks.small RANKS``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors

from cos_ml import DeepNetEstimator
from tests.benchmarks import data

ROWS, FEATURES, CLASSES = 150, 4, 3


def main(ranks: str) -> None:
    import keras

    rng = np.random.default_rng(data.SEED)
    features, labels = rng.standard_normal((ROWS, FEATURES)), rng.integers(0, CLASSES, ROWS)
    rows = [(Vectors.dense(row), float(label)) for row, label in zip(features, labels, strict=True)]
    df = data.session().createDataFrame(rows, ["features", "label"]).cache()
    df.count()
    network = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    estimator = DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", numTrainWorkers=int(ranks), progress=False
    )
    models: list[Any] = []

    def seconds() -> dict[str, float]:
        """Of the last fit's phases, by the slowest rank."""
        phases = models[-1].summary.seconds
        return {name: max(one.get(name, 0.0) for one in phases) for name in phases[0]}

    data.serve({"fit": lambda: models.append(estimator.fit(df)), "phases": seconds})


if __name__ == "__main__":
    main(*sys.argv[1:])
