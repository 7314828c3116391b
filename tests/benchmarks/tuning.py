"""A grid of 4 candidates and 3 folds of digits, in a session of its own: ``python -m tests.benchmarks.tuning WAY``.

- product: a session that answers to "1" and "2", the ranks of the 12 trainings that CrossValidator asks for;
  "validator" is the whole of CrossValidator on one rank: its transforms, evaluations and last fit, too;
- keras: the same 12 trainings by ``keras.Model.fit`` in one process, from arrays in memory, without Spark.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np

from tests.benchmarks import data

FOLDS, EPOCHS = 3, 5
RATES, BATCHES = (1e-3, 1e-2), (32, 64)  # of all ranks together


def main(way: str) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    (_product if way == "product" else _keras)(images, labels.astype("float32"))


def _product(images: np.ndarray, labels: np.ndarray) -> None:
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.linalg import Vectors
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from cos_ml import DeepNetEstimator

    rows = [(Vectors.dense(x), float(y), at % FOLDS) for at, (x, y) in enumerate(zip(images, labels, strict=True))]
    digits = data.session().createDataFrame(rows, ["features", "label", "fold"])
    digits = digits.withColumn("fold", digits.fold.cast("int")).repartition(data.RANKS).cache()
    folds = [digits.filter(f"fold != {fold}").cache() for fold in range(FOLDS)]
    for fold in folds:
        fold.count()
    estimator = DeepNetEstimator(
        model=network(), loss="sparse_categorical_crossentropy", optimizer="adam", epochs=EPOCHS, progress=False
    )

    def grid(ranks: int) -> Any:
        builder = ParamGridBuilder().baseOn({estimator.numTrainWorkers: ranks})
        builder.addGrid(estimator.learningRate, list(RATES))
        return builder.addGrid(estimator.batchSize, [batch // ranks for batch in BATCHES]).build()

    def train(ranks: int) -> None:
        for fold in folds:
            list(estimator.fitMultiple(fold, grid(ranks)))

    validator = CrossValidator(
        estimator=estimator, estimatorParamMaps=grid(1), foldCol="fold", numFolds=FOLDS,
        evaluator=MulticlassClassificationEvaluator(),
    )  # fmt: skip

    def validate() -> None:
        validator.fit(digits)

    data.serve({"1": lambda: train(1), "2": lambda: train(2), "validator": validate})


def _keras(images: np.ndarray, labels: np.ndarray) -> None:
    import keras

    parts = [np.arange(len(images)) % FOLDS != fold for fold in range(FOLDS)]

    def train() -> None:
        for part, rate, batch in itertools.product(parts, RATES, BATCHES):
            model = network()
            model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
            model.fit(images[part].reshape(-1, 8, 8, 1), labels[part], batch_size=batch, epochs=EPOCHS, verbose=0)

    data.serve(dict.fromkeys(("1", "2"), train))


def network() -> Any:
    """A small convolutional network for 8 x 8 pixels."""
    import keras

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


if __name__ == "__main__":
    main(*sys.argv[1:])
