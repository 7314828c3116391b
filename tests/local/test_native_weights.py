"""classWeights beside weightCol, LogisticRegression and Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator
from cos_ml.errors import InvalidInputError
from tests.support import reference
from tests.support.reference import assert_same_weights
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once

SIZES = (70, 30)


@pytest.fixture(scope="module")
def rows():
    """Rows of two classes, one of which is rare."""
    features, labels, _ = reference.data(100, classes=2)
    return features, np.where(np.arange(100) % 4, 0, labels).astype(int)


@pytest.fixture(scope="module")
def df(spark, rows):
    """Two partitions of different sizes; "weight" is balanced by class."""
    features, labels = rows
    weights = len(labels) / (2 * np.bincount(labels))[labels]
    found = rows_of(features, labels, weights)
    return frame(spark, [found[: SIZES[0]], found[SIZES[0] :]]).cache()


def make(**params) -> DeepNetEstimator:
    return reference.estimator(reference.network(classes=2), **{"batchSize": 16, "epochs": 2} | params)


@pytest.mark.more
def test_balanced_is_a_weight_column(df):
    """In one job: the candidates of a grid have weights of their own, and the same rows."""
    est = make()
    grid = [{est.classWeights: "balanced"}, {est.classWeights: {0: 1, 1: 0.5}}, {}]
    balanced, given, plain = est.fit(df, grid)
    expected = make(weightCol="weight").fit(df)
    assert_same_weights(balanced.toKeras(), expected.toKeras(), 1e-6)
    assert balanced.summary.history == expected.summary.history
    halves = df.withColumn("half", F.when(df.label == 1, 0.5).otherwise(1.0))
    assert_same_weights(given.toKeras(), make(weightCol="half").fit(halves).toKeras(), 1e-6)
    assert plain.summary.history != balanced.summary.history


def test_they_multiply_the_weight_column(df):
    found = make(weightCol="weight", classWeights={1: 3.0}).fit(df)
    product = df.withColumn("product", df.weight * F.when(df.label == 1, 3.0).otherwise(1.0))
    assert_same_weights(found.toKeras(), make(weightCol="product").fit(product).toKeras(), 1e-6)


@pytest.mark.parametrize("classes", ["balanced", {0: 0.2, 1: 2}])
def test_the_feed_by_parquet_files(df, tmp_path, classes):
    cached = make(feed="parquet", cacheDir=f"file://{tmp_path}/cache", classWeights=classes, numTrainWorkers=1)
    expected = make(classWeights=classes, numTrainWorkers=1).fit(df.coalesce(1))
    assert_same_weights(cached.fit(df.coalesce(1)).toKeras(), expected.toKeras(), 1e-6)


def test_fit_parquet(spark, rows, tmp_path):
    features, labels = rows
    plain = [(x.tolist(), int(y)) for x, y in zip(features, labels, strict=True)]
    spark.createDataFrame(plain, "features array<float>, label int").coalesce(1).write.parquet(f"{tmp_path}/rows")
    est = make(classWeights="balanced", numTrainWorkers=1)
    found = est.fitParquet(f"file://{tmp_path}/rows")
    expected = est.fit(spark.read.parquet(f"{tmp_path}/rows").coalesce(1))
    assert_same_weights(found.toKeras(), expected.toKeras(), 1e-6)


@pytest.mark.more
def test_a_logistic_regression_agrees(df):
    """Its optimum on the weights that are balanced is where Keras's training with balanced classes ends."""
    native = LogisticRegression(weightCol="weight", standardization=False, regParam=0.1).fit(df)
    keras.utils.set_random_seed(0)
    unit = keras.layers.Dense(1, "sigmoid", kernel_regularizer=keras.regularizers.L2(0.05))
    est = DeepNetEstimator(
        model=keras.Sequential([keras.Input((12,)), unit]), loss="binary_crossentropy", classWeights="balanced",
        optimizer="sgd", learningRate=1.0, batchSize=100, epochs=200, numTrainWorkers=1, progress=False,
    )  # fmt: skip
    kernel, bias = est.fit(df).toKeras().get_weights()
    np.testing.assert_allclose(kernel[:, 0], native.coefficients.toArray(), atol=1e-3)
    assert bias[0] == pytest.approx(native.intercept, abs=1e-3)


@pytest.mark.more
def test_they_are_tuned_saved_and_copied(spark, df, tmp_path):
    est = make(numTrainWorkers=1, epochs=1)
    grid = ParamGridBuilder().addGrid(est.classWeights, [{0: 1.0, 1: 0.0}, {0: 1.0, 1: 4.0}, "balanced"]).build()
    cv = CrossValidator(
        estimator=est, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), numFolds=2, seed=1
    )
    cv.write().overwrite().save(f"{tmp_path}/cv")
    loaded = CrossValidator.load(f"{tmp_path}/cv")
    param = loaded.getEstimator().classWeights
    copies = [loaded.getEstimator().copy(extra).getClassWeights() for extra in loaded.getEstimatorParamMaps()]
    assert copies == [one[est.classWeights] for one in grid]
    assert all(param in extra for extra in loaded.getEstimatorParamMaps())
    model = loaded.fit(df)
    best = grid[int(np.argmax(model.avgMetrics))][est.classWeights]
    assert model.bestModel.getClassWeights() == best
    model.save(f"{tmp_path}/model")
    assert CrossValidatorModel.load(f"{tmp_path}/model").bestModel.getClassWeights() == best


def test_the_value_is_checked():
    est = make(classWeights={np.int64(1): np.float32(0.5), 0.0: 2})
    assert est.getClassWeights() == {0: 2.0, 1: 0.5}
    for wrong in ("even", {0: -1.0}, {0: float("nan")}, {0: float("inf")}, {-1: 1.0}, {0.5: 1.0}, {"cat": 1.0}):
        with pytest.raises(InvalidInputError, match="Param classWeights: expected"):
            est.setClassWeights(wrong)
    for wrong in ([1.0, 2.0], {0: "1"}, {True: 1.0}, {0: None}, 1.0):
        with pytest.raises(TypeError, match="Param classWeights: expected"):
            est.setClassWeights(wrong)


@pytest.mark.parametrize(
    ("label", "match"), [("2.0", "is 2; expected an integer from 0 to 1"), ("0.5", "is 0.5; expected an integer")]
)
def test_a_label_of_no_class_is_named(df, label, match):
    """Of a sigmoid too, whose loss alone takes 0.5."""
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, "sigmoid")])
    est = reference.estimator(network, classWeights="balanced", numTrainWorkers=1)
    est.setLoss("binary_crossentropy").setMetrics([])
    with pytest.raises(InvalidInputError, match=f"column 'label', row 0: {match}"):
        est.fit(df.limit(5).withColumn("label", F.expr(label)))
