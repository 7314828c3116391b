"""initialWeights, validationFraction and mean, with Spark."""

import numpy as np
import pytest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras

keras = import_keras()


def network(units=3):
    return keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(units, activation="relu", name="block_one"),
        keras.layers.Dense(2, activation="softmax", name="out"),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def rows(spark):
    pixels = np.random.default_rng(0).normal(size=(400, 4)).round(3)
    values = [(Vectors.dense(row), int(row[0] > 0), float(1 + i % 3)) for i, row in enumerate(pixels)]
    return spark.createDataFrame(values, ["features", "label", "weight"]).repartition(3).cache()


def estimator(**params):
    given = {
        "model": network(),
        "loss": "sparse_categorical_crossentropy",
        "progress": False,
        "validationFraction": 0.25,
    }
    return DeepNetEstimator(**given | params)


@pytest.fixture(scope="module")
def fitted(rows):
    source = network()
    est = estimator(initialWeights=source, frozenLayers=["block/one"], featureLayers=["block/one"], numTrainWorkers=2)
    return source, est, est.fit(rows)


@pytest.mark.once
def test_weights_that_are_frozen_stay_those_of_the_source(fitted):
    source, _, model = fitted
    np.testing.assert_array_equal(model.getModel().get_layer("block_one").kernel, source.get_layer("block_one").kernel)
    assert model.summary.initialWeights == {"taken": {"block_one": "block_one", "out": "out"}, "notTaken": {}}


@pytest.mark.more
@pytest.mark.once
def test_the_split_is_the_same_on_other_partitions_and_from_files(rows, fitted, tmp_path):
    _, est, model = fitted
    validation = model.summary.validationRows
    assert 70 < validation < 130
    assert model.summary.rows + validation == 400
    assert f"({validation} for validation)" in est.explain(rows)
    sparse = rows.rdd.map(lambda row: (Vectors.sparse(4, range(4), row.features.toArray()), row.label)).toDF(
        ["features", "label"]
    )
    again = est.copy({est.numTrainWorkers: 1}).fit(sparse.repartition(5))
    assert again.summary.validationRows == validation
    assert est.copy({est.seed: 5}).fit(rows).summary.validationRows != validation
    cached = est.copy({est.feed: "parquet", est.cacheDir: str(tmp_path / "cache")}).fit(rows)
    rows.withColumn("features", vector_to_array("features")).write.parquet(str(tmp_path / "rows"))
    stored = est.fitParquet(tmp_path / "rows")
    assert [cached.summary.validationRows, stored.summary.validationRows] == [validation] * 2
    for other in (cached, stored):  # the same rows, not only as many
        np.testing.assert_allclose(other.summary.history["val_loss"], model.summary.history["val_loss"], rtol=0.05)


@pytest.mark.once
def test_both_choices_of_validation_rows_are_refused(rows):
    with pytest.raises(InvalidInputError, match="Params validationFraction and validationIndicatorCol"):
        estimator(validationIndicatorCol="weight").fit(rows)


@pytest.mark.once
def test_the_mean_of_each_output_column(rows, fitted):
    _, _, model = fitted
    scored = model.transform(rows).collect()
    [found] = model.mean(rows).collect()
    assert found.__fields__ == ["block/one", "rawPrediction", "probability", "prediction"]
    for name in found.__fields__:
        values = [np.array(row[name].toArray() if hasattr(row[name], "toArray") else row[name]) for row in scored]
        np.testing.assert_allclose(np.array(found[name]), np.mean(values, axis=0), rtol=1e-12)
    [weighted] = model.copy({model.weightCol: "weight"}).mean(rows).collect()
    weights = [row["weight"] for row in scored]
    expected = np.average([row["block/one"].toArray() for row in scored], axis=0, weights=weights)
    np.testing.assert_allclose(weighted["block/one"].toArray(), expected, rtol=1e-12)
    assert weighted["prediction"] == pytest.approx(np.average([row["prediction"] for row in scored], weights=weights))


def test_the_mean_of_no_rows_is_nan(rows, fitted):
    _, _, model = fitted
    by_weight = model.copy({model.weightCol: "weight"})
    nothing = [rows.limit(0), rows.withColumn("weight", F.lit(0.0))]
    for [found] in (model.mean(nothing[0]).collect(), by_weight.mean(nothing[1]).collect()):
        assert np.isnan(found["prediction"])
        np.testing.assert_array_equal(found["block/one"].toArray(), [np.nan] * 3)
    with pytest.raises(Exception, match=r"Column 'weight' \(weightCol\): expected a finite number >= 0, received -1.0"):
        by_weight.mean(rows.withColumn("weight", F.lit(-1.0))).collect()


@pytest.mark.more
@pytest.mark.once
def test_saved_with_the_estimator_and_in_a_grid(fitted, tmp_path):
    source, est, model = fitted
    est.save(str(tmp_path / "estimator"))
    loaded = DeepNetEstimator.load(str(tmp_path / "estimator"))
    kernel = loaded.getInitialWeights().getModel().get_layer("block_one").kernel
    np.testing.assert_array_equal(kernel, source.get_layer("block_one").kernel)
    assert loaded.getValidationFraction() == 0.25
    assert model.getValidationFraction() == 0.25
    source.save_weights(tmp_path / "a.weights.h5")
    held = estimator(initialWeights=tmp_path / "a.weights.h5")
    grid = ParamGridBuilder().addGrid(held.initialWeights, [est.getInitialWeights()]).build()
    validator = CrossValidator(
        estimator=held, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), numFolds=2
    )
    validator.save(str(tmp_path / "validator"))
    again = CrossValidator.load(str(tmp_path / "validator"))
    (value,) = again.getEstimatorParamMaps()[0].values()
    np.testing.assert_array_equal(value.getModel().get_layer("block_one").kernel, kernel)
    assert again.getEstimator().getInitialWeights()._network().layers == ("file",)
