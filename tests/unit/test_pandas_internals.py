"""Arrow columns for Spark: as they are, and as ordinary rows where Spark or pandas has changed."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import types as T
from pyspark.sql.pandas import types as spark_types

from cos_ml import spark_internals
from cos_ml.data import pandas_internals
from cos_ml.data.pandas_internals import arrow_frame
from cos_ml.scoring.udf_arguments import arrow_udf

NAN = float("nan")
BEFORE_ARROW_UDFS = type("SparkSession", (), {"version": "4.0.5"})
ARRAYS = {
    "prediction": (T.DoubleType(), pa.array([1.0, NAN, None], from_pandas=False)),
    "probability": (T.ArrayType(T.DoubleType()), pa.array([[1.0, NAN], None, [2.0, 3.0]], from_pandas=False)),
    "pixels": (T.ArrayType(T.FloatType()), pa.array([[1.0], [NAN], None], pa.list_(pa.float32()), from_pandas=False)),
    "empty": (T.ArrayType(T.DoubleType()), pa.nulls(3, pa.list_(pa.float64()))),
}


def written(frame):
    """The columns as Spark makes Arrow arrays of them."""
    found = {}
    for name, (kind, array) in ARRAYS.items():
        column = spark_types._create_converter_from_pandas(kind)(frame[list(reversed(frame.columns))][name])
        mask = None if hasattr(column.array, "__arrow_array__") else column.isnull()
        found[name] = pa.Array.from_pandas(column, mask=mask, type=array.type, safe=True)
    return found


def assert_same(found):
    for name, (_, array) in ARRAYS.items():
        assert found[name].is_null().equals(array.is_null()), name
        flat = [one.flatten() if pa.types.is_list(one.type) else one for one in (found[name], array)]
        assert flat[0].null_count == flat[1].null_count
        np.testing.assert_array_equal(*(one.to_numpy(zero_copy_only=False) for one in flat))


@pytest.fixture(autouse=True)
def ask_again():
    """What one test finds out is nothing for the next."""
    pandas_internals.takes_arrow.cache_clear()
    yield
    pandas_internals.takes_arrow.cache_clear()


def gone(*_, **__):
    raise AttributeError("gone")


def test_arrow_columns_go_as_they_are():
    frame = arrow_frame({name: array for name, (_, array) in ARRAYS.items()})
    assert pandas_internals.takes_arrow()
    assert frame.probability.apply(lambda _: pytest.fail("a row was touched")) is not None
    assert_same(written(frame))


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.delattr(spark_types, "_create_converter_from_pandas"),
        lambda patch: patch.setattr(spark_types, "_create_converter_from_pandas", gone),
        lambda patch: patch.setattr(
            spark_types, "_create_converter_from_pandas", lambda _: lambda column: pd.Series(list(column))
        ),
        lambda patch: patch.setattr(pd.DataFrame, "__getitem__", gone),
    ],
    ids=["Spark: no converter", "Spark: another signature", "Spark: goes over the rows", "pandas"],
)
def test_where_spark_or_pandas_has_changed_rows_are_the_same(monkeypatch, change):
    with monkeypatch.context() as patch:
        change(patch)
        assert not pandas_internals.takes_arrow()
        frame = arrow_frame({name: array for name, (_, array) in ARRAYS.items()})
    assert type(frame) is pd.DataFrame
    assert_same(written(frame))


def test_unknown_is_no():
    assert not spark_internals.passes_unchanged(object())


@pytest.mark.parametrize(("rows", "expected"), [(None, [5, 0, 2]), (2, [2, 2, 1, 2])])
def test_large_rows_are_converted_a_few_at_a_time(rows, expected):
    seen = []

    def function(batches):
        for (values,) in batches:
            seen.append(len(values))
            yield values

    batches = [pd.Series([b"a"] * 5), pd.Series([], dtype=object), pd.Series([None, b"b"], dtype=object)]
    found = arrow_udf(BEFORE_ARROW_UDFS, T.BinaryType(), function, rows).func(iter(batches))
    assert [row for part in found for row in part.array.tolist()] == [b"a"] * 5 + [pd.NA, b"b"]
    assert seen == expected
