"""The only place where Spark's column types become arrays, and back (both sides)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cos_ml.errors import InvalidInputError

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import types as T

__all__ = ["Column", "RowError", "as_list_array", "decode", "expression", "renumber", "spark_dtype"]


@dataclass(frozen=True)
class Column:
    """A column of the user's as an array of rows.

    Attributes:
        name: the user's name for it, as messages say it.
        field: its fixed name in the narrow DataFrame, in the spool and in the rank.
        shape: of one row; a ``None`` is as long as the first row needs.
        dtype: NumPy's name of the element type, or "string".
        classes: for a column of class labels: how many classes there are.
        low: for a column of numbers: the least value that makes sense.
    """

    name: str
    field: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    classes: int | None = None
    low: float | None = None

    def __post_init__(self) -> None:
        if self.shape.count(None) > 1:
            raise InvalidInputError(
                f"Column {self.name!r} belongs to an input of shape {self.shape}, and flat rows fill one open side "
                "at most: "
                "give the network's input its size."
            )

    @property
    def size(self) -> int | None:
        """Numbers in one row, or None where the shape leaves it open."""
        return None if None in self.shape else math.prod(self.shape)  # type: ignore[arg-type]

    def row_shape(self, size: int) -> tuple[int, ...]:
        """The shape of a row of ``size`` numbers."""
        known = math.prod(side for side in self.shape if side is not None)
        return tuple(size // known if side is None else side for side in self.shape)


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row of one column."""

    row: int
    column: str
    what: str
    fatal: bool = False  # not to be skipped: the data does not fit the network at all

    def __str__(self) -> str:
        return f"column {self.column!r}, row {self.row}: {self.what}"


def expression(schema: T.StructType, column: Column) -> SparkColumn:
    """The Spark expression that brings ``column`` into the form that ``decode`` takes (driver side).

    Vectors, dense and sparse, and arrays become arrays of the network's own number type, half the bytes of a Vector
    row; binary columns stay as they are.

    Raises:
        InvalidInputError: the DataFrame has no such column, or its type holds no numbers.
    """
    # Imported here: ranks use this module too, and start sooner without Spark.
    from pyspark.ml.functions import vector_to_array
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if column.name not in schema.fieldNames():
        raise InvalidInputError(f"There is no column {column.name!r}. The DataFrame has {schema.fieldNames()}.")
    given = schema[column.name].dataType
    source = F.col("`" + column.name.replace("`", "``") + "`")
    if column.dtype == "string":
        return _string_expression(given, column, source)
    target = {"float32": T.FloatType(), "int32": T.IntegerType(), "int64": T.LongType(), "bool": T.BooleanType()}[
        column.dtype
    ]
    if isinstance(given, VectorUDT):
        array = vector_to_array(source, "float32" if column.dtype == "float32" else "float64")
        array = F.when(source.isNotNull(), array)  # it fails on null
        return array if column.dtype == "float32" else _as_type(array, T.DoubleType(), target, nested=True)
    if isinstance(given, T.ArrayType):
        element: T.DataType = given.elementType
        while isinstance(element, T.ArrayType):
            source, element = F.flatten(source), element.elementType
        if isinstance(element, (T.NumericType, T.BooleanType)):
            return source if element == target else _as_type(source, element, target, nested=True)
    if isinstance(given, (T.NumericType, T.BooleanType)):
        return _as_type(source, given, target, nested=False)
    is_input = column.field.startswith("x")
    if isinstance(given, T.BinaryType) and is_input:
        return source
    raise InvalidInputError(
        f"Column {column.name!r} is of type {given.simpleString()}: expected a Vector, an array of numbers, a number"
        f"{' or binary' if is_input else ''}. Convert it first, for example with VectorAssembler or StringIndexer."
    )


