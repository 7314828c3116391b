"""evaluate, and Spark's evaluators on what transform writes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.regression import LinearRegression

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from tests.support import reference
from tests.support.sessions import frame, rows_of

LOSS = "sparse_categorical_crossentropy"


@pytest.fixture(scope="module")
def data():
    features, labels, _ = reference.data(150)
    return features, labels, np.random.default_rng(2).uniform(0, 3, 150).astype(np.float32)


@pytest.fixture(scope="module")
def df(spark, data):
    rows = rows_of(*data)
    return frame(spark, [rows[:40], [], rows[40:]]).cache()


def compiled():
    network = reference.network()
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    network.compile(loss=LOSS, metrics=metrics, weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy()])
    return network


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_is_kerass_own(df, data, weighted):
    features, labels, weights = data
    network = compiled()
    model = DeepNetModel(model=network, weightCol="weight" if weighted else None, predictBatchSize=32)
    found = model.evaluate(df)
    weights = weights if weighted else np.ones_like(weights)
    expected = network.evaluate(features, labels, batch_size=150, sample_weight=weights, verbose=0, return_dict=True)
    each = keras.losses.sparse_categorical_crossentropy(labels, network(features)).numpy()
    expected["loss"] = np.average(each, weights=weights) + float(sum(network.losses))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.once
def test_a_fitted_model_evaluates_what_it_was_trained_with(df):
    model = DeepNetEstimator(model=reference.network(), loss=LOSS, metrics=["accuracy"], progress=False).fit(df)
    assert set(model.evaluate(df)) == {"loss", "accuracy"}
    assert np.isnan(model.evaluate(df.limit(0))["loss"])


@pytest.mark.once
@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.more), True])
def test_evaluate_of_masked_rows_does_not_depend_on_partitions_and_batches(spark, weighted):
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, 40)
    tokens = [random.integers(1, 9, length) for length in lengths]
    tags = [random.integers(0, 3, length) for length in lengths]
    weights = random.uniform(0, 3, 40).astype(np.float32) if weighted else np.ones(40, np.float32)
    rows = [(one.tolist(), two.tolist(), float(w)) for one, two, w in zip(tokens, tags, weights, strict=True)]
    parts = [spark.createDataFrame(part, "features array<int>, label array<int>, weight double").coalesce(1)
             for part in (rows[:7], rows[7:30], rows[30:])]  # fmt: skip
    network = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True),
            keras.layers.LSTM(5, return_sequences=True),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    network.compile(loss=LOSS, metrics=["accuracy"], weighted_metrics=[keras.metrics.SparseCategoricalCrossentropy()])
    model = DeepNetModel(model=network, weightCol="weight" if weighted else None, predictBatchSize=4)
    padded = [np.array([np.pad(row, (0, 8 - len(row))) for row in one]) for one in (tokens, tags)]
    scaled = (weights / weights.mean())[:, None]
    expected = network.evaluate(*padded, sample_weight=scaled, batch_size=40, verbose=0, return_dict=True)
    assert model.evaluate(parts[0].union(parts[1]).union(parts[2])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.once
def test_evaluate_needs_a_loss(df):
    with pytest.raises(InvalidInputError, match=r"needs a loss"):
        DeepNetModel(model=reference.network()).evaluate(df)


def same_metrics(evaluator, names, *scored):
    one, other = (df.cache() for df in scored)
    for name in names:
        evaluator = evaluator.setMetricName(name)
        assert evaluator.evaluate(one) == pytest.approx(evaluator.evaluate(other), abs=1e-5), name
    for df in scored:
        df.unpersist()


@pytest.mark.once
def test_multiclass(df):
    """A network with a LogisticRegression's own weights has its columns, and its scores."""
    theirs = LogisticRegression(maxIter=3).fit(df)
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(3, activation="softmax")])
    network.set_weights([theirs.coefficientMatrix.toArray().T, theirs.interceptVector.toArray()])
    mine = DeepNetModel(model=network)
    names = ["accuracy", "f1", "logLoss", "weightedPrecision", "hammingLoss"]
    same_metrics(MulticlassClassificationEvaluator(), names, mine.transform(df), theirs.transform(df))


@pytest.mark.parametrize("raw", ["rawPrediction", "probability"])
def test_binary(df, raw):
    df = df.withColumn("label", (df.label > 0).cast("double"))
    theirs = LogisticRegression(maxIter=3).fit(df)
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, activation="sigmoid")])
    network.set_weights([theirs.coefficients.toArray().reshape(12, 1), np.array([theirs.intercept])])
    mine = DeepNetModel(model=network).transform(df)
    same_metrics(BinaryClassificationEvaluator(rawPredictionCol=raw), ["areaUnderROC", "areaUnderPR"], mine,
                 theirs.transform(df))  # fmt: skip
    for one, other in zip(mine.collect(), theirs.transform(df).collect(), strict=True):
        np.testing.assert_allclose(one.rawPrediction.toArray(), other.rawPrediction.toArray(), rtol=1e-3, atol=1e-4)


def test_regression(df):
    theirs = LinearRegression(maxIter=3).fit(df)
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    network.set_weights([theirs.coefficients.toArray().reshape(12, 1), np.array([theirs.intercept])])
    mine = DeepNetModel(model=network)
    same_metrics(RegressionEvaluator(), ["rmse", "mae", "r2", "var"], mine.transform(df), theirs.transform(df))


@pytest.mark.once
def test_a_bad_row_is_the_same_error_as_in_a_fit(spark):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.compile("sgd", "mse")
    df = spark.createDataFrame([([1.0, 2.0], 1.0), ([1.0, float("nan")], 1.0)], "features array<double>, label double")
    with pytest.raises(InvalidInputError, match=r"column 'features', row \d: has NaN at position 1"):
        DeepNetModel(model=network).evaluate(df)
