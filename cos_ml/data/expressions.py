"""Columns of a DataFrame as the expressions that ranks and scoring tasks read (driver side)."""

from __future__ import annotations

from collections.abc import Callable

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError

__all__ = ["expression"]


def expression(schema: T.StructType, column: Column) -> SparkColumn:
    """The Spark expression that brings ``column`` into the form that ``columns.decode`` takes.

    Dense and sparse Vectors and arrays become arrays of the column's own number type, which may take half the bytes of
    a Vector; binary columns stay as they are.

    Raises:
        InvalidInputError: the DataFrame has no such column, or its type is not numeric.
    """
    if column.name not in schema.fieldNames():
        raise InvalidInputError(f"There is no column {column.name!r}. The DataFrame has columns {schema.fieldNames()}.")
    given = schema[column.name].dataType
    source = F.col("`" + column.name.replace("`", "``") + "`")
    if column.dtype == "string":
        return _strings(source, given, column)
    if isinstance(given, T.BinaryType) and column.field.startswith(("x", "y")):
        return source
    single = "float32" if column.dtype == "float32" else "float64"
    if isinstance(given, VectorUDT):
        source = F.when(source.isNotNull(), vector_to_array(source, single))  # vector_to_array fails on null
        given = T.ArrayType(T.FloatType() if single == "float32" else T.DoubleType())
    element, nested = given, isinstance(given, T.ArrayType)
    while isinstance(element, T.ArrayType):
        element = element.elementType
        if isinstance(element, T.ArrayType):
            source = F.flatten(source)
    if isinstance(element, (T.NumericType, T.BooleanType)):
        target = _spark_type(column.dtype, element)
        return source if nested and element == target else _cast_or_null(source, element, target, nested)
    raise InvalidInputError(
        f"Column {column.name!r} is of type {given.simpleString()}: expected a Vector, an array of numbers, a number"
        f"{' or binary' if column.field.startswith('x') else ''}. {_conversion(element)}"
    )


def _strings(source: SparkColumn, given: T.DataType, column: Column) -> SparkColumn:
    """The expression of a column of strings, or of arrays of them."""
    if isinstance(given, T.StringType) or isinstance(getattr(given, "elementType", None), T.StringType):
        return source
    raise InvalidInputError(
        f"Column {column.name!r} is of type {given.simpleString()}: expected a string or an array of strings, "
        "because the network's input takes strings."
    )


def _conversion(given: T.DataType) -> str:
    """How to make numbers of a column of this type."""
    if isinstance(given, (T.DateType, T.TimestampType, T.TimestampNTZType)):
        return (
            "Make numbers of it first, for example with unix_timestamp or datediff for the time that has passed, or "
            "with month, dayofweek or hour for what repeats."
        )
    return "Convert it first, for example with VectorAssembler or StringIndexer."


def _spark_type(dtype: str, given: T.DataType) -> T.DataType:
    """The smallest of Spark's types that holds every number of a NumPy type; ``given`` is the type of the column."""
    if dtype == "uint64":  # Spark's integers are signed: only a decimal holds the upper half
        wide = isinstance(given, T.DecimalType) and given.precision - given.scale > 18
        return T.DecimalType(20, 0) if wide else T.LongType()
    return {
        "bool": T.BooleanType(), "float32": T.FloatType(), "float64": T.DoubleType(),
        "int8": T.ByteType(), "int16": T.ShortType(), "int32": T.IntegerType(), "int64": T.LongType(),
        "uint8": T.ShortType(), "uint16": T.IntegerType(), "uint32": T.LongType(),
    }[dtype]  # fmt: skip


def _cast_or_null(source: SparkColumn, given: T.DataType, target: T.DataType, nested: bool) -> SparkColumn:
    """Numbers, or arrays of them, cast to another type; null where it can't hold the number (NaN, out of range)."""

    def each(change: Callable[[SparkColumn], SparkColumn], values: SparkColumn) -> SparkColumn:
        return F.transform(values, change) if nested else change(values)

    if isinstance(target, T.BooleanType) and isinstance(given, (T.FloatType, T.DoubleType)):  # Spark casts NaN to true
        source = each(lambda number: F.when(~F.isnan(number), number), source)
    cast = source.try_cast(T.ArrayType(target) if nested else target)
    if isinstance(target, T.DecimalType):
        cast = each(lambda number: F.when(number.between(0, 2**64 - 1), number), cast)
    return cast
