"""Converts Spark's column types to arrays and back; no other module does (both sides)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """A column of the user's DataFrame, and the array that ranks and scoring tasks make of it.

    Attributes:
        name: the user's name for the column, which messages quote.
        field: the column's fixed name in the selected DataFrame, in the spool and in the rank.
        shape: the shape of one row; rows may differ in length in an unknown dimension (None).
        dtype: NumPy's name of the element type, or "string".
        classes: the number of classes, for a column of class labels.
        low: the smallest allowed value, for a column of numbers.
        padding: the number at the end of rows that are shorter than the longest of their batch.
        alternatives: other shapes that rows may have: the first row that is not empty decides for all of a partition.
        ignored: a class that the loss ignores, allowed besides the others.
    """

    name: str
    field: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    classes: int | None = None
    low: float | None = None
    padding: float = 0.0
    alternatives: tuple[tuple[int | None, ...], ...] = ()
    ignored: float | None = None

    def __post_init__(self) -> None:
        if self.shape.count(None) > 1:
            raise InvalidInputError(
                f"Column {self.name!r} belongs to an input of shape {self.shape}, but a flat row determines only one "
                "unknown dimension. Give the network's input a fixed size."
            )

    @property
    def size(self) -> int | None:
        """Numbers in one row, or None where the shape has an unknown dimension."""
        return None if None in self.shape else math.prod(self.shape)  # type: ignore[arg-type]

    @property
    def known_size(self) -> int:
        """The product of the known dimensions."""
        return math.prod(side for side in self.shape if side is not None)

    def row_shape(self, size: int) -> tuple[int, ...]:
        """The shape of a row of ``size`` numbers."""
        return tuple(size // self.known_size if side is None else side for side in self.shape)


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row of one column; a fatal error is never skipped: the data does not fit the network."""

    row: int
    column: str
    what: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"column {self.column!r}, row {self.row}: {self.what}"


def expression(schema: T.StructType, column: Column) -> SparkColumn:
    """The Spark expression that brings ``column`` into the form that ``decode`` takes (driver side).

    Dense and sparse Vectors and arrays become arrays of the network's own number type, which take half the bytes of a
    Vector; binary columns stay as they are.

    Raises:
        InvalidInputError: the DataFrame has no such column, or its type is not numeric.
    """
    # Imported here, because ranks use this module too and start faster without Spark.
    from pyspark.ml.functions import vector_to_array
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if column.name not in schema.fieldNames():
        raise InvalidInputError(f"There is no column {column.name!r}. The DataFrame has columns {schema.fieldNames()}.")
    given = schema[column.name].dataType
    source = F.col("`" + column.name.replace("`", "``") + "`")
    if column.dtype == "string":
        if T.StringType in (type(given), type(getattr(given, "elementType", None))):
            return source
        raise InvalidInputError(
            f"Column {column.name!r} is of type {given.simpleString()}: expected a string or an array of strings, "
            "because the network's input takes strings."
        )
    targets = {"float32": T.FloatType(), "int32": T.IntegerType(), "int64": T.LongType(), "bool": T.BooleanType()}
    target = targets[column.dtype]
    if isinstance(given, VectorUDT):
        array = vector_to_array(source, "float32" if column.dtype == "float32" else "float64")
        array = F.when(source.isNotNull(), array)  # vector_to_array fails on null
        return array if column.dtype == "float32" else _cast_or_null(array, T.DoubleType(), target, nested=True)
    if isinstance(given, T.ArrayType):
        element: T.DataType = given.elementType
        while isinstance(element, T.ArrayType):
            source, element = F.flatten(source), element.elementType
        if isinstance(element, (T.NumericType, T.BooleanType)):
            return source if element == target else _cast_or_null(source, element, target, nested=True)
    if isinstance(given, (T.NumericType, T.BooleanType)):
        return _cast_or_null(source, given, target, nested=False)
    is_input = column.field.startswith("x")
    if isinstance(given, T.BinaryType) and is_input:
        return source
    raise InvalidInputError(
        f"Column {column.name!r} is of type {given.simpleString()}: expected a Vector, an array of numbers, a number"
        f"{' or binary' if is_input else ''}. Convert it first, for example with VectorAssembler or StringIndexer."
    )


