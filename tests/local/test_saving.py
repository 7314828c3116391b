"""Saved models, loaded in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import SavedModelError
from tests import reference
from tests.layers import Counting
from tests.sessions import ROOT, frame, rows_of

FRESH = """
import json, sys
from pyspark.sql import SparkSession
kind, model, data = sys.argv[1:]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
from pyspark.ml import PipelineModel
from cos_ml import DeepNetModel
loaded = {"model": DeepNetModel, "pipeline": PipelineModel}[kind].load(model)
out = loaded.transform(spark.read.parquet(data)).orderBy("id")
print(json.dumps([[*row.probability, *row.hidden, row.prediction] for row in out.collect()]))
"""


def in_a_fresh_process(kind: str, model: Any, data: Any) -> np.ndarray:
    done = subprocess.run(
        [sys.executable, "-c", FRESH, kind, str(model), str(data)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(done.stdout))


def outputs(scored: Any) -> np.ndarray:
    rows = scored.orderBy("id").collect()
    return np.array([[*row.probability, *row.hidden, row.prediction] for row in rows])


@pytest.fixture(scope="module")
def df(spark, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "rows")
    frame(spark, [rows_of(*reference.data(60))]).selectExpr("*", "monotonically_increasing_id() id").write.parquet(path)
    return spark.read.parquet(path)


def test_a_model_gives_the_same_outputs_in_a_fresh_process(df, tmp_path):
    estimator = DeepNetEstimator(
        model=reference.network(), loss="sparse_categorical_crossentropy", featureLayers=["hidden"], progress=False
    )
    model = estimator.fit(df)
    path = tmp_path / "model"
    model.write().overwrite().save(str(path))
    np.testing.assert_allclose(
        in_a_fresh_process("model", path, df.inputFiles()[0].rsplit("/", 1)[0]), outputs(model.transform(df)), atol=1e-6
    )


def test_a_pipeline_that_holds_one_gives_the_same_outputs_in_a_fresh_process(df, tmp_path):
    network = DeepNetModel(model=reference.network(), featureLayers=["hidden"])
    regression = LogisticRegression(
        featuresCol="hidden", predictionCol="p", probabilityCol="pp", rawPredictionCol="rp", maxIter=3
    )
    model = Pipeline(stages=[network, regression]).fit(df)
    path = tmp_path / "pipeline"
    model.write().overwrite().save(str(path))
    model.write().overwrite().save(str(path))  # over itself
    np.testing.assert_allclose(
        in_a_fresh_process("pipeline", path, df.inputFiles()[0].rsplit("/", 1)[0]),
        outputs(model.transform(df)), atol=1e-6,
    )  # fmt: skip


def test_params_come_back(spark, tmp_path):
    model = DeepNetModel(
        model=reference.network(), featuresCol="f", predictionCol="", featureLayers=["hidden"], outputCols=["code"]
    )
    model.save(str(tmp_path / "model"))
    loaded = DeepNetModel.load(str(tmp_path / "model"))
    assert loaded.uid == model.uid
    assert loaded.getFeaturesCol() == "f"
    assert loaded.getPredictionCol() == ""
    assert loaded.getOutputCols() == ["code"]
    assert loaded.getModel().get_config() == model.getModel().get_config()


def test_hundreds_of_megabytes_go_through_in_pieces(spark, tmp_path):
    inputs = keras.Input((1,), dtype="int32")
    table = keras.layers.Embedding(600_000, 100, embeddings_initializer="uniform")  # 240 MB
    network = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(table(inputs))))
    DeepNetModel(model=network).write().overwrite().save(str(tmp_path / "model"))
    pieces = spark.read.parquet(str(tmp_path / "model" / "data")).selectExpr("length(data) size").collect()
    assert len(pieces) > 20
    assert max(row["size"] for row in pieces) <= 8 << 20
    loaded = DeepNetModel.load(str(tmp_path / "model"))
    scored = loaded.transform(spark.createDataFrame([(7,), (599_999,)], "features int")).collect()
    expected = network(np.array([[7], [599_999]])).numpy()[:, 0]
    np.testing.assert_allclose([row.prediction for row in scored], expected, atol=1e-6)


def test_a_path_that_exists_is_an_error_that_says_how_to_replace_it(spark, tmp_path):
    model = DeepNetModel(model=reference.network())
    model.save(str(tmp_path / "model"))
    with pytest.raises(SavedModelError, match=r"write\(\).overwrite\(\).save"):
        model.save(str(tmp_path / "model"))


def test_a_path_with_a_scheme_is_sparks_to_open(spark, tmp_path):
    model = DeepNetModel(model=reference.network())
    model.write().overwrite().save(f"file://{tmp_path}/model")
    assert DeepNetModel.load(f"file://{tmp_path}/model").uid == model.uid


def test_custom_layers_name_the_module_to_import(spark, tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((2,)), Counting(str(tmp_path / "loads")), keras.layers.Dense(1)])
    DeepNetModel(model=network).save(str(tmp_path / "model"))
    assert DeepNetModel.load(str(tmp_path / "model")).getModel().layers[0].file == str(tmp_path / "loads")
    monkeypatch.delitem(sys.modules, "tests.layers")
    with pytest.raises(SavedModelError, match=r"import tests.layers before"):
        DeepNetModel.load(str(tmp_path / "model"))


def test_a_loaded_pipeline_model_is_one(df, tmp_path):
    model = Pipeline(stages=[DeepNetModel(model=reference.network())]).fit(df)
    model.save(str(tmp_path / "pipeline"))
    (stage,) = PipelineModel.load(str(tmp_path / "pipeline")).stages
    assert isinstance(stage, DeepNetModel)
    assert not stage.hasSummary
