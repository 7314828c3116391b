"""Data as it comes: badly partitioned, wide, sparse, oddly typed and named, different at every reading."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator
from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec
from tests.support import reference
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import frame, rows_of


def one_layer(size: int, **more: Any) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((size,), **more), keras.layers.Dense(1)])


def regressor(network: Any, **params: Any) -> DeepNetEstimator:
    defaults = {"loss": "mse", "learningRate": 1e-3, "batchSize": 8, "numTrainWorkers": 2, "progress": False}
    return DeepNetEstimator(model=network, **defaults | params)


@pytest.mark.once
def test_all_rows_in_one_partition_of_many(spark):
    part = reference.data(70)
    df = frame(spark, [[], [], rows_of(*part), [], []])
    model = estimator(reference.network()).fit(df)
    assert model.summary.rows == 70
    assert model.transform(df).count() == 70


@pytest.mark.once
def test_one_row_in_all(spark):
    part = reference.data(1)
    model = estimator(reference.network(), epochs=1).fit(frame(spark, [rows_of(*part), []]))
    expected = reference.network()
    reference.train(expected, split(part, 1, 0), 32, 1, keras.optimizers.SGD(0.1, momentum=0.9))
    assert model.summary.rows == 1
    assert_same_weights(model.toKeras(), expected)


@pytest.mark.more
@pytest.mark.once
def test_a_thousand_partitions(spark):
    df = spark.range(1500, numPartitions=1000).select(F.array("id").alias("features"), F.col("id").alias("label"))
    assert regressor(one_layer(1), learningRate=1e-6).fit(df).summary.rows == 1500


@pytest.mark.once
def test_skewed_partitions_stay_where_they_are(spark):
    part = reference.data(400)
    df = frame(spark, [rows_of(*one) for one in split(part, 396, 4)])
    assert frames.repartition_to_ranks(df, 2) is df
    model = estimator(reference.network()).fit(df)
    expected = reference.network()
    reference.train(expected, split(part, 396, 4), 32, 3, keras.optimizers.SGD(0.1, momentum=0.9))
    assert_same_weights(model.toKeras(), expected)


@pytest.mark.once
def test_very_wide_rows(spark):
    width = 100_000
    df = spark.range(24, numPartitions=2).select(
        F.array_repeat(F.col("id").cast("float") / 24, width).alias("features"), (F.col("id") / 24).alias("label")
    )
    model = regressor(one_layer(width), learningRate=1e-6).fit(df)
    assert model.summary.rows == 24
    assert model.transform(df).where("prediction is not null").count() == 24


@pytest.mark.once
def test_sparse_vectors_by_their_hashed_indices(spark):
    """A network over 64 buckets of the million indices, two of which say what the label is."""
    size, buckets = 1_000_000, 64
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 120)
    rows = [(Vectors.sparse(size, sorted((i * 64 + label) % size for i in random.integers(0, 10_000, 3).tolist()),
                            [1.0] * 3), float(label)) for label in labels.tolist()]  # fmt: skip
    schema = T.StructType([T.StructField("v", VectorUDT()), T.StructField("label", T.DoubleType())])
    df = spark.createDataFrame(rows, schema)
    hashed = F.udf(lambda vector: [int(index) % buckets for index in vector.indices], T.ArrayType(T.IntegerType()))
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(buckets, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    est = DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", metrics=["accuracy"], learningRate=0.05, epochs=8,
        batchSize=8, numTrainWorkers=2, progress=False,
    )  # fmt: skip
    model = est.fit(df.repartition(2).withColumn("features", hashed("v")))
    assert model.summary.history["accuracy"][-1] == 1.0


@pytest.mark.once
def test_sparse_vectors_of_a_million(spark):
    """They become dense rows, of 4 MB each: slow, and right."""
    size = 1_000_000
    rows = [(Vectors.sparse(size, [index, size - 1], [1.0, 2.0]), float(index)) for index in range(4)]
    df = spark.createDataFrame(rows, ["features", "label"]).repartition(2)
    network = one_layer(size)
    weights = network.get_weights()
    predictions = regressor(network, learningRate=1e-9, batchSize=2, predictBatchSize=2).fit(df).transform(df)
    for row in predictions.select("label", "prediction").collect():
        expected = weights[0][int(row.label), 0] + 2 * weights[0][size - 1, 0]
        assert row.prediction == pytest.approx(expected, abs=1e-5)


def test_numbers_of_any_type(spark):
    kinds = {
        "array<decimal(6,2)>": lambda x: [Decimal(x), Decimal(-x)],
        "array<tinyint>": lambda x: [x, -x],
        "array<smallint>": lambda x: [x, -x],
        "array<bigint>": lambda x: [x, -x],
        "array<boolean>": lambda x: [bool(x % 2), not x % 2],
    }
    spec = TrainSpec((Column("features", "x0", (2,)),), (Column("label", "y0"),), Column("weight", "w", low=0.0))
    for kind, make in kinds.items():
        rows = [(make(x), Decimal(x), x > 3) for x in range(8)]
        df = spark.createDataFrame(rows, f"features {kind}, label decimal(4,1), weight boolean").coalesce(1)
        selected = frames.select_columns(df, spec).collect()
        assert [row.x0 for row in selected] == [[float(one) for one in make(x)] for x in range(8)]
        assert [(row.y0, row.w) for row in selected] == [(float(x), float(x > 3)) for x in range(8)]
    est = regressor(one_layer(2), weightCol="weight", numTrainWorkers=1)
    assert est.fit(df).summary.rows == 8


def test_arrays_with_nulls(spark):
    rows = [([1.0, 2.0], 1.0), ([1.0, None], 1.0), (None, 1.0), ([3.0, 1.0], 2.0)]
    df = spark.createDataFrame(rows, "features array<double>, label double").repartition(1)
    with pytest.raises(InvalidInputError, match=r"column 'features', row \d: (is null|contains an element)"):
        regressor(one_layer(2), numTrainWorkers=1).fit(df)
    assert regressor(one_layer(2), handleInvalid="skip").fit(df).summary.rows == 2


def test_column_names_with_dots_and_spaces(spark):
    rows = [([float(x), 1.0], float(x), 1.0) for x in range(16)]
    df = spark.createDataFrame(rows, "`the.features of it` array<double>, `a label` double, `w.` double").coalesce(1)
    network = one_layer(2)
    est = regressor(
        network, featuresCol="the.features of it", labelCol="a label", weightCol="w.", predictionCol="out.put 1",
        featureLayers=[network.layers[-1].name], outputCols=["layer.one `x`"], numTrainWorkers=1,
    )  # fmt: skip
    model = est.fit(df)
    out = model.transform(df)
    assert out.columns == [*df.columns, "layer.one `x`", "out.put 1"]
    row = out.first()
    assert row["layer.one `x`"][0] == pytest.approx(row["out.put 1"], abs=1e-6)
    assert set(model.evaluate(df)) == {"loss"}


@pytest.mark.once
def test_cached_data_stays_cached_and_where_it_is(spark):
    df = frame(spark, [rows_of(*reference.data(40)), rows_of(*reference.data(40))]).repartition(2).cache()
    df.count()
    assert frames.repartition_to_ranks(df, 2) is df
    assert frames.repartition_to_ranks(df, 1) is not df
    assert estimator(reference.network(), epochs=1).fit(df).summary.rows == 80
    assert df.is_cached
    df.unpersist()


@pytest.mark.parametrize("partitions", [2, 5])
def test_data_that_differs_at_every_reading_is_read_once(spark, partitions):
    """Counted where it is made, on the way to partitions that stay and to ones that move."""
    made = spark.sparkContext.accumulator(0)

    def make(index):  # with type hints, the newest PySpark refuses it
        made.add(1)
        return [float(np.random.default_rng().normal()), 1.0]

    df = spark.range(60, numPartitions=partitions).select(
        F.udf(make, T.ArrayType(T.DoubleType())).asNondeterministic()("id").alias("features"), F.rand().alias("label")
    )
    assert regressor(one_layer(2), epochs=3).fit(df).summary.rows == 60
    assert made.value == 60
