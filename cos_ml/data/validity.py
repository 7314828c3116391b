"""Whether a row is good, as an expression that Spark computes before a network sees the row (driver side).

It is true exactly where ``columns.decode`` finds no bad row: what skips rows is then a filter that Spark may move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
from pyspark.sql import Column as SparkColumn
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.columns import INTEGRAL, Column

__all__ = ["is_valid", "lengths_match"]

FRACTIONS = (T.FloatType, T.DoubleType)
LATIN = "ISO-8859-1"  # in which each byte is a character


def is_valid(values: SparkColumn, data_type: T.DataType, column: Column) -> SparkColumn:
    """A boolean expression, never null: whether an input's row can be used.

    Args:
        values: what ``expressions.expression`` returns for the column.
        data_type: the type of ``values``.
        column: the column of an input.
    """
    if isinstance(data_type, T.BinaryType):
        checks = [_fits(_size(values, data_type), column), *_bytes(values, column)]
    elif isinstance(data_type, T.ArrayType):
        checks = [_fits(_size(values, data_type), column), *_elements(values, data_type, column)]
    else:
        one = column.known_size == 1  # as one row of one number
        checks = [F.lit(one), *_number(values, data_type, column)]
    found = values.isNotNull()
    for check in checks:
        found = found & check
    return F.coalesce(found, F.lit(False))


def lengths_match(values: Mapping[str, SparkColumn], types: Mapping[str, T.DataType], column: Column) -> SparkColumn:
    """A boolean expression: whether a good row is as long in this column as in the one that it is paired with.

    Args:
        values, types: what ``expressions.expression`` returns for all columns, and its types, by field.
        column: a column of an input.
    """
    sizes = [_size(values[field], types[field]) for field in (column.field, column.paired)]
    return sizes[0] == sizes[1]


def _size(values: SparkColumn, data_type: T.DataType) -> SparkColumn:
    if isinstance(data_type, T.BinaryType):
        return F.length(values)
    return F.size(values) if isinstance(data_type, T.ArrayType) else F.lit(1)


def _fits(size: SparkColumn, column: Column) -> SparkColumn:
    """Whether a row may have this size."""
    return size % column.known_size == 0 if None in column.shape else size == column.known_size


def _bytes(values: SparkColumn, column: Column) -> list[SparkColumn]:
    """Whether bytes are numbers that the network takes."""
    last = min(127 if column.dtype == "int8" else 255, 255 if column.below is None else column.below - 1)
    return [] if last == 255 else [F.decode(values, LATIN).rlike(rf"\A[\x00-\x{last:02x}]*\z")]


def _elements(values: SparkColumn, data_type: T.ArrayType, column: Column) -> list[SparkColumn]:
    """Whether all elements of an array can be used. Spark compiles these, but looks at each string by itself."""
    kind = data_type.elementType
    if isinstance(kind, T.StringType):
        return [F.forall(values, lambda text: text.isNotNull())] if data_type.containsNull else []
    checks = []
    if data_type.containsNull:  # then it is not false that an array contains what it does not
        floating = kind if isinstance(kind, FRACTIONS) else T.DoubleType()
        numbers = values if floating is kind else values.try_cast(T.ArrayType(floating))
        checks.append(~F.array_contains(numbers, F.lit(math.nan).cast(floating)))
    limits = _limits(kind, column)
    if limits is not None:
        low, high = limits
        checks.append(F.coalesce((F.array_min(values) >= low) & (F.array_max(values) <= high), F.lit(True)))
    if isinstance(kind, FRACTIONS) and column.dtype.startswith(INTEGRAL):
        checks.append(F.forall(values, lambda number: F.rint(number) == number))
    return checks


def _number(values: SparkColumn, data_type: T.DataType, column: Column) -> list[SparkColumn]:
    """Whether a number can be used."""
    limits, checks = _limits(data_type, column), []
    if limits is not None:
        checks.append(values.between(*limits))
    if isinstance(data_type, FRACTIONS) and column.dtype.startswith(INTEGRAL):
        checks.append(F.rint(values) == values)
    return checks


def _limits(kind: T.DataType, column: Column) -> tuple[SparkColumn, SparkColumn] | None:
    """The least and the largest number that can be used; None where every number of Spark's type ``kind`` can."""
    if isinstance(kind, (T.StringType, T.BooleanType)):
        return None
    low, high = -math.inf, math.inf
    if column.dtype.startswith(INTEGRAL) and column.dtype != "bool":
        low, high = int(np.iinfo(column.dtype).min), int(np.iinfo(column.dtype).max)
    if column.below is not None:
        low, high = max(low, -1 if column.is_bag else 0), min(high, column.below - 1)
    if isinstance(kind, FRACTIONS):
        # Between these and the limits there is no other float; Keras cuts fractions of indices off.
        single = np.float32 if isinstance(kind, T.FloatType) else np.float64
        outside = (low - 1 if column.below is not None else low, high + 1)
        lowest, highest = (single(one) for one in outside)
        if column.below is not None or math.isinf(lowest):
            lowest = np.nextafter(lowest, single(math.inf))
        highest = np.nextafter(highest, single(-math.inf))
        return F.lit(float(lowest)), F.lit(float(highest))
    if isinstance(kind, T.DecimalType):  # that of uint64
        return F.lit(Decimal(low)), F.lit(Decimal(high))
    sizes: dict[type[T.DataType], int] = {T.ByteType: 7, T.ShortType: 15, T.IntegerType: 31, T.LongType: 63}
    bits = sizes[type(kind)]
    least, most = -(2**bits), 2**bits - 1
    if not column.dtype.startswith(INTEGRAL):
        return None
    return None if low <= least and high >= most else (F.lit(max(low, least)), F.lit(min(high, most)))