def _cast_or_null(source: SparkColumn, given: T.DataType, target: T.DataType, nested: bool) -> SparkColumn:
    """Numbers, or arrays of them, cast to another type; null where it can't hold the number (NaN, out of range)."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(target, T.BooleanType) and isinstance(given, (T.FloatType, T.DoubleType)):  # Spark casts NaN to true

        def known(number: SparkColumn) -> SparkColumn:
            return F.when(~F.isnan(number), number)

        source = F.transform(source, known) if nested else known(source)
    return source.try_cast(T.ArrayType(target) if nested else target)


def spark_dtype(tensor_dtype: str) -> str:
    """The element type in which Spark hands over values for a tensor of ``tensor_dtype``."""
    if tensor_dtype == "string":
        return "string"
    if tensor_dtype.startswith(("int", "uint")):
        return "int64" if tensor_dtype.endswith("64") else "int32"
    return "bool" if tensor_dtype == "bool" else "float32"


def decode(values: pa.Array, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Convert Arrow values to one array, and report the bad rows (barrier task and scoring task side).

    Args:
        values: one number, list of numbers or binary value per row.
        column: the expected shape and type.

    Returns:
        tuple[np.ndarray, list[RowError]]: the array, [rows, *column.shape], and an error for each bad row, in the
        order of the rows. The array has the column's dtype, uint8 for binary values, or UTF-8 bytes objects for
        strings. Bad rows are filled with NaN (integers: 0; booleans: False; strings: empty).
    """
    if isinstance(values, pa.ChunkedArray):  # combine_chunks copies, even if there is only one
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    flat, sizes = _flatten(values)
    if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        flat = flat.cast(pa.large_binary())
    size = _row_size(column, sizes)
    if values.null_count == 0 and flat.null_count == 0 and (sizes == size).all():
        numbers = flat.to_numpy(zero_copy_only=False).reshape(len(values), *column.row_shape(size))
        row_errors = [] if _has_no_nan(numbers) else _nan_errors(numbers, column)
    else:
        numbers, row_errors = _decode_bad(flat, sizes, size, column)
    if column.dtype.startswith(("int", "bool")) and numbers.dtype != column.dtype and flat.type != pa.uint8():
        numbers, row_errors = _to_integers(numbers, row_errors, column)
    row_errors += _out_of_range(numbers, column, {error.row for error in row_errors})
    return numbers, sorted(row_errors, key=lambda error: error.row)


def _row_size(column: Column, sizes: np.ndarray) -> int:
    """Numbers that a row must have; for an unknown dimension the first row that has any decides."""
    if column.size is not None:
        return column.size
    first = next(iter(sizes[sizes > 0].tolist()), 0)
    return first if first and first % column.known_size == 0 else column.known_size


def as_list_array(rows: np.ndarray, empty: np.ndarray | None = None) -> pa.Array:
    """Convert an array [rows, width] to Arrow lists without copying; null where ``empty`` is true (both sides)."""
    width = rows.shape[1]
    if empty is None or not empty.any():
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * width)
    else:
        lengths = np.where(empty, 0, width)
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32), mask=np.append(empty, False))
        rows = rows[~empty]
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))


def renumber(row_errors: Sequence[RowError], first_row: int) -> list[RowError]:
    """The same errors, with rows counted from ``first_row``."""
    return [replace(error, row=error.row + first_row) for error in row_errors]


