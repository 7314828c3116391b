"""Columns of a DataFrame as the expressions that ranks and scoring tasks read (driver side)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from itertools import groupby

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.columns import Column
from cos_ml.data.names import Resolved, resolve
from cos_ml.errors import InvalidInputError

__all__ = ["expression"]

NUMBERS = (T.NumericType, T.BooleanType)
FRACTIONS = (T.FloatType, T.DoubleType)
LARGEST = 2.0**63 - 2.0**10  # the largest double that a bigint holds


def expression(df: DataFrame, column: Column) -> SparkColumn:
    """The Spark expression that brings ``column`` into the form that ``columns.decode`` takes.

    Dense and sparse Vectors and arrays become arrays of the column's own number type, which may take half the bytes of
    a Vector; binary columns stay as they are. Several columns become one array.

    Raises:
        InvalidInputError: the DataFrame has no such column, or its type is not numeric.
    """
    if column.parts:
        return _concatenated(df, column)
    found = resolve(df, column.name)
    _check_indices(found, column)
    return _converted(found.values, found.data_type, column)


def _check_indices(found: Resolved, column: Column) -> None:
    """Raises InvalidInputError for Vectors that an EmbeddingBag can't look up."""
    if column.is_bag and isinstance(found.data_type, VectorUDT):
        raise InvalidInputError(
            f"Column {column.name!r} is a Vector, but the network's EmbeddingBag takes indices: write "
            f"'{column.name}.indices' for those of its entries, or make an array of integers of it."
        )
    if column.below is not None and found.part == "values":
        raise InvalidInputError(
            f"Column {column.name!r} has values, but the network's Embedding takes indices there. The network's inputs "
            "are in another order."
        )
    size = _num_attrs(found)
    if column.below is not None and found.part and size is not None and size > column.below:
        raise InvalidInputError(
            f"Column {column.name!r}: the Vectors have {size} entries, but the network's Embedding has {column.below} "
            f"rows. Make it with input_dim={size}."
        )


def _concatenated(df: DataFrame, column: Column) -> SparkColumn:
    """The values of several columns as one array; null where an array or a Vector is."""
    found = {name: resolve(df, name) for name in column.parts}
    _check_sizes(column, [_size(found[name]) for name in column.parts])
    arrays, wanted = [], T.StringType if column.dtype == "string" else NUMBERS
    for given, group in groupby(column.parts, lambda name: found[name].data_type):
        names = list(group)
        if isinstance(given, T.BinaryType):
            raise InvalidInputError(
                f"Param inputCols: column {names[0]!r} is binary, and can't be joined with others. Make an array of it."
            )
        if isinstance(given, wanted):  # as one array, since each expression costs PySpark milliseconds
            values = F.array(*[found[name].sql_name for name in names])
            arrays.append(_converted(values, T.ArrayType(given), replace(column, name=names[0])))
        else:
            arrays += [_converted(found[name].values, given, replace(column, name=name)) for name in names]
    return arrays[0] if len(arrays) == 1 else F.concat(*arrays)


def _size(column: Resolved) -> int | None:
    """The number of values in a row, where the type or the metadata of a Vector column tell it."""
    if isinstance(column.data_type, (*NUMBERS, T.StringType)):
        return 1
    return None if column.part else _num_attrs(column)


def _num_attrs(column: Resolved) -> int | None:
    """The size of Vectors, where their metadata tell it."""
    size = column.metadata.get("ml_attr", {}).get("num_attrs")
    attrs = column.metadata.get("ml_attr", {}).get("attrs", {})
    return size if size is not None or not attrs else sum(map(len, attrs.values()))


def _check_sizes(column: Column, sizes: list[int | None]) -> None:
    """Raises InvalidInputError for columns to join whose rows can't have the size that the network expects."""
    least = sum(size or 0 for size in sizes)
    if column.size is not None and (least > column.size or (None not in sizes and least != column.size)):
        more = " or more" if None in sizes else ""
        raise InvalidInputError(
            f"Param inputCols: the columns {list(column.parts)} make {least}{more} values per row; the network expects "
            f"{column.size}, of shape {column.shape}."
        )


