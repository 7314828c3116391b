"""Values that are bad rows, beside Spark's own stages on the same frame."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.errors.exceptions.base import PySparkException
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.data.columns import Column, decode
from cos_ml.data.expressions import expression
from cos_ml.data.validity import is_valid
from cos_ml.errors import InvalidInputError

pytestmark = pytest.mark.once

INF, NAN = math.inf, math.nan
layers = keras.layers

# ── what is good, as an expression of Spark and as a task sees it ─────────────────────────────────────────────────────

FLOATS = [0.0, 1.5, -1.0, 2.0, 8.0, 9.0, -0.5, 8.5, 200.0, 256.0, 7e4, 2.0**31, 2.0**32, 2.0**53 + 2, 2.0**63, 2.0**64,
          1.8e19, 3e38, -3e38, 1e39, 1e300, INF, -INF, NAN, None]  # fmt: skip
INTS = [0, 1, -1, 8, 9, 127, 128, 255, 256, -129, 32768, 65536, 2**31, 2**32, 2**53 + 1, 2**63 - 1, -(2**63), None]
DECIMALS = [Decimal(text) for text in ("0", "1.5", "-1", "8", "9", "300", "18446744073709551615",
            "18446744073709551616", "9223372036854775808", "0.0000000001", "1e20")] + [None]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "double": FLOATS,
    "float": FLOATS,
    "bigint": INTS,
    "int": [one for one in INTS if one is None or -(2**31) <= one < 2**31],
    "tinyint": [one for one in INTS if one is None or -128 <= one < 128],
    "decimal(38,10)": DECIMALS,
    "decimal(20,0)": [one for one in DECIMALS if one is None or (one == int(one) and one < 1e20)],
    "boolean": [True, False, None],
    "string": ["a", "", None],
}


def arrays_of(values: list[Any]) -> list[Any]:
    """Rows with each of the values at one of two places, and rows of other sizes."""
    return (
        [[one, values[0]] for one in values] + [[values[0], one] for one in values] + [[], values[:1], values[:3], None]
    )


def nested(rows: list[Any]) -> list[Any]:
    return [row if row is None else [row[:1], row[1:]] for row in rows] + [[None, [rows[0][0]]], [[], rows[0]]]


FRAMES: dict[str, list[Any]] = dict(VALUES)
FRAMES |= {f"array<{kind}>": arrays_of(values) for kind, values in VALUES.items()}
FRAMES |= {f"array<array<{kind}>>": nested(arrays_of(VALUES[kind])) for kind in ("double", "int")}
FRAMES |= {"binary": [b"", b"\x00", b"\x01\x02", b"\n\x08", b"\x09\x00", b"\x7f\x80", b"\xff\x00", b"\x00\n\x01", None]}
DTYPES = ["float32", "bool", "int8", "int32", "uint8", "uint64"]
SHAPES = [(2,), (1,), (), (None,), (None, 2)]


@pytest.fixture(scope="module")
def frames(spark):
    made = {kind: spark.createDataFrame([(row,) for row in rows], f"c {kind}") for kind, rows in FRAMES.items()}
    vectors = [Vectors.dense(row) for row in FRAMES["array<double>"] if row is not None and None not in row]
    vectors += [Vectors.sparse(2, [1], [one]) for one in FLOATS if one is not None] + [Vectors.sparse(3, [], []), None]
    schema = T.StructType([T.StructField("c", VectorUDT())])
    return made | {"vector": spark.createDataFrame([(one,) for one in vectors], schema)}


def columns(dtype: str) -> list[Column]:
    plain = [Column("c", f"x{index}", shape, dtype) for index, shape in enumerate(SHAPES)]
    below = (
        []
        if dtype in ("bool", "string")
        else [Column("c", "x5", (2,), dtype, below=9), Column("c", "x6", (None,), dtype, below=9)]
    )
    return plain + below


def mismatches(df: Any, wanted: list[Column]) -> list[str]:
    """Rows of which the expression and the task say different things."""
    selected = df.select(*(expression(df, one).alias(one.field) for one in wanted))
    flags = [
        is_valid(F.col(one.field), selected.schema[one.field].dataType, one).alias(f"v{one.field}") for one in wanted
    ]
    table = selected.select("*", *flags).toArrow()
    found = []
    for one in wanted:
        bad = {error.row for error in decode(table[one.field], one)[1]}
        for row, good in enumerate(table[f"v{one.field}"].to_pylist()):
            if good is not (row not in bad):
                found.append(f"{one.shape} {one.below}, {table[one.field][row].as_py()}: {good}")
    return found


@pytest.mark.parametrize("dtype", [pytest.param(one, marks=[pytest.mark.more] * (one != "float32")) for one in DTYPES])
def test_the_expression_is_true_where_a_task_finds_no_bad_row(frames, dtype):
    for kind, df in frames.items():
        if "string" not in kind:
            assert mismatches(df, columns(dtype)) == [], kind


def test_strings_alike(frames):
    for kind in ("string", "array<string>"):
        assert mismatches(frames[kind], columns("string")) == []


# ── in fit, evaluate and transform ────────────────────────────────────────────────────────────────────────────────────


def network(dtype: str = "float32", size: int = 2) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((size,), dtype=dtype)
    numbers = inputs if dtype == "float32" else keras.ops.cast(inputs, "float32")
    return keras.Model(inputs, layers.Dense(1)(numbers))


def estimator(model: Any = None, **params: Any) -> DeepNetEstimator:
    defaults = {"loss": "mse", "optimizer": "sgd", "learningRate": 1e-4, "progress": False, "shuffle": False}
    return DeepNetEstimator(model=network() if model is None else model, **defaults | params)


def compiled(dtype: str = "float32", **params: Any) -> DeepNetModel:
    model = network(dtype)
    model.compile("sgd", "mse")
    return DeepNetModel(model=model, **params)


SCHEMA = "features array<double>, label double, weight double, held boolean"
GOOD = ([1.0, 2.0], 1.0, 1.0, False)
BAD = {
    "features": [([1.0, one], 1.0, 1.0) for one in (INF, -INF, 1e300)],
    "label": [([1.0, 2.0], one, 1.0) for one in (INF, -INF, -1e300)],
    "weight": [([1.0, 2.0], 1.0, one) for one in (INF, -INF, 1e300)],
}


def rows(spark: Any, bad: list[Any], held: bool) -> Any:
    held_good = [(*GOOD[:3], True)] * 2
    return spark.createDataFrame([GOOD, *[(*one, held) for one in bad], GOOD, *held_good], SCHEMA).coalesce(1)


@pytest.mark.parametrize("column", BAD)
@pytest.mark.parametrize("held", [False, True])
def test_infinite_numbers_are_bad_rows_of_a_fit(spark, column, held):
    est = estimator(weightCol="weight", validationIndicatorCol="held")
    df = rows(spark, BAD[column], held)
    with pytest.raises(
        InvalidInputError, match=rf"column '{column}', row 1: (is infinite|has an infinite number at p)"
    ):
        est.fit(df)
    if held:
        assert est.fit(df, {est.handleInvalid: "skip"}).summary.rows == 2


def test_infinite_numbers_beside_a_native_stage(spark):
    """Spark's regression refuses what this one does."""
    df = rows(spark, [], False)
    assembled = VectorAssembler(inputCols=["x", "y"], outputCol="vector")
    for one in (INF, -INF, NAN):
        bad = df.selectExpr(
            "features[0] x", f"if(held, features[1], double('{one}')) y", "double(held) label", "weight"
        )
        with pytest.raises(PySparkException):
            LogisticRegression(featuresCol="vector").fit(assembled.setHandleInvalid("keep").transform(bad))
        with pytest.raises(
            InvalidInputError, match=r"column 'vector', row 0: has (NaN|an infinite number) at position 1"
        ):
            estimator(featuresCol="vector").fit(assembled.transform(bad).coalesce(1))