def _flatten(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The numbers of all rows end to end, and the size of each row: -1 for a null row, which has no numbers."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        flat, sizes = values.flatten(), pc.list_value_length(values)
    elif pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        sizes = pc.binary_length(values)
        values = values.drop_null()  # the buffer may contain bytes for a null row
        wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
        offsets = np.frombuffer(values.buffers()[1] or b"", wide)[values.offset : values.offset + len(values) + 1]
        start, stop = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        flat = pa.array(np.frombuffer(values.buffers()[2] or b"", np.uint8)[start:stop])
    else:
        return values.drop_null() if values.null_count else values, np.where(_nulls(values), -1, 1)
    return flat, sizes.fill_null(-1).to_numpy(zero_copy_only=False)


def _nulls(values: pa.Array) -> np.ndarray:
    return values.is_null().to_numpy(zero_copy_only=False)


def _has_no_nan(numbers: np.ndarray) -> bool:
    # A sum of squares is NaN if any number is, and otherwise at most infinite: one fast pass, no temporary array.
    flat = numbers.reshape(-1)
    with np.errstate(over="ignore"):
        return flat.dtype.kind != "f" or not np.isnan(np.dot(flat, flat))


def _errors(bad_rows: np.ndarray, column: Column, what: Callable[[int], str]) -> list[RowError]:
    """An error for each row that is marked in ``bad_rows``, a boolean array."""
    return [RowError(row, column.name, what(row)) for row in np.flatnonzero(bad_rows).tolist()]


def _flat_rows(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(len(numbers), math.prod(numbers.shape[1:]))


def _nan_errors(numbers: np.ndarray, column: Column) -> list[RowError]:
    bad = _flat_rows(np.isnan(numbers))
    where = "is NaN" if bad.shape[1] == 1 else "has NaN at position {}"
    return _errors(bad.any(axis=1), column, lambda row: where.format(bad[row].argmax()))


def _decode_bad(flat: pa.Array, sizes: np.ndarray, size: int, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """The rare case: a row is null, contains a null, or has the wrong size."""
    owners = np.repeat(np.arange(len(sizes)), np.maximum(sizes, 0))  # the row of each number
    with_null = np.zeros(len(sizes), bool)
    with_null[owners[_nulls(flat)]] = True
    wrong_size = (sizes != size) & (sizes >= 0)
    # Spark has replaced numbers that are not of an integer type by null.
    other = f" or not {_a(column.dtype)}" if column.dtype.startswith(("int", "bool")) else ""
    items = "strings" if column.dtype == "string" else "numbers"
    wrong = f"{items}; the network expects {size}, of shape {column.shape}"
    row_errors = _errors(sizes < 0, column, lambda _: f"is null{other}")
    row_errors += _errors(with_null & ~wrong_size, column, lambda _: f"contains an element that is null{other}")
    row_errors += _errors(wrong_size, column, lambda row: f"has {sizes[row]} {wrong}")
    good = ~with_null & (sizes == size)
    empty: Any = b"" if column.dtype == "string" else False if pa.types.is_boolean(flat.type) else 0
    raw = flat.fill_null(empty).to_numpy(zero_copy_only=False)
    numbers = np.full((len(sizes), *column.row_shape(size)), np.nan if raw.dtype.kind == "f" else empty, raw.dtype)
    numbers[good] = raw[good[owners]].reshape(-1, *column.row_shape(size))
    if raw.dtype.kind == "f":
        good_rows = np.flatnonzero(good).tolist()
        row_errors += [replace(error, row=good_rows[error.row]) for error in _nan_errors(numbers[good], column)]
    return numbers, row_errors


def _a(dtype: str) -> str:
    return f"an {dtype}" if dtype.startswith("int") else f"a {dtype}"


def _to_integers(numbers: np.ndarray, errors: list[RowError], column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Cast to the column's integer type or bool; bad rows, and those with a number it can't hold, become 0."""
    if numbers.dtype.kind == "f":
        numbers = np.trunc(np.where(np.isnan(numbers), 0, numbers))
    with np.errstate(invalid="ignore"):
        integers = numbers.astype(column.dtype)
    differs = _flat_rows((integers != numbers) & (column.dtype != "bool")).any(axis=1)
    differs[[error.row for error in errors]] = False  # reported already
    errors = errors + _errors(differs, column, lambda _: f"contains a number that is not {_a(column.dtype)}")
    integers[[error.row for error in errors]] = 0
    return integers, errors


def _out_of_range(numbers: np.ndarray, column: Column, known: set[int]) -> list[RowError]:
    """The first label that is not a class of the network's output, or a number that is too small."""
    if column.low is not None and len(numbers) and np.fmin.reduce(numbers) < column.low:
        row = int(np.nanargmin(numbers))
        return [RowError(row, column.name, f"is {numbers[row]:g}; must be >= {column.low:g}", fatal=True)]
    if column.classes is None:
        return []
    labels = _flat_rows(numbers)
    bad = (labels < 0) | (labels >= column.classes) | (labels != np.floor(labels))
    expected = f"an integer from 0 to {column.classes - 1}, because the network's output has {column.classes} classes"
    for row in np.flatnonzero(bad.any(axis=1)).tolist():
        if row not in known:
            return [RowError(row, column.name, f"is {labels[row][bad[row]][0]:g}; expected {expected}", fatal=True)]
    return []
