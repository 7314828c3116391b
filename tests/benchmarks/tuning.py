"""A grid in one barrier job per fold against one fit each: ``python -m tests.benchmarks.tuning RESULT``.

Digits, 4 candidates, 3 folds, 2 ranks; what CrossValidator does with either, without the evaluation of the models.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import keras
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import ParamGridBuilder
from sklearn.datasets import load_digits

from cos_ml import DeepNetEstimator
from tests.benchmarks import data

FOLDS = 3


def main(result: str) -> None:
    spark = data.session()
    images, labels = load_digits(return_X_y=True)
    rows = [
        (Vectors.dense(image / 16), float(label), index % FOLDS)
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    digits = spark.createDataFrame(rows, ["features", "label", "fold"]).repartition(data.RANKS).cache()
    estimator = DeepNetEstimator(
        model=_network(), loss="sparse_categorical_crossentropy", epochs=5, numTrainWorkers=data.RANKS, progress=False
    )
    grid = (
        ParamGridBuilder().addGrid(estimator.learningRate, [1e-3, 1e-2]).addGrid(estimator.batchSize, [16, 32]).build()
    )
    folds = [digits.filter(f"fold != {fold}").cache() for fold in range(FOLDS)]
    for fold in folds:
        fold.count()
    estimator.fit(folds[0])  # the first fit of a session is slower, and would count against one of the two
    together = _seconds(lambda: [list(estimator.fitMultiple(fold, grid)) for fold in folds])
    separate = _seconds(lambda: [estimator.fit(fold, candidate) for fold in folds for candidate in grid])
    data.report(result, {"together": together, "separate": separate})


def _network() -> keras.Model:
    keras.utils.set_random_seed(data.SEED)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(*sys.argv[1:])