def _as_type(source: SparkColumn, given: T.DataType, target: T.DataType, nested: bool) -> SparkColumn:
    """Numbers, or arrays of them, in another type; null where that has no such number: NaN and those out of range."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(target, T.BooleanType) and isinstance(given, (T.FloatType, T.DoubleType)):  # to Spark, NaN is true

        def known(number: SparkColumn) -> SparkColumn:
            return F.when(~F.isnan(number), number)

        source = F.transform(source, known) if nested else known(source)
    return source.try_cast(T.ArrayType(target) if nested else target)


def _string_expression(given: T.DataType, column: Column, source: SparkColumn) -> SparkColumn:
    from pyspark.sql import types as T

    element = given.elementType if isinstance(given, T.ArrayType) else given
    if isinstance(element, T.StringType):
        return source
    raise InvalidInputError(
        f"Column {column.name!r} is of type {given.simpleString()}: the network's input takes strings: expected a "
        "string or an array of strings."
    )


def spark_dtype(tensor_dtype: str) -> str:
    """The element type in which values of a tensor of ``tensor_dtype`` travel."""
    if tensor_dtype == "string":
        return "string"
    if tensor_dtype.startswith(("int", "uint")):
        return "int64" if tensor_dtype.endswith("64") else "int32"
    return "bool" if tensor_dtype == "bool" else "float32"


def decode(values: pa.Array, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Arrow values as one array, and what is wrong with them (barrier task and scoring task side).

    Args:
        values: numbers, lists of numbers, or binary values, one a row.
        column: what they should be.

    Returns:
        tuple[np.ndarray, list[Problem]]: rows of ``column.shape``, of its dtype, uint8 for binary values, or bytes
        objects in UTF-8 for strings, the bad ones filled with NaN (integers: 0; booleans: false; strings: empty); and a
        Problem for each bad row, in the order of the rows.
    """
    if isinstance(values, pa.ChunkedArray):  # to combine them copies, even where there is one
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    flat, sizes = _flatten(values)
    if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        flat = flat.cast(pa.large_binary())
    size = column.size
    if size is None:
        known = sizes[sizes > 0]
        multiple = math.prod(side for side in column.shape if side is not None)
        size = int(known[0]) if len(known) else multiple
        if size % multiple:
            size = multiple
    if values.null_count == 0 and flat.null_count == 0 and (sizes == size).all():
        numbers = flat.to_numpy(zero_copy_only=False).reshape(len(values), *column.row_shape(size))
        row_errors = [] if _all_numbers(numbers) else _not_numbers(numbers, column)
    else:
        numbers, row_errors = _decode_bad(values, flat, sizes, size, column)
    if column.dtype.startswith(("int", "bool")) and numbers.dtype != column.dtype and flat.type != pa.uint8():
        numbers, row_errors = _whole(numbers, row_errors, column)
    row_errors += _out_of_range(numbers, column, {problem.row for problem in row_errors})
    return numbers, sorted(row_errors, key=lambda problem: problem.row)


def as_list_array(rows: np.ndarray, empty: np.ndarray | None = None) -> pa.Array:
    """An array of rows as Arrow lists, without copying; null where ``empty`` is true (scoring task side)."""
    width = rows.shape[1]
    if empty is None or not empty.any():
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * width)
    else:
        lengths = np.where(empty, 0, width)
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32), mask=np.append(empty, False))
        rows = rows[~empty]
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))


def renumber(row_errors: Sequence[RowError], first_row: int) -> list[RowError]:
    """The same problems, their rows counted from ``first_row``."""
    return [replace(problem, row=problem.row + first_row) for problem in row_errors]


