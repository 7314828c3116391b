"""Stages that version 0.1.0 saved: they load, and compute what they did then (tests/fixtures/saved_0_1_0/README.md)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.linalg import Vectors

from cos_ml import DeepNetEstimator, DeepNetModel
from tests.support.sessions import ROOT

SAVED = ROOT / "tests" / "fixtures" / "saved_0_1_0"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
CLOSE = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def df(spark):
    columns = zip(EXPECTED["all_features"], EXPECTED["labels"], strict=True)
    rows = [(row, Vectors.dense(features), float(label)) for row, (features, label) in enumerate(columns)]
    return spark.createDataFrame(rows, ["id", "features", "label"]).coalesce(1)


@pytest.mark.parametrize(
    ("stage", "folder", "columns"),
    [
        (DeepNetModel, "model", ["prediction", "probability", "hidden"]),
        (PipelineModel, "pipeline", ["prediction", "probability", "hidden", "pp"]),
    ],
)
def test_a_model_and_a_pipeline_score_the_same(df, stage, folder, columns):
    rows = stage.load(str(SAVED / folder)).transform(df).orderBy("id").limit(len(EXPECTED["features"])).collect()
    for column in columns:
        np.testing.assert_allclose([np.asarray(row[column]) for row in rows], EXPECTED[column], **CLOSE)


@pytest.mark.once
def test_a_model_evaluates_to_the_same(df):
    found = DeepNetModel.load(str(SAVED / "model")).evaluate(df)
    assert found == pytest.approx(EXPECTED["evaluate"], rel=0, abs=1e-6)


def test_an_estimator_keeps_its_params(spark):
    estimator = DeepNetEstimator.load(str(SAVED / "estimator"))
    found = {param.name: estimator.getOrDefault(param) for param in estimator.params if estimator.isSet(param)}
    assert isinstance(found.pop("model"), DeepNetModel)
    assert estimator.getModel().get_layer("hidden").units == 5
    optimizer = found.pop("optimizer")
    assert (optimizer["class_name"], optimizer["config"]["learning_rate"]) == ("SGD", pytest.approx(0.1))
    assert found == {
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "epochs": 2,
        "batchSize": 16,
        "seed": 3,
        "shuffle": False,
        "featureLayers": ["hidden"],
        "callbacks": [{"class": "keras.callbacks:TerminateOnNaN", "ranks": "all", "arguments": {}}],
        "numTrainWorkers": 1,
        "progress": False,
    }
    assert estimator.uid == "DeepNetEstimator_a530fea66d4d"


@pytest.mark.once
def test_an_estimator_fits_to_the_same_weights(df):
    model = DeepNetEstimator.load(str(SAVED / "estimator")).fit(df)
    for found, expected in zip(model.toKeras().get_weights(), EXPECTED["trained"], strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)
