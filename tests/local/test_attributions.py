"""Attributions as a column of transform: sums, names, types, bad rows, SQL, means, and models that were saved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame

from cos_ml import DeepNetModel
from tests.support import reference


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return reference.data(20)[0]


@pytest.fixture(scope="module")
def df(spark: Any, rows: np.ndarray) -> DataFrame:
    """The features as columns of their own, joined; the last row is bad."""
    names = [f"n{index}" for index in range(rows.shape[1])]
    values = [row.tolist() for row in rows] + [[float("nan")] * len(names)]
    raw = spark.createDataFrame(values, names).repartition(2)
    return VectorAssembler(inputCols=names, outputCol="features", handleInvalid="keep").transform(raw).cache()


@pytest.fixture(scope="module")
def network() -> Any:
    return reference.network()


def differences(network: Any, rows: np.ndarray) -> np.ndarray:
    """The probability of the predicted class minus what it is for zeros."""
    ends, start = network(rows).numpy(), network(rows * 0).numpy()
    at = ends.argmax(axis=1)[:, None]
    return np.take_along_axis(ends - start, at, 1)[:, 0]


@pytest.mark.once
def test_a_column_of_attributions(spark, df, network, rows, tmp_path):
    model = DeepNetModel(model=network, attributionsCol="why", attributionSteps=300, handleInvalid="skip")
    PipelineModel([model]).write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    scored = loaded.transform(df)
    names = [one["name"] for one in scored.schema["why"].metadata["ml_attr"]["attrs"]["numeric"]]
    assert names == [f"n{index}" for index in range(rows.shape[1])]
    found = scored.select("features", "why").collect()
    assert len(found) == len(rows)
    given = np.array([row.features.toArray() for row in found], np.float32)
    why = np.array([row.why.toArray() for row in found])
    assert np.allclose(why.sum(axis=1), differences(network, given), atol=0.005)
    means = model.mean(df).first()
    assert np.allclose(means.why.toArray(), why.mean(axis=0), atol=1e-6)


@pytest.mark.once
def test_bad_rows_arrays_and_sql(spark, df, network, rows):
    model = DeepNetModel(
        model=network, attributionsCol="why", attributionTarget=1, attributionBaseline=[0.5] * rows.shape[1],
        handleInvalid="keep", vectorType="array", predictionCol="", probabilityCol="", rawPredictionCol="",
    )  # fmt: skip
    scored = model.transform(df)
    assert scored.schema["why"].dataType.simpleString() == "array<float>"
    found = {str(row.features): row.why for row in scored.select("features", "why").collect()}
    assert sum(bool(np.isnan(why).all()) for why in found.values()) == 1
    model.registerFunction(spark, "explained")
    df.createOrReplaceTempView("rows_to_explain")
    for row in spark.sql("SELECT features, explained(features).why AS why FROM rows_to_explain").collect():
        assert np.allclose(row.why, found[str(row.features)], equal_nan=True, atol=1e-6)


@pytest.mark.once
def test_inputs_have_a_column_each(spark):
    keras.utils.set_random_seed(0)
    age, words = keras.Input((1,), name="age"), keras.Input((3,), dtype="int32", name="words")
    embedded = keras.layers.Flatten()(keras.layers.Embedding(5, 2)(words))
    network = keras.Model([age, words], keras.layers.Dense(1)(keras.layers.Concatenate()([age, embedded])))
    model = DeepNetModel(model=network, inputCols=["age", "words"], attributionsCol="why")
    df = spark.createDataFrame([(2.0, [1, 2, 3]), (0.0, [0, 0, 4])], "age double, words array<int>")
    for row in model.transform(df).collect():
        batch = [np.array([[row.age]], np.float32), np.array([row.words], np.int32)]
        change = (network(batch) - network([one * 0 for one in batch])).numpy().item()
        assert len(row.why_words) == 3
        assert row.why_age[0] + row.why_words.toArray().sum() == pytest.approx(change, abs=1e-5)