def _converted(source: SparkColumn, given: T.DataType, column: Column) -> SparkColumn:
    """The values of a column of the type ``given``, as ``expression`` describes them."""
    if column.dtype == "string":
        return _strings(source, given, column)
    if column.field == "v" and not isinstance(given, T.BooleanType):
        raise InvalidInputError(
            f"Param validationIndicatorCol: column {column.name!r} is of type {given.simpleString()}: expected a "
            "boolean, which a comparison makes."
        )
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
    if isinstance(element, NUMBERS):
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
    if isinstance(given, T.UserDefinedType) and given.module() == "pyspark.mllib.linalg":
        return "It is an old mllib Vector: convert it with pyspark.mllib.util.MLUtils.convertVectorColumnsToML(df)."
    if isinstance(given, (T.DateType, T.TimestampType, T.TimestampNTZType)):
        return (
            "Make numbers of it first, for example with unix_timestamp or datediff for the time that has passed, or "
            "with month, dayofweek or hour for what repeats."
        )
    return "Convert it first, for example with VectorAssembler or StringIndexer."


def _spark_type(dtype: str, given: T.DataType) -> T.DataType:
    """The smallest of Spark's types that holds every number of a NumPy type; ``given`` is the type of the column."""
    if dtype == "uint64":  # Spark's integers are signed: only a decimal holds the upper half
        if isinstance(given, FRACTIONS):  # as a decimal, large doubles would have the digits that Java prints
            return T.DoubleType()
        wide = isinstance(given, T.DecimalType) and given.precision - given.scale > 18
        return T.DecimalType(20, 0) if wide else T.LongType()
    return {
        "bool": T.BooleanType(), "float32": T.FloatType(), "float64": T.DoubleType(),
        "int8": T.ByteType(), "int16": T.ShortType(), "int32": T.IntegerType(), "int64": T.LongType(),
        "uint8": T.ShortType(), "uint16": T.IntegerType(), "uint32": T.LongType(),
    }[dtype]  # fmt: skip


def _cast_or_null(source: SparkColumn, given: T.DataType, target: T.DataType, nested: bool) -> SparkColumn:
    """Numbers, or arrays of them, cast to another type; null where it can't hold the number (1.5, NaN, 2**63)."""

    def each(change: Callable[[SparkColumn], SparkColumn], values: SparkColumn) -> SparkColumn:
        return F.transform(values, change) if nested else change(values)

    def cast(values: SparkColumn, kind: T.DataType) -> SparkColumn:
        return values.try_cast(T.ArrayType(kind) if nested else kind)

    if isinstance(target, T.BooleanType) and isinstance(given, FRACTIONS):  # Spark casts NaN to true
        source = each(lambda number: F.when(F.abs(number) < math.inf, number), source)
    found = cast(source, target)
    if isinstance(target, (T.IntegralType, T.DecimalType)) and isinstance(given, (*FRACTIONS, T.DecimalType)):
        # Spark cuts fractions off, and takes a double of 2**63 for a bigint. To look at each number is slow, and needed
        # only where one has changed.
        limit = F.lit(LARGEST if isinstance(given, FRACTIONS) else Decimal(10**38 - 1))
        is_whole = lambda number: (F.floor(number).try_cast(given) == number) & (number <= limit)  # noqa: E731
        whole = each(lambda number: F.when(is_whole(number), number), source)
        kept = cast(found, given).eqNullSafe(source) & ((F.array_max(source) if nested else source) <= limit)
        found = F.when(kept, found).otherwise(cast(whole, target))
    if isinstance(target, T.DecimalType):
        found = each(lambda number: F.when(number.between(Decimal(0), Decimal(2**64 - 1)), number), found)
    return found