@pytest.mark.parametrize("column", [pytest.param(one, marks=[pytest.mark.more] * (one != "features")) for one in BAD])
def test_infinite_numbers_in_evaluate(spark, column):
    model, df = compiled(weightCol="weight"), rows(spark, BAD[column], False)
    with pytest.raises(InvalidInputError, match=rf"column '{column}', row 1: (is inf|has an inf)"):
        model.evaluate(df)
    skipped = model.copy({model.handleInvalid: "skip"}).evaluate(df)["loss"]
    assert skipped == pytest.approx(model.evaluate(rows(spark, [], False))["loss"])


WRONG = {"uint8": [300.0, -1.0, 1.5], "int16": [70000.0, 1.5], "uint32": [-1.0, 2.0**32], "int32": [1.5, 1e300],
         "float32": [INF, 1e300, NAN], "bool": [INF, NAN]}  # fmt: skip


@pytest.mark.parametrize("dtype", [pytest.param(one, marks=[pytest.mark.more] * (one != "uint8")) for one in WRONG])
def test_numbers_that_an_input_does_not_hold(spark, dtype):
    """The same rows are bad in transform and in evaluate, however they reach the task."""
    bad = [([1.0, one], 1.0, 1.0, False) for one in WRONG[dtype]]
    df = spark.createDataFrame([GOOD, *bad, GOOD], SCHEMA).coalesce(1)
    vectors = df.withColumn("features", F.udf(lambda one: Vectors.dense(one), VectorUDT())("features"))
    with pytest.raises(PySparkException, match=r"column 'features', row 1: "):
        compiled(dtype).transform(vectors).collect()
    with pytest.raises(InvalidInputError, match=r"column 'features', row 1: "):
        compiled(dtype).evaluate(vectors)
    assert compiled(dtype, handleInvalid="skip").transform(vectors).count() == 2
    kept = [row.prediction for row in compiled(dtype, handleInvalid="keep").transform(df).collect()]
    assert np.isnan(kept).tolist() == [False, *[True] * len(bad), False]


