"""Fit, transform, save, load and tune in a session of Spark Connect."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator, DeepNetModel, broadcasts
from cos_ml.data.parquet_plan import stored_frame
from cos_ml.errors import ClusterError, InvalidInputError, RankError, SavedModelError
from cos_ml.network.keras_import import import_tensorflow
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator
from tests.support.sessions import SCHEMA, rows_of

# Spark's CrossValidator leaves its thread pool to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*Pool.__del__:pytest.PytestUnraisableExceptionWarning")

ROWS = 60
WHOLE = {"batchSize": ROWS, "epochs": 5}  # steps of all rows: which rank has which row then makes no difference


def outputs(scored: Any) -> np.ndarray:
    rows = scored.orderBy("id").collect()
    return np.array([[*row.probability, *row.hidden, row.prediction] for row in rows])


@pytest.fixture(scope="module")
def df(spark, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "rows")
    rows = [(*row, index) for index, row in enumerate(rows_of(*reference.data(ROWS)))]
    schema = T.StructType([*SCHEMA.fields, T.StructField("id", T.LongType())])
    spark.createDataFrame(rows, schema).write.parquet(path)
    return spark.read.parquet(path)


@pytest.fixture(scope="module")
def model(df):
    return estimator(reference.network(), featureLayers=["hidden"], **WHOLE).fit(df)


def test_two_ranks_are_the_loop_by_hand(model):
    expected = reference.network()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    history = reference.train(expected, [reference.data(ROWS)], ROWS, WHOLE["epochs"], optimizer)
    assert_same_weights(model.toKeras(), expected)
    assert model.summary.history["loss"] == pytest.approx(history, abs=1e-5)
    assert [info["rank"] for info in model.summary.ranks] == [0, 1]
    assert model.summary.rows == ROWS


def test_the_summary_is_a_frame(spark, model):
    rows = model.summary.toDataFrame(spark).collect()
    assert [row.loss for row in rows] == model.summary.history["loss"]


def test_transform_computes_what_the_network_computes(df, model):
    expected = model.toKeras()(reference.data(ROWS)[0]).numpy()
    found = outputs(model.transform(df))
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-5)
    assert (found[:, -1] == expected.argmax(axis=1)).all()


def test_evaluation(df, model):
    _, labels, _ = reference.data(ROWS)
    accuracy = (model.toKeras()(reference.data(ROWS)[0]).numpy().argmax(axis=1) == labels).mean()
    found = model.evaluate(df)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found.accuracy == pytest.approx(accuracy)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    assert evaluator.evaluate(model.transform(df)) == pytest.approx(accuracy)


def test_classes_have_thresholds_and_names(df, model):
    chosen = model.copy({model.thresholds: [1.0, 0.0, 1.0], model.labels: ["a", "b", "c"]}).setPredictedLabelCol("name")
    row = chosen.transform(df).first()
    assert (row.prediction, row.name) == (1.0, "b")
    assert chosen.predict(row.features) == 1.0
    np.testing.assert_allclose(model.predictProbability(row.features), row.probability, atol=1e-6)


def test_a_saved_model_gives_the_same_outputs(df, model, tmp_path):
    path = str(tmp_path / "model")
    model.save(path)
    with pytest.raises(SavedModelError, match=r"write\(\)\.overwrite\(\)"):
        model.save(path)
    model.write().overwrite().save(path)
    loaded = DeepNetModel.load(path)
    assert loaded.uid == model.uid
    np.testing.assert_array_equal(outputs(loaded.transform(df)), outputs(model.transform(df)))


def test_an_exported_file_computes_what_keras_computes(df, model, tmp_path):
    exported = model.export(tmp_path / "served" / "1", rows=df)
    assert exported.rows == 32
    served = import_tensorflow().saved_model.load(exported.path)
    features = reference.data(ROWS)[0].astype(np.float32)
    found = served.signatures["serving_default"](features=features)["probability"].numpy()
    np.testing.assert_allclose(found, model.toKeras().predict(features, verbose=0), atol=1e-6)


def test_a_saved_estimator_comes_back(spark, tmp_path):
    saved = estimator(reference.network(), **WHOLE)
    saved.write().overwrite().save(str(tmp_path / "estimator"))
    loaded = DeepNetEstimator.load(str(tmp_path / "estimator"))
    assert loaded.getBatchSize() == ROWS
    assert_same_weights(loaded.getModel(), reference.network(), 0)


def test_a_saved_pipeline_gives_the_same_outputs(df, model, tmp_path):
    regression = LogisticRegression(
        featuresCol="hidden", predictionCol="p", probabilityCol="pp", rawPredictionCol="rp", maxIter=3
    )
    fitted = Pipeline(stages=[model, regression]).fit(df)
    path = str(tmp_path / "pipeline")
    fitted.save(path)
    fitted.write().overwrite().save(path)
    scored, again = fitted.transform(df), PipelineModel.load(path).transform(df)
    np.testing.assert_array_equal(outputs(again), outputs(scored))
    assert [row.pp for row in again.orderBy("id").collect()] == [row.pp for row in scored.orderBy("id").collect()]


def test_cross_validation_chooses_and_is_saved(df, tmp_path):
    tuned = estimator(reference.network(), featureLayers=["hidden"], optimizer="sgd", **WHOLE)
    validator = CrossValidator(
        estimator=tuned,
        estimatorParamMaps=ParamGridBuilder().addGrid(tuned.learningRate, [1e-9, 1.0]).build(),
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        seed=1,
    )
    fitted = validator.fit(df)
    assert fitted.avgMetrics[1] > fitted.avgMetrics[0]
    assert fitted.bestModel.summary.rows == ROWS
    fitted.write().overwrite().save(str(tmp_path / "validator"))
    loaded = CrossValidatorModel.load(str(tmp_path / "validator"))
    np.testing.assert_array_equal(outputs(loaded.transform(df)), outputs(fitted.transform(df)))


def test_progress_is_shown(df, capsys):
    estimator(reference.network(), numTrainWorkers=1, progress=True, **WHOLE | {"epochs": 1}).fit(df)
    assert "epoch 1/1 - " in capsys.readouterr().err


def test_a_failing_rank_is_named_with_its_traceback(df):
    network = keras.Sequential([keras.Input((12,)), Misbehaving("raise"), keras.layers.Dense(3, activation="softmax")])
    with pytest.raises(RankError, match=r"(?s)^Rank 1 on .*tests/support/layers\.py.*this layer broke on purpose"):
        estimator(network).fit(df)


def test_a_bad_row_is_named(spark):
    rows = [*rows_of(*reference.data(3)), (None, 1.0, 1.0)]
    with pytest.raises(InvalidInputError, match="column 'features', row 3: is null"):
        estimator(reference.network(), numTrainWorkers=1).fit(spark.createDataFrame(rows, SCHEMA).coalesce(1))


def test_the_columns_of_parquet_files_that_spark_does_not_reach(spark, tmp_path):
    pq.write_table(pa.table({"x": [[1.0, 2.0]], "y": ["a"]}), tmp_path / "rows.parquet")
    found = stored_frame(spark, [f"local://{tmp_path}"])  # a scheme of fsspec's alone
    assert found.dtypes == [("x", "array<double>"), ("y", "string")]


def test_too_few_slots_is_an_error_at_once(df):
    with pytest.raises(ClusterError, match=r"numTrainWorkers=3 .*slots for 2.*local\[3\]"):
        estimator(reference.network(), numTrainWorkers=3).fit(df)


def test_a_network_that_no_query_can_carry_is_sent_once(spark, df, model, monkeypatch):
    expected, metrics = outputs(model.transform(df)), model.evaluate(df)
    sent, send = [], type(spark).addArtifacts
    monkeypatch.setattr(broadcasts, "IN_QUERY", 1)
    monkeypatch.setattr(type(spark), "addArtifacts", lambda *one, **kinds: (sent.append(one[1]), send(*one, **kinds)))
    trained = estimator(reference.network(), featureLayers=["hidden"], **WHOLE).fit(df)
    np.testing.assert_allclose(outputs(trained.transform(df)), expected, atol=1e-6)
    assert trained.evaluate(df) == pytest.approx(metrics)
    assert len(sent) == 2  # the network that is trained, and the trained one


def test_a_model_is_a_function_of_sql(spark, df, model):
    df = df.select("id", "features").cache()  # Spark 4.3 runs no function of Python on a scan of Parquet with Vectors
    df.createOrReplaceTempView("scored_rows")
    function = model.registerFunction(spark, "score")
    expected = outputs(model.transform(df))
    for rows in (
        spark.sql("SELECT id, s.* FROM (SELECT id, score(features) s FROM scored_rows)"),
        df.select("id", function("features").alias("s")).select("id", "s.*"),
    ):
        assert np.array_equal(outputs(rows), expected)
    arrays = model.copy({model.vectorType: "array"}).transform(df)
    assert arrays.schema["hidden"].dataType == T.ArrayType(T.FloatType())
    assert np.allclose(outputs(arrays), expected, atol=1e-6)
