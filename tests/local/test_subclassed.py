"""Models of layers in attributes, and models of models without a ``call``: from a DataFrame to a fresh process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from tests.conformance import cases_subclassed as cases
from tests.support.sessions import ROOT

pytestmark = pytest.mark.once

FRESH = """
import json, sys
from pyspark.sql import SparkSession
from cos_ml import DeepNetModel
import tests.conformance.usermodels
folder, data = sys.argv[1:]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
loaded = DeepNetModel.load(folder)
print(json.dumps([[*row.probability, *row.hidden] for row in loaded.transform(spark.read.parquet(data)).collect()]))
"""


@pytest.fixture(scope="module")
def df(spark, tmp_path_factory):
    random, path = np.random.default_rng(0), str(tmp_path_factory.mktemp("rows"))
    rows = [(random.normal(size=4).astype("float32").tolist(), index % 3, index > 20) for index in range(30)]
    schema = "features array<float>, label int, held boolean"
    spark.createDataFrame(rows, schema).coalesce(1).write.mode("overwrite").parquet(path)
    return spark.read.parquet(path)


@pytest.mark.more
def test_classifier_fitted_scored_and_loaded_elsewhere(df, tmp_path):
    model = cases.classifier()
    hidden = model.blocks[1].name  # a name that Keras has made up in this process
    fitted = DeepNetEstimator(
        model=model, numTrainWorkers=2, epochs=2, featureLayers=[hidden], outputCols=["hidden"], progress=False
    ).fit(df)
    network = fitted.toKeras()
    rows = np.array([row.features for row in df.collect()], "float32")
    logits = network.predict(rows, verbose=0)
    assert type(network) is type(model)
    assert not np.allclose(logits, model.predict(rows, verbose=0), atol=1e-3)
    out = fitted.transform(df).collect()
    assert np.allclose([row.rawPrediction.toArray() for row in out], logits, atol=1e-5)
    right = np.array([[*row.probability, *row.hidden] for row in out])
    assert right.shape == (30, 3 + 5)
    assert fitted.evaluate(df)["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == np.arange(30) % 3))
    fitted.save(str(tmp_path / "model"))
    fresh = [sys.executable, "-c", FRESH, tmp_path / "model", df.inputFiles()[0].rsplit("/", 1)[0]]
    done = subprocess.run(fresh, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(json.loads(done.stdout), right, atol=1e-5)


def test_gan_is_trained_and_its_parts_score(df, tmp_path):
    options = {"model": cases.gan(), "epochs": 2, "progress": False}
    fitted = DeepNetEstimator(**options).fit(df.drop("label"))
    assert set(fitted.summary.history) == {"d_loss", "g_loss"}
    fitted.save(str(tmp_path / "gan"))
    loaded = DeepNetModel.load(str(tmp_path / "gan")).toKeras()
    assert all(map(np.array_equal, loaded.get_weights(), fitted.toKeras().get_weights()))
    for method in (fitted.transform, fitted.evaluate):
        with pytest.raises(InvalidInputError, match=r"no call\(\).*DeepNetModel\(model=trained.toKeras\(\)"):
            method(df)
    with pytest.raises(InvalidInputError, match=r"validation is not possible.*test_step"):
        DeepNetEstimator(**options, validationIndicatorCol="held").fit(df)
    judge = DeepNetModel(model=loaded.discriminator)
    assert judge.transform(df).select("prediction").distinct().count() > 5