def _flatten(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """All numbers of all rows in a line, and how many each row has; a null row has none, and counts as -1."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        flat, sizes = values.flatten(), pc.list_value_length(values)
    elif pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        sizes = pc.binary_length(values)
        values = values.drop_null()  # a null row may have bytes under it
        wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
        offsets = np.frombuffer(values.buffers()[1] or b"", wide)[values.offset : values.offset + len(values) + 1]
        start, stop = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        flat = pa.array(np.frombuffer(values.buffers()[2] or b"", np.uint8)[start:stop])
    else:
        return values.drop_null() if values.null_count else values, np.where(_nulls(values), -1, 1)
    return flat, sizes.fill_null(-1).to_numpy(zero_copy_only=False)


def _nulls(values: pa.Array) -> np.ndarray:
    return values.is_null().to_numpy(zero_copy_only=False)


def _all_numbers(numbers: np.ndarray) -> bool:
    # A sum of squares is NaN where one of them is, and else at most infinite: one fast pass, no temporary array.
    flat = numbers.reshape(-1)
    with np.errstate(over="ignore"):
        return flat.dtype.kind != "f" or not np.isnan(np.dot(flat, flat))


def _not_numbers(numbers: np.ndarray, column: Column) -> list[RowError]:
    bad = np.isnan(numbers).reshape(len(numbers), math.prod(numbers.shape[1:]))
    return [
        RowError(
            int(row), column.name, "is NaN" if bad.shape[1] == 1 else f"has NaN at position {int(bad[row].argmax())}"
        )
        for row in np.flatnonzero(bad.any(axis=1))
    ]


def _decode_bad(
    values: pa.Array, flat: pa.Array, sizes: np.ndarray, size: int, column: Column
) -> tuple[np.ndarray, list[RowError]]:
    """The rare case: some row is null, holds a null, or has the wrong size."""
    owners = np.repeat(np.arange(len(sizes)), np.maximum(sizes, 0))  # the row of each number
    holes = np.zeros(len(sizes), bool)
    holes[owners[_nulls(flat)]] = True
    wrong = (sizes != size) & (sizes >= 0)
    # What is no whole number has become null on its way to a network that takes whole numbers.
    null = f"null or no {column.dtype}" if column.dtype.startswith(("int", "bool")) else "null"
    row_errors = [RowError(int(row), column.name, f"is {null}") for row in np.flatnonzero(sizes < 0)]
    row_errors += [
        RowError(int(row), column.name, f"has a {null} among its numbers") for row in np.flatnonzero(holes & ~wrong)
    ]
    what = "strings" if column.dtype == "string" else "numbers"
    row_errors += [
        RowError(int(row), column.name, f"has {int(sizes[row])} {what}, and "
                f"the network takes {size}, of shape {column.shape}") for row in np.flatnonzero(wrong)
    ]  # fmt: skip
    good = ~holes & (sizes == size)
    empty: Any = b"" if column.dtype == "string" else False if pa.types.is_boolean(flat.type) else 0
    raw = flat.fill_null(empty).to_numpy(zero_copy_only=False)
    numbers = np.full((len(sizes), *column.row_shape(size)), np.nan if raw.dtype.kind == "f" else empty, raw.dtype)
    numbers[good] = raw[good[owners]].reshape(-1, *column.row_shape(size))
    if raw.dtype.kind == "f":
        some = np.flatnonzero(good)
        row_errors += [replace(problem, row=int(some[problem.row])) for problem in _not_numbers(numbers[good], column)]
    return numbers, row_errors


def _whole(numbers: np.ndarray, row_errors: list[RowError], column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Numbers of another type as the column's whole ones; rows with any that it has not are bad, and all 0."""
    known = {problem.row for problem in row_errors}
    if numbers.dtype.kind == "f":
        numbers = np.trunc(np.where(np.isnan(numbers), 0, numbers))
    with np.errstate(invalid="ignore"):
        whole = numbers.astype(column.dtype)
    other = (whole != numbers) & (column.dtype != "bool")
    rows = np.flatnonzero(other.reshape(len(other), math.prod(other.shape[1:])).any(axis=1))
    what = f"has a number that is no {column.dtype}"
    row_errors = row_errors + [RowError(int(row), column.name, what) for row in rows if int(row) not in known]
    whole[[problem.row for problem in row_errors]] = 0
    return whole, row_errors


def _out_of_range(numbers: np.ndarray, column: Column, known: set[int]) -> list[RowError]:
    """Labels that are no class of the network's output, and numbers below the least that makes sense."""
    if column.low is not None and len(numbers) and np.fmin.reduce(numbers) < column.low:
        row = int(np.nanargmin(numbers))
        return [RowError(row, column.name, f"is {numbers[row]:g}, and has to be {column.low:g} or more", fatal=True)]
    if column.classes is None or not len(numbers):
        return []
    labels = numbers.reshape(len(numbers), math.prod(numbers.shape[1:]))
    bad_at = (labels < 0) | (labels >= column.classes) | (labels != np.floor(labels))
    bad = bad_at.any(axis=1)
    rows = [int(row) for row in np.flatnonzero(bad) if int(row) not in known]
    return [
        RowError(row, column.name, f"is {labels[row][bad_at[row]][0]:g}, and the network's output has "
                f"{column.classes} classes: "
                f"expected whole numbers from 0 to {column.classes - 1}", fatal=True) for row in rows[:1]
    ]  # fmt: skip