def test_a_fit_and_what_explains_it(spark):
    df = spark.createDataFrame([GOOD, ([1.0, 300.0], 1.0, 1.0, False), GOOD], SCHEMA).coalesce(1)
    est = estimator(network("uint8"))
    what = "column 'features', row 1: contains a number that is not a uint8"
    with pytest.raises(InvalidInputError, match=what):
        est.fit(df)
    assert what in est.explain(df)
    assert "1 of them will be skipped" in est.copy({est.handleInvalid: "skip"}).explain(df)


def test_the_whole_range_of_large_integers(spark):
    values = [2**64 - 1, 2**63, 0]
    df = spark.createDataFrame(
        [([Decimal(one), Decimal(1)], 1.0) for one in values], "features array<decimal(38,2)>, label double"
    )
    expected = compiled().toKeras()
    found = [row.prediction for row in compiled("uint64").transform(df).collect()]
    wanted = expected.predict(np.array([[one, 1] for one in values], np.float64), verbose=0)[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_an_index_that_an_embedding_does_not_have(spark):
    def model() -> Any:
        keras.utils.set_random_seed(1)
        found = keras.Sequential([keras.Input((2,)), layers.Embedding(9, 2), layers.Flatten(), layers.Dense(1)])
        found.compile("sgd", "mse")
        return found

    bad = [([1.0, one], 1.0, 1.0, False) for one in (9.0, -1.0, NAN)]
    df = spark.createDataFrame([GOOD, *bad, GOOD], SCHEMA).coalesce(1)
    what = (
        r"column 'features', row 1: has 9 at position 1; expected an index from 0 to 8, because the network's Embedding"
    )
    with pytest.raises(InvalidInputError, match=what):
        estimator(model()).fit(df)
    assert estimator(model(), handleInvalid="skip").fit(df).summary.rows == 2
    with pytest.raises(InvalidInputError, match=what):
        DeepNetModel(model=model()).evaluate(df)
    with pytest.raises(PySparkException, match=what):
        DeepNetModel(model=model()).transform(df).collect()
    kept = DeepNetModel(model=model(), handleInvalid="keep").transform(df).collect()
    assert np.isnan([row.prediction for row in kept]).tolist() == [False, True, True, True, False]
    assert DeepNetModel(model=model(), handleInvalid="skip").transform(df).count() == 2
    ragged = keras.Sequential([keras.Input((None,)), layers.Embedding(9, 2), layers.GlobalAveragePooling1D()])
    with pytest.raises(InvalidInputError, match=r"paddingValue: expected an index from 0 to 8.*received -1"):
        DeepNetModel(model=ragged, paddingValue=-1.0).transform(df)


@pytest.mark.parametrize("kind", ["double", "string", "int"])
def test_a_mark_that_is_no_boolean(spark, kind):
    df = rows(spark, [], False).withColumn("held", F.lit("1").cast(kind))
    with pytest.raises(
        InvalidInputError, match=rf"validationIndicatorCol: column 'held' is of type {kind}: expected a b"
    ):
        estimator(validationIndicatorCol="held").fit(df)


def test_a_mark_that_is_null(spark):
    df = spark.createDataFrame([GOOD, (*GOOD[:3], None), GOOD, (*GOOD[:3], True)], SCHEMA).coalesce(1)
    with pytest.raises(InvalidInputError, match="column 'held', row 1: is null"):
        estimator(validationIndicatorCol="held").fit(df)
    summary = estimator(validationIndicatorCol="held", handleInvalid="skip").fit(df).summary
    assert (summary.rows, summary.validationRows) == (2, 1)


# ── a row's fate depends on the row alone ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.more
def test_rows_of_several_lengths_on_any_partitions(spark):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(inputs)))
    model.compile("sgd", "mse")
    lengths = [2, 4, 0, 6, 3, None, 2, 5, 4, 8] * 4
    data = [(None if one is None else [1.0] * one, 1.0, index) for index, one in enumerate(lengths)]
    df = spark.createDataFrame(data, "features array<double>, label double, id int")
    good = {index for index, one in enumerate(lengths) if one is not None and one % 2 == 0}
    for frame in (df.coalesce(1), df.repartition(3, "id"), df.orderBy(F.desc("id")).coalesce(1)):
        for batch in ("1", "3", "10000"):
            spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", batch)
            try:
                skipping = DeepNetModel(model=model, handleInvalid="skip", predictBatchSize=4)
                assert {row.id for row in skipping.transform(frame).collect()} == good
            finally:
                spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert estimator(model, handleInvalid="skip", batchSize=8).fit(df.coalesce(1)).summary.rows == len(good)


def test_labels_of_several_shapes_are_an_error_on_any_partitions(spark):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    data = [([1.0, 2.0], [1.0] * size) for size in (2, 2, 2, 1)]
    df = spark.createDataFrame(data, "features array<double>, label array<double>")
    one = df.coalesce(1)
    for frame in (one, one.limit(3).union(one.filter("size(label) = 1")), one.orderBy(F.size("label")).coalesce(1)):
        with pytest.raises(InvalidInputError, match="'label' has inconsistent row shapes"):
            DeepNetModel(model=model, handleInvalid="skip").evaluate(frame)
