"""A model as a function of SQL, and its outputs as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import DeepNetModel
from cos_ml.errors import InvalidInputError

ROWS = 40


@pytest.fixture(scope="module")
def network() -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="classes")(hidden))


@pytest.fixture(scope="module")
def rows(spark) -> DataFrame:
    numbers = np.random.default_rng(1).standard_normal((ROWS, 3)).round(3).tolist()
    vectors = [Vectors.sparse(3, {1: row[1]}) if index % 3 else Vectors.dense(row) for index, row in enumerate(numbers)]
    columns = [("id", T.LongType()), ("v", VectorUDT()), ("features", T.ArrayType(T.DoubleType()))]
    schema = T.StructType([T.StructField(*column) for column in columns])
    made = spark.createDataFrame(list(zip(range(ROWS), vectors, numbers, strict=True)), schema).repartition(2).cache()
    made = made.select("*", *(F.col("features")[place].alias(name) for place, name in enumerate("abc")))
    made.createOrReplaceTempView("scored_rows")
    return made


def scored(rows: DataFrame, model: DeepNetModel) -> list[list[Any]]:
    columns = [name for name in model.transform(rows).columns if name not in rows.columns]
    return [[row[name] for name in columns] for row in model.transform(rows).orderBy("id").collect()]


def flat(rows: Iterable[Any]) -> list[list[float]]:
    return [np.hstack([np.asarray(value) for value in row]).tolist() for row in rows]


def assert_close(found: Iterable[Any], expected: Iterable[Any]) -> None:
    """The last bit of a product may depend on the rows beside it: some processors add in another order then."""
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("column", ["v", "features"])
def test_a_function_computes_what_transform_does(spark, rows, network, column):
    model = DeepNetModel(model=network, featuresCol=column, featureLayers=["hidden"])
    function = model.registerFunction(spark, "score")
    found = [row.s for row in spark.sql(f"SELECT id, score({column}) s FROM scored_rows ORDER BY id").collect()]
    assert list(found[0].asDict()) == ["hidden", "rawPrediction", "probability", "prediction"]
    assert_close(found, scored(rows, model))
    assert_close((row.s for row in rows.orderBy("id").select(function(column).alias("s")).collect()), found)
    best = spark.sql(
        f"SELECT id FROM scored_rows WHERE score({column}).probability[1] > 0.5 AND score({column}).prediction = 1"
    )
    assert sorted(row.id for row in best.collect()) == [index for index, row in enumerate(found) if row.prediction]


def test_several_columns_and_names_of_classes(spark, rows, network):
    model = DeepNetModel(
        model=network, inputCols=["a", "b", "c"], labels=["no", "yes"], predictedLabelCol="word", vectorType="array",
        rawPredictionCol="", probabilityCol="p",
    )  # fmt: skip
    model.registerFunction(spark, "score")  # replaces the other one
    found = [row.s for row in spark.sql("SELECT score(a, b, c) s FROM scored_rows ORDER BY id").collect()]
    assert [list(row) for row in found] == scored(rows, model)
    assert {row.word for row in found} <= {"no", "yes"}
    with pytest.raises(Exception, match=r"arguments: expected 3 \(a, b, c\), received 2"):
        spark.sql("SELECT score(a, b) FROM scored_rows").collect()


@pytest.mark.parametrize("handling", ["error", "skip", "keep"])
def test_bad_rows(spark, network, handling):
    model = DeepNetModel(model=network, handleInvalid=handling, rawPredictionCol="")
    model.registerFunction(spark, "careful")
    query = "SELECT careful(x) s FROM VALUES (array(1, 2, 3)), (NULL), (array(1, 2)) t(x)"
    if handling == "error":
        with pytest.raises(Exception, match=r"column 'features', row \d: "):
            spark.sql(query).coalesce(1).collect()
        return
    good, *bad = (row.s for row in spark.sql(query).coalesce(1).collect())
    assert good.prediction in (0, 1)
    assert all(row.prediction is None if handling == "skip" else np.isnan(row.prediction) for row in bad)


@pytest.mark.once
@pytest.mark.parametrize("name", ["", "a b", "1a", "a.b", None])
def test_names(spark, network, name):
    with pytest.raises(InvalidInputError, match="expected a name"):
        DeepNetModel(model=network).registerFunction(spark, name)


@pytest.mark.once
def test_a_function_without_fields_is_refused(spark, network):
    with pytest.raises(InvalidInputError, match="all are omitted"):
        DeepNetModel(model=network, predictionCol="", probabilityCol="", rawPredictionCol="").registerFunction(
            spark, "f"
        )


def test_arrays_hold_what_vectors_do(rows, network, tmp_path):
    vectors = DeepNetModel(model=network, featuresCol="v", labelCol="label", featureLayers=["hidden"])
    arrays = vectors.copy().setVectorType("array")
    out = arrays.transform(rows)
    kinds = {name: out.schema[name].dataType.simpleString() for name in ("hidden", "probability", "prediction")}
    assert kinds == {"hidden": "array<float>", "probability": "array<float>", "prediction": "double"}
    assert np.allclose(flat(scored(rows, arrays)), flat(scored(rows, vectors)), atol=1e-6)
    assert out.schema["hidden"].metadata == vectors.transform(rows).schema["hidden"].metadata
    arrays.write().save(str(tmp_path / "model"))
    assert DeepNetModel.load(str(tmp_path / "model")).getVectorType() == "array"
    assert isinstance(arrays.mean(rows).schema["hidden"].dataType, VectorUDT)
