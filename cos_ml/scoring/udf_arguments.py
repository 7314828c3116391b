"""Makes UDFs that compute on Arrow columns, and adds a UDF's result to a DataFrame as a column (driver side)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import spark_internals
from cos_ml.data.pandas_internals import in_parts, run_arrow

__all__ = ["arrow_udf", "with_udf"]

ARROW_UDFS = (4, 1)  # the version of Spark that has them


def arrow_udf(
    spark: SparkSession,
    return_type: T.DataType | str,
    function: Callable[[Iterator[tuple[pa.Array, ...]]], Iterator[pa.Array]],
    rows: int | None = None,
) -> Any:
    """A UDF that computes on Arrow columns: Spark's own kind from 4.1 on, before it a pandas UDF that converts them.

    Args:
        spark: the session that runs it: with Connect, its server may be older than this PySpark.
        return_type: the type of the results.
        function: takes a tuple of columns for each batch, and returns as many rows in all, in batches of its own.
        rows: the number of rows that a pandas UDF converts at a time, as the copy takes memory; None for whole batches.
    """
    if hasattr(F, "arrow_udf") and tuple(map(int, re.findall(r"\d+", spark.version)[:2])) >= ARROW_UDFS:

        def on_arrow(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
            # Spark passes a single column without a tuple.
            return function((batch,) if isinstance(batch, pa.Array) else batch for batch in batches)

        return F.arrow_udf(on_arrow, return_type)

    def on_pandas(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        return run_arrow(function, batches if rows is None else in_parts(batches, rows))

    return F.pandas_udf(on_pandas, return_type)  # type: ignore[attr-defined]


def with_udf(
    df: DataFrame,
    values: dict[str, SparkColumn],
    name: str,
    udf: Any,
    is_good: Callable[..., SparkColumn] | None = None,
) -> DataFrame:
    """``df`` with the column ``name``: a UDF of ``values``, computed once for each row.

    Spark 4.3 runs a pandas UDF directly on a scan of Parquet, and fails if any column of that scan is a Vector or has
    another user-defined type: where ``df`` has one, a projection separates the two. Spark pushes what filters the
    arguments below it, which would compute them twice, but not below an explode of one-element arrays.

    Args:
        df: any DataFrame.
        values: the UDF's arguments, by a name for each.
        name: a name that ``df`` does not have.
        udf: the UDF, of ``arrow_udf`` or a pandas UDF.
        is_good: takes the argument and the type of each value, by its name, and tells which rows are kept.
    """
    temporary = f"{name}_arguments"
    row = F.struct(*(value.alias(field) for field, value in values.items()))
    exploded = F.explode(F.array(row)).alias(temporary)
    prepared, apart = df, bool(is_good) or _has_user_defined_type(df.schema)
    arguments = {field: F.col(temporary)[field] for field in values} if apart else values
    if is_good:
        prepared = df.select("*", exploded)
        types = {field.name: field.dataType for field in prepared.schema[temporary].dataType}  # type: ignore[attr-defined]
        prepared = prepared.filter(is_good(arguments, types))
    elif apart:
        prepared = df.select("*", row.alias(temporary))
    out = spark_internals.evaluated_once(prepared, name, udf(*arguments.values()))
    if out is None:
        prepared = df.select("*", exploded) if apart and not is_good else prepared
        out = prepared.withColumn(name, udf(*arguments.values()))
    return out.drop(temporary) if apart else out


def _has_user_defined_type(data_type: T.DataType) -> bool:
    """Whether ``data_type`` is or contains a user-defined type."""
    if isinstance(data_type, T.StructType):
        return any(_has_user_defined_type(field.dataType) for field in data_type.fields)
    if isinstance(data_type, T.MapType):
        return _has_user_defined_type(data_type.keyType) or _has_user_defined_type(data_type.valueType)
    if isinstance(data_type, T.ArrayType):
        return _has_user_defined_type(data_type.elementType)
    return isinstance(data_type, T.UserDefinedType)
