"""DeepNetModel.transform: columns as Spark ML's own models write them, for every kind of input."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import DeepNetModel
from cos_ml.errors import InvalidInputError
from tests.support import reference
from tests.support.layers import Counting
from tests.support.sessions import frame, rows_of

ROWS = 500


@pytest.fixture(scope="module")
def part() -> reference.Part:
    return reference.data(ROWS)


@pytest.fixture(scope="module")
def df(spark, part) -> Any:
    rows = rows_of(*part)
    return frame(spark, [rows[:300], rows[300:300], rows[300:]]).withColumn("name with.dot", F.lit("kept")).cache()


def plan_of(df: Any, name: str) -> str:
    """One of the plans that ``explain`` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        df.explain("extended")
    return printed.getvalue().partition(f"== {name} ==")[2].partition("\n==")[0]


def values(df: Any, column: str) -> np.ndarray:
    return np.array([row[0].toArray() if hasattr(row[0], "toArray") else row[0] for row in df.select(column).collect()])


def test_every_row_in_order_with_all_other_columns(df, part):
    network = reference.network()
    out = DeepNetModel(model=network, featureLayers=["hidden"], outputCols=["code"]).transform(df)
    assert out.columns == [*df.columns, "code", "rawPrediction", "probability", "prediction"]
    assert out.drop("code", "prediction", "probability", "rawPrediction").collect() == df.collect()
    expected = network(part[0]).numpy()
    np.testing.assert_allclose(values(out, "probability"), expected, atol=1e-6)
    np.testing.assert_allclose(values(out, "rawPrediction"), np.log(expected), atol=1e-4)
    assert (values(out, "prediction") == expected.argmax(axis=1)).all()
    np.testing.assert_allclose(values(out, "code"), network.layers[0](part[0]).numpy(), atol=1e-6)
    types = {field.name: field.dataType for field in out.schema}
    assert types["prediction"] == T.DoubleType()
    assert types["probability"] == types["rawPrediction"] == types["code"] == VectorUDT()


def test_one_python_udf(df):
    out = DeepNetModel(model=reference.network(), featureLayers=["hidden"]).transform(df)
    plan = plan_of(out, "Physical Plan")
    assert plan.count("ArrowEvalPython") == 1


@pytest.mark.once
def test_layers_of_nested_models_are_tapped_by_name(df, part):
    inner = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4, name="deep")], name="inner")
    inputs = keras.Input((12,))
    network = keras.Model(inputs, keras.layers.Dense(1, name="top")(keras.layers.ReLU(name="relu")(inner(inputs))))
    out = DeepNetModel(model=network, featureLayers=["inner/deep", "relu"], predictionCol="").transform(df)
    deep = inner(part[0]).numpy()
    np.testing.assert_allclose(values(out, "deep"), deep, atol=1e-6)
    np.testing.assert_allclose(values(out, "relu"), np.maximum(deep, 0), atol=1e-6)
    assert "prediction" not in out.columns


@pytest.mark.once
def test_an_unknown_layer_is_an_error_that_lists_those_there_are():
    with pytest.raises(InvalidInputError, match=r"no layer 'hiden'.*'hidden', 'out'"):
        DeepNetModel(model=reference.network(), featureLayers=["hiden"])


