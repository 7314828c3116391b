"""A pandas UDF and its arguments as a column of a DataFrame (driver side)."""

from __future__ import annotations

from typing import Any

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import spark_internals

__all__ = ["with_udf"]


def with_udf(df: DataFrame, values: dict[str, SparkColumn], name: str, udf: Any) -> DataFrame:
    """``df`` with the column ``name``: a pandas UDF of ``values``, computed once for each row.

    Args:
        df: any DataFrame.
        values: the UDF's arguments, by a name for each.
        name: a name that ``df`` does not have.
        udf: the pandas UDF.
    """
    temporary = f"{name}_arguments"
    prepared, arguments = _arguments(df, values, temporary)
    out = spark_internals.evaluated_once(prepared, name, udf(*arguments))
    return out.drop(temporary)


def _arguments(df: DataFrame, values: dict[str, SparkColumn], name: str) -> tuple[DataFrame, list[SparkColumn]]:
    """``values`` as arguments of a pandas UDF that is added to ``df``.

    Spark 4.3 runs a pandas UDF directly on a scan of Parquet, and fails if any column of that scan is a Vector or has
    another user-defined type. Where ``df`` has one, an explode of one-element arrays separates the two; filters and
    column pruning still reach the scan.

    Returns:
        tuple: ``df``, with a temporary column ``name`` where it was needed, and the arguments.
    """
    if not _has_user_defined_type(df.schema):
        return df, list(values.values())
    row = F.struct(*(value.alias(field) for field, value in values.items()))
    return df.select("*", F.explode(F.array(row)).alias(name)), [F.col(name)[field] for field in values]


def _has_user_defined_type(data_type: T.DataType) -> bool:
    """Whether ``data_type`` is or contains a user-defined type."""
    if isinstance(data_type, T.StructType):
        return any(_has_user_defined_type(field.dataType) for field in data_type.fields)
    if isinstance(data_type, T.MapType):
        return _has_user_defined_type(data_type.keyType) or _has_user_defined_type(data_type.valueType)
    if isinstance(data_type, T.ArrayType):
        return _has_user_defined_type(data_type.elementType)
    return isinstance(data_type, T.UserDefinedType)
