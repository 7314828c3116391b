"""Validation, early stopping, callbacks, frozen layers, and where training starts."""

from __future__ import annotations

import csv
from typing import Any

import keras
import numpy as np
import pytest

from cos_ml import DeepNetEstimator, DeepNetModel, callback
from tests.support import reference
from tests.support.layers import StopAfter
from tests.support.reference import assert_same_weights
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


def make(**params: Any) -> DeepNetEstimator:
    defaults = {
        "model": reference.network(),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "batchSize": 16,
        "numTrainWorkers": 2,
        "progress": False,
    }
    return DeepNetEstimator(**defaults | params)


@pytest.fixture(scope="module")
def parts():
    features, labels, weights = reference.data(200)
    return rows_of(features, labels, weights)


def marked(spark: Any, partitions: list[list[Any]], held: list[list[bool]]) -> Any:
    """A DataFrame of these partitions with a column that marks validation rows."""
    rows = [[(*row[:2], mark) for row, mark in zip(*both, strict=True)] for both in zip(partitions, held, strict=True)]
    schema = frame(spark, [partitions[0][:1]]).schema
    fields = [*schema.fields[:2]]
    rdd = spark.sparkContext.parallelize(rows, len(rows)).flatMap(list)
    from pyspark.sql import types as T

    return spark.createDataFrame(rdd, T.StructType([*fields, T.StructField("held", T.BooleanType())]))


@pytest.mark.parametrize(
    "where", [pytest.param("mixed", marks=pytest.mark.more), "all in one partition", "none in one partition"]
)
def test_validation_is_over_all_its_rows(spark, parts, where):
    held = {
        "mixed": [[i % 4 == 0 for i in range(120)], [i % 3 == 0 for i in range(80)]],
        "all in one partition": [[True] * 120, [False] * 80],
        "none in one partition": [[i < 40 for i in range(120)], [False] * 80],
    }[where]
    df = marked(spark, [parts[:120], parts[120:]], held)
    model = make(validationIndicatorCol="held", epochs=2).fit(df)
    marks = np.array([*held[0], *held[1]])
    features, labels, _ = reference.data(200)
    network = model.toKeras()
    network.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = network.evaluate(features[marks], labels[marks], verbose=0)
    assert model.summary.history["val_loss"][-1] == pytest.approx(loss, abs=1e-5)
    assert model.summary.history["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)
    assert (model.summary.rows, model.summary.validationRows) == ((~marks).sum(), marks.sum())


def test_early_stopping(spark, parts):
    """A learning rate that is far too large: all ranks stop together, with the weights of the best epoch."""
    held = [[i % 3 == 0 for i in range(100)]] * 2
    df = marked(spark, [parts[:100], parts[100:]], held)
    params = {"validationIndicatorCol": "held", "epochs": 30, "learningRate": 3.0, "optimizer": "sgd"}
    est = make(**params, patience=2)
    last, best = est.fit(df, [{est.restoreBestWeights: False}, {est.restoreBestWeights: True}])
    stopped = last.summary.history["val_loss"]
    assert best.summary.history["val_loss"] == stopped
    assert len(stopped) < 30
    assert int(np.argmin(stopped)) == len(stopped) - 3
    found = best.setWeightCol(None).evaluate(df.filter("held"))
    assert found["loss"] == pytest.approx(min(stopped), abs=1e-5)
    alone = make(**params | {"epochs": int(np.argmin(stopped)) + 1}).fit(df)
    assert_same_weights(best.toKeras(), alone.toKeras(), tolerance=1e-6)


def test_callbacks_run_where_they_should(spark, parts, tmp_path):
    """One that writes, on rank 0; one that changes the learning rate, on all; one that stops, wherever it says so."""
    df = frame(spark, [parts[:100], parts[100:]])
    log = tmp_path / "log.csv"
    est = make(
        epochs=9,
        optimizer="sgd",
        learningRate=1e-4,
        callbacks=[
            callback("CSVLogger", filename=str(log)),
            callback("ReduceLROnPlateau", monitor="loss", factor=0.5, min_delta=1e9, patience=0, cooldown=0),
            callback(StopAfter, epochs=3),
        ],
    )
    history = est.fit(df).summary.history
    assert len(history["loss"]) == 3  # StopAfter acts on rank 1 alone, in the middle of an epoch
    rows = list(csv.DictReader(log.open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    np.testing.assert_allclose([float(row["loss"]) for row in rows], history["loss"], rtol=1e-6)
    # The first epoch is the best one; the rate is halved after each of the two that follow.
    np.testing.assert_allclose(history["learning_rate"], [1e-4, 1e-4, 0.5e-4], rtol=1e-5)


def test_tensorboard_gets_the_logs_of_all_rows(spark, parts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    est = make(epochs=3, callbacks=[callback("TensorBoard", log_dir=str(tmp_path / "logs"))])
    history = est.fit(frame(spark, [parts[:150], parts[150:]])).summary.history
    (file,) = (tmp_path / "logs" / "train").iterdir()  # of one rank
    events = EventAccumulator(str(file)).Reload()
    for name in ("loss", "accuracy"):
        logged = [float(make_ndarray(event.tensor_proto)) for event in events.Tensors(f"epoch_{name}")]
        np.testing.assert_allclose(logged, history[name], rtol=1e-6)


@pytest.mark.more
def test_fine_tuning(spark, parts, tmp_path):
    """A fitted model as the start of the next fit, with a layer that stays as it is."""
    df = frame(spark, [parts[:100], parts[100:]])
    first = make(epochs=1).fit(df)
    before = first.toKeras()
    tuned = make(model=first, frozenLayers=["hidden"], epochs=2, learningRate=0.05).fit(df)
    after = tuned.toKeras()
    for name, same in (("hidden", True), ("out", False)):
        pairs = zip(before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs) == same
    assert after.get_layer("hidden").trainable
    assert tuned.summary.history["loss"][0] < first.summary.history["loss"][0]
    before.save(tmp_path / "first.keras")
    again = make(model=str(tmp_path / "first.keras"), frozenLayers=["hidden"], epochs=2, learningRate=0.05).fit(df)
    assert_same_weights(again.toKeras(), after, tolerance=0)


def test_a_nested_model_is_frozen_as_a_whole(spark, parts):
    body = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4), keras.layers.BatchNormalization()], name="body")
    body.layers[0].trainable = False
    network = keras.Sequential([keras.Input((12,)), body, keras.layers.Dense(3, activation="softmax")])
    model = make(model=network, frozenLayers=["body"], numTrainWorkers=1).fit(frame(spark, [parts]))
    trained = model.toKeras().get_layer("body")
    for one, other in zip(body.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [layer.trainable for layer in trained.layers] == [False, True]


def test_a_pretrained_network_is_a_stage(spark, parts):
    df = frame(spark, [parts])
    model = DeepNetModel(model=reference.network(), featureLayers=["hidden"], predictionCol="")
    assert model.transform(df).select("hidden").first().hidden.size == 16
