"""Real executor processes: ranks across them, and what happens when one is lost."""

from __future__ import annotations

import keras
import numpy as np
import psutil
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression

from cos_ml import DeepNetEstimator, DeepNetModel
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import frame, rows_of


def test_ranks_on_two_executors_are_the_loop_by_hand(spark):
    parts = split(reference.data(500), 300, 200)
    expected = reference.network()
    reference.train(expected, parts, 32, 3, keras.optimizers.SGD(0.1, momentum=0.9))
    model = estimator(reference.network()).fit(frame(spark, [rows_of(*part) for part in parts]))

    assert_same_weights(model.toKeras(), expected)
    assert [info["rank"] for info in model.summary.ranks] == [0, 1]
    assert {info["local_size"] for info in model.summary.ranks} == {2}  # two executors, one host


def test_a_pipeline_is_fitted_scored_saved_and_loaded(spark, tmp_path):
    df = frame(spark, [rows_of(*reference.data(400))])  # one partition: it has to be spread
    stages = [
        estimator(reference.network(), optimizer="adam", learningRate=0.01, epochs=10, featureLayers=["hidden"]),
        LogisticRegression(featuresCol="hidden", predictionCol="p", probabilityCol="pp", rawPredictionCol="rp"),
    ]
    model = Pipeline(stages=stages).fit(df)
    model.write().overwrite().save(str(tmp_path / "pipeline"))
    scored = type(model).load(str(tmp_path / "pipeline")).transform(df)
    assert scored.filter("p = label").count() > 360
    assert scored.filter("prediction = label").count() > 360


def test_an_executor_that_is_lost_costs_the_attempt_and_not_the_fit(spark, tmp_path):
    """A layer kills the JVM of its own executor, once; Spark starts another one, and the stage again."""
    marker = tmp_path / "killed"
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            Misbehaving("kill executor", marker=str(marker)),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    parts = split(reference.data(128), 64, 64)
    df = frame(spark, [rows_of(*part) for part in parts])
    options = {"loss": "sparse_categorical_crossentropy", "shuffle": False, "numTrainWorkers": 2, "progress": False}
    executors = executor_processes()
    survived = DeepNetEstimator(model=network, **options).fit(df).toKeras()
    assert marker.exists()
    assert len(executors - executor_processes()) == 1
    undisturbed = DeepNetEstimator(model=network, **options).fit(df).toKeras()
    assert_same_weights(survived, undisturbed, 1e-6)


def executor_processes() -> set[int]:
    backend = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if backend in process.cmdline():
                found.add(process.pid)
        except psutil.Error:
            pass
    return found


def test_transform_runs_on_executors(spark):
    part = reference.data(50)
    network = reference.network()
    df = frame(spark, [rows_of(*half) for half in split(part, 25, 25)])
    rows = DeepNetModel(model=network).transform(df).collect()
    np.testing.assert_allclose([row.probability.toArray() for row in rows], network(part[0]).numpy(), atol=1e-6)
