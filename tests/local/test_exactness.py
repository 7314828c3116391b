"""n ranks compute what one rank computes, and what a loop written out by hand computes: through Spark.

More splits and weights are in ``tests/unit/test_exactness.py``.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator
from tests.support import reference
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once

EPOCHS = 3


def accuracy(model: Any, part: reference.Part) -> float:
    return float((model(part[0]).numpy().argmax(axis=1) == part[1]).mean())


@pytest.mark.parametrize(
    ("sizes", "weighted"),
    [
        pytest.param((700, 300), False, id="uneven", marks=pytest.mark.more),
        pytest.param((640, 0), False, id="an empty partition"),
        pytest.param((700, 300), True, id="weighted and uneven"),
    ],
)
def test_two_ranks_are_the_loop_by_hand(spark, sizes, weighted):
    features, labels, weights = reference.data(sum(sizes))
    if weighted:
        weights = np.random.default_rng(1).integers(0, 4, len(labels)).astype(np.float32)
    parts = split((features, labels, weights), *sizes)
    df = frame(spark, [rows_of(*part) for part in parts])

    expected = reference.network()
    losses = reference.train(expected, parts, 32, EPOCHS, keras.optimizers.SGD(0.1, momentum=0.9))
    model = estimator(reference.network(), **({"weightCol": "weight"} if weighted else {})).fit(df)

    assert_same_weights(model.toKeras(), expected)
    np.testing.assert_allclose(model.summary.history["loss"], losses, atol=1e-5)
    assert model.summary.rows == sum(sizes)


def test_two_ranks_of_32_are_one_rank_of_64(spark):
    part = reference.data(640)
    halves = split(part, 320, 320)
    in_turn = [np.concatenate(arrays) for arrays in zip(*reference.global_batches(halves, 32), strict=True)]
    two = estimator(reference.network()).fit(frame(spark, [rows_of(*half) for half in halves]))
    one = estimator(reference.network(), numTrainWorkers=1, batchSize=64).fit(frame(spark, [rows_of(*in_turn)]))

    assert_same_weights(two.toKeras(), one.toKeras())
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(two.summary.history[name], one.summary.history[name], atol=1e-6)
    assert two.summary.steps == one.summary.steps == 10


def test_validation_is_exact_over_all_ranks(spark):
    train, held_out = reference.data(300), reference.data(130, seed=5)
    df = frame(spark, [rows_of(*train[:2], np.zeros(300))[:200] + rows_of(*held_out[:2])[:100],
                       rows_of(*train[:2], np.zeros(300))[200:] + rows_of(*held_out[:2])[100:]])  # fmt: skip
    marked = df.withColumn("held_out", df.weight > 0)
    model = estimator(reference.network(), validationIndicatorCol="held_out").fit(marked)

    assert (model.summary.rows, model.summary.validationRows) == (300, 130)
    history = model.summary.history
    assert history["val_accuracy"][-1] == pytest.approx(accuracy(model.toKeras(), held_out), abs=1e-6)
    trained = model.toKeras()
    each = keras.losses.sparse_categorical_crossentropy(held_out[1], trained(held_out[0])).numpy()
    assert history["val_loss"][-1] == pytest.approx(each.mean() + float(sum(trained.losses)), abs=1e-5)


def test_same_seed_same_weights_with_shuffle_batch_normalization_and_dropout(spark):
    keras.utils.set_random_seed(3)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    part = reference.data(900)
    df = frame(spark, [rows_of(*half) for half in split(part, 600, 300)]).cache()
    est = estimator(network, shuffle=True, seed=1, epochs=8, optimizer="adam", learningRate=0.02)
    first, other = (model.toKeras() for model in est.fit(df, [{est.seed: 1}, {est.seed: 2}]))
    again = est.fit(df).toKeras()
    assert_same_weights(first, again, 0)
    assert not np.allclose(first.get_weights()[0], other.get_weights()[0])
    assert accuracy(first, part) > 0.9  # in inference the statistics of both ranks count
    mean = first.layers[1].moving_mean.numpy()
    np.testing.assert_allclose(mean, first.layers[0](part[0]).numpy().mean(axis=0), atol=0.2)


def test_weights_are_those_of_logistic_regression(spark):
    """Both minimize the weighted mean of the log-loss; weights times 10, or rows repeated by weight, change nothing."""
    features, _, _ = reference.data(200)
    features, random = features[:, :3], np.random.default_rng(4)
    labels = (features.sum(axis=1) + random.normal(size=200) > 0).astype(np.float32)
    weights = random.integers(0, 5, 200).astype(np.float32)
    df = frame(spark, [rows_of(features, labels, weights)]).cache()
    theirs = LogisticRegression(weightCol="weight", tol=1e-9, maxIter=200).fit(df)

    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    network.compile(keras.optimizers.SGD(1.0, momentum=0.9), "binary_crossentropy")
    est = DeepNetEstimator(model=network, weightCol="weight", batchSize=1024, epochs=200, progress=False)
    repeated = df.select("features", "label", F.explode(F.array_repeat(F.lit(1.0), F.col("weight").cast("int"))))
    ours = [
        est.fit(df).toKeras(),
        est.fit(df.withColumn("weight", df.weight * 10)).toKeras(),
        est.copy({est.weightCol: "col"}).fit(repeated).toKeras(),
    ]
    for model in ours:
        kernel, bias = model.get_weights()
        np.testing.assert_allclose(kernel[:, 0], theirs.coefficients.toArray(), atol=2e-3)
        np.testing.assert_allclose(bias[0], theirs.intercept, atol=2e-3)
    for other in ours[1:]:
        assert_same_weights(ours[0], other)