FEATURES = {
    "dense vector": lambda x: (Vectors.dense(x), VectorUDT()),
    "sparse vector": lambda x: (Vectors.sparse(len(x), list(enumerate(x))[::-1][::-1]), VectorUDT()),
    "doubles": lambda x: (x.tolist(), T.ArrayType(T.DoubleType())),
    "floats": lambda x: (x.tolist(), T.ArrayType(T.FloatType())),
    "longs": lambda x: (x.astype(int).tolist(), T.ArrayType(T.LongType())),
    "bytes": lambda x: (x.astype(int).tolist(), T.ArrayType(T.ByteType())),
    "nested arrays": lambda x: (x.reshape(3, 4).tolist(), T.ArrayType(T.ArrayType(T.DoubleType()))),
    "binary": lambda x: (bytearray(x.astype(np.uint8).tobytes()), T.BinaryType()),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_every_kind_of_input_column(spark, kind):
    x = np.random.default_rng(0).integers(0, 100, (40, 12)).astype(float)
    convert = FEATURES[kind]
    schema = T.StructType([T.StructField("features", convert(x[0])[1])])
    df = spark.createDataFrame([(convert(row)[0],) for row in x], schema)
    network = reference.network()
    out = DeepNetModel(model=network).transform(df)
    np.testing.assert_allclose(values(out, "probability"), network(x.astype(np.float32)).numpy(), atol=1e-6)


def test_several_inputs_by_name_and_a_number_as_input(spark):
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    network = keras.Model([left, right], keras.layers.Dense(1)(keras.layers.Concatenate()([left, right])))
    rows = [(float(i), [1.0, float(i * i)]) for i in range(20)]
    df = spark.createDataFrame(rows, "right double, left array<double>")
    out = DeepNetModel(model=network, inputCols=["right", "left"]).transform(df)
    expected = network([np.array([row[1] for row in rows]), np.array([[row[0]] for row in rows])]).numpy()
    np.testing.assert_allclose(values(out, "prediction"), expected[:, 0], rtol=1e-5, atol=1e-5)


def test_sparks_evaluators_take_the_columns_as_they_are(df, part):
    network = reference.network()
    out = DeepNetModel(model=network).transform(df)
    accuracy = (network(part[0]).numpy().argmax(axis=1) == part[1]).mean()
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(out) == pytest.approx(accuracy)
    assert MulticlassClassificationEvaluator(metricName="logLoss").evaluate(out) > 0

    single = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, activation="sigmoid")])
    binary = DeepNetModel(model=single).transform(df.withColumn("label", (F.col("label") > 0).cast("double")))
    by_raw = BinaryClassificationEvaluator().evaluate(binary)
    by_probability = BinaryClassificationEvaluator(rawPredictionCol="probability").evaluate(binary)
    assert by_raw == pytest.approx(by_probability)

    line = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    error = ((line(part[0]).numpy()[:, 0] - part[1]) ** 2).mean()
    scored = DeepNetModel(model=line).transform(df)
    assert scored.columns[-1] == "prediction"
    assert RegressionEvaluator(metricName="mse").evaluate(scored) == pytest.approx(error, rel=1e-4)


@pytest.mark.once
def test_the_network_is_loaded_once_per_python_worker(spark, df, tmp_path):
    file = tmp_path / "loads"
    network = keras.Sequential([keras.Input((12,)), Counting(str(file)), keras.layers.Dense(2)])
    model = DeepNetModel(model=network)
    file.unlink()  # the driver has looked whether it loads
    for _ in range(3):
        model.transform(df.repartition(8)).write.format("noop").mode("overwrite").save()
    workers = file.read_text().split()
    assert len(workers) == len(set(workers)) <= 2


def test_invalid_rows_are_named_skipped_or_kept(spark):
    rows = [([1.0] * 12,), ([float("nan")] + [1.0] * 11,), (None,), ([1.0, 2.0],), ([2.0] * 12,)]
    df = spark.createDataFrame(rows, "features array<double>").coalesce(1)
    model = DeepNetModel(model=reference.network())
    with pytest.raises(Exception, match=r"column 'features', row 1: has NaN at position 0"):
        model.transform(df).collect()
    skipped = model.copy({model.handleInvalid: "skip"}).transform(df)
    assert [row.features[0] for row in skipped.collect()] == [1.0, 2.0]
    kept = model.copy({model.handleInvalid: "keep"}).transform(df).collect()
    assert len(kept) == 5
    assert [np.isnan(row.prediction) for row in kept] == [False, True, True, True, False]


@pytest.mark.once
@pytest.mark.parametrize("handle_invalid", ["skip", "keep"])
def test_whole_numbers_keep_their_digits_beside_nulls(spark, handle_invalid):
    """In doubles the two would be the same."""
    number = keras.Input((), dtype="int64", name="number")
    hashed = keras.Model(number, keras.layers.Hashing(10**6)(keras.layers.Reshape((1,), dtype="int64")(number)))
    values = [2**62 + 1, None, 2**62 + 2]
    df = spark.createDataFrame([(value,) for value in values], "features bigint").coalesce(1)
    rows = DeepNetModel(model=hashed, handleInvalid=handle_invalid).transform(df).collect()
    alone = [hashed(np.array([value])).numpy().item() for value in (values[0], values[2])]
    assert alone[0] != alone[1]
    assert [row.prediction for row in rows if row.features] == alone
    assert len(rows) == 2 + (handle_invalid == "keep")


def test_a_filter_on_another_column_comes_before_the_network(df):
    out = DeepNetModel(model=reference.network()).transform(df).filter("label = 1")
    plan = plan_of(out, "Optimized Logical Plan")
    assert plan.index("ArrowEvalPython") < plan.index("Filter")


def test_a_name_that_is_taken_is_an_error(df):
    with pytest.raises(InvalidInputError, match="'label' is in the DataFrame already"):
        DeepNetModel(model=reference.network(), predictionCol="label").transform(df)
