"""Converts columns of Arrow values to arrays and back; no other module does (both sides)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cos_ml.data.ragged import Ragged, offsets_of
from cos_ml.errors import InvalidInputError

__all__ = [
    "Column",
    "RowError",
    "as_list_array",
    "decode",
    "inconsistent_shapes",
    "match_lengths",
    "renumber",
    "settle",
    "spark_dtype",
]

INTEGRAL = ("int", "uint", "bool")  # how the names of the types begin that hold no fractions


@dataclass(frozen=True)
class Column:
    """A column of the user's DataFrame, and the array that ranks and scoring tasks make of it.

    Attributes:
        name: the user's name for the column, which messages quote.
        field: the column's fixed name in the selected DataFrame, in the spool and in the rank.
        shape: the shape of one row; rows may differ in length in an unknown dimension (None).
        dtype: NumPy's name of the element type, or "string".
        classes: the number of classes, for a column of class labels.
        low, high: the smallest and the largest allowed value, for a column of numbers.
        below: the number of rows of the Embedding that takes the column's numbers as indices.
        padding: the number at the end of rows that are shorter than the longest of their batch.
        alternatives: other shapes that rows may have: all of them the same one, and none is empty. Where it is known
            which, that one.
        ignored: a class that the loss ignores, allowed besides the others.
        hint: what to do about rows of another size.
        parts: the user's names of the columns that are joined to this one; empty for a single column.
        paired: the field of the column whose rows have to be as long, as those of indices and values; empty for none. A
            bad row keeps its length then.
    """

    name: str
    field: str
    shape: tuple[int | None, ...] = ()
    dtype: str = "float32"
    classes: int | None = None
    low: float | None = None
    high: float | None = None
    padding: float = 0.0
    alternatives: tuple[tuple[int | None, ...], ...] = ()
    ignored: float | None = None
    hint: str = ""
    parts: tuple[str, ...] = ()
    below: int | None = None
    paired: str = ""

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

    @property
    def may_vary(self) -> bool:
        """Whether rows may differ in length."""
        return any(None in shape for shape in (self.shape, *self.alternatives))

    @property
    def is_bag(self) -> bool:
        """Whether an EmbeddingBag takes the column's numbers as indices: it skips negative ones."""
        return self.below is not None and self.padding < 0

    def with_shape(self, shape: tuple[int | None, ...]) -> Column:
        """The same column, whose rows are known to have this one of the shapes that they may have."""
        return replace(self, shape=shape, alternatives=(shape,) if self.alternatives else ())

    def shape_of(self, stored: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape, among those that rows may have, of rows that are stored in the shape ``stored``."""
        if None in stored:
            return tuple(stored)
        size = math.prod(side for side in stored if side is not None)
        known = (shape for shape in (self.shape, *self.alternatives) if None not in shape)
        return next(shape for shape in known if math.prod(shape) == size)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row of one column; a fatal error is never skipped: the data does not fit the network."""

    row: int
    column: str
    what: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"column {self.column!r}, row {self.row}: {self.what}"


def spark_dtype(tensor_dtype: str) -> str:
    """The element type of the arrays that are made for a tensor of ``tensor_dtype``."""
    return "float32" if tensor_dtype in ("float16", "bfloat16") else tensor_dtype


def settle(values: pa.Array, column: Column) -> Column:
    """``column`` with the one shape that its rows have; as it is where no row has any of its shapes.

    A row has the first shape that is right for its size, whatever the rows beside it have.

    Raises:
        InvalidInputError: two rows have different ones of these shapes.
    """
    return _settled(column, _flatten(values)[1]) if column.alternatives else column


def _settled(column: Column, sizes: np.ndarray) -> Column:
    """``settle`` by the sizes of the rows."""
    if not column.alternatives:
        return column
    shapes = sorted((column.shape, *column.alternatives), key=lambda shape: None in shape)
    fits = np.array([_fits(shape, sizes) & (sizes > 0) for shape in shapes])
    chosen = fits.argmax(axis=0)[fits.any(axis=0)]
    if not len(chosen):
        return column
    if (chosen != chosen[0]).any():
        raise inconsistent_shapes(column, shapes[chosen[chosen != chosen[0]][0]], shapes[chosen[0]])
    return column.with_shape(shapes[chosen[0]])


def inconsistent_shapes(column: Column, shape: tuple[Any, ...], expected: tuple[Any, ...]) -> InvalidInputError:
    """The error of rows of another shape than those before them."""
    return InvalidInputError(f"Column {column.name!r} has inconsistent row shapes: {shape} after {expected}.")


def _fits(shape: tuple[int | None, ...], sizes: np.ndarray) -> Any:
    """Whether rows of these sizes can have a shape."""
    known = math.prod(side for side in shape if side is not None)
    return (sizes >= 0) & (sizes % known == 0) if None in shape else sizes == known


def decode(values: pa.Array, column: Column) -> tuple[np.ndarray | Ragged, list[RowError]]:
    """Convert Arrow values to one array, and report the bad rows (barrier task and scoring task side).

    Args:
        values: one number, list of numbers or binary value per row.
        column: the expected shape and type.

    Returns:
        tuple[np.ndarray | Ragged, list[RowError]]: the array, [rows, *column.shape], and an error for each bad row, in
        the order of the rows; a Ragged if the shape has an unknown dimension. It has the column's dtype, uint8 for
        binary values, or UTF-8 bytes objects for strings. Bad rows are filled with NaN (integers: 0; booleans: False;
        strings: empty); in a Ragged they have the length 1; those of a paired column
        keep theirs, if they have one.
    """
    if isinstance(values, pa.ChunkedArray):  # combine_chunks copies, even if there is only one
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    flat, sizes = _flatten(values)
    if pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type):
        flat = flat.cast(pa.large_binary())
    if pa.types.is_decimal(flat.type):
        flat = _from_decimals(flat, np.dtype(column.dtype))
    column = _settled(column, sizes)
    if None in column.shape:
        return _decode_ragged(flat, sizes, column)
    if values.null_count == 0 and flat.null_count == 0 and (sizes == column.known_size).all():
        numbers = flat.to_numpy(zero_copy_only=False).reshape(len(values), *column.shape)
        numbers, row_errors = _finite(numbers, column)
    else:
        numbers, row_errors = _decode_bad(flat, sizes, column)
    if _is_cast(flat, numbers, column):
        numbers, row_errors = _to_integers(numbers, row_errors, column)
    numbers, row_errors = _indices(numbers, row_errors, column)
    row_errors += _out_of_range(numbers, column, {error.row for error in row_errors})
    return numbers, sorted(row_errors, key=lambda error: error.row)


def _decode_ragged(flat: pa.Array, sizes: np.ndarray, column: Column) -> tuple[Ragged, list[RowError]]:
    """``decode`` of rows that may differ in length."""
    numbers, (good, row_errors) = _filled(flat), _check_rows(flat, sizes, column)
    owners = np.repeat(np.arange(len(sizes)), np.maximum(sizes, 0))  # the row of each number
    if not _is_finite(numbers):
        places = np.arange(len(numbers)) - np.repeat(offsets_of(np.maximum(sizes, 0))[:-1], np.maximum(sizes, 0))
        rows, first = np.unique(owners[~np.isfinite(numbers)], return_index=True)
        where = dict(zip(rows.tolist(), np.flatnonzero(~np.isfinite(numbers))[first].tolist(), strict=True))
        bad = np.isin(np.arange(len(sizes)), rows) & good
        row_errors += _errors(
            bad, column, lambda row: f"{_has(float(numbers[where[row]]))} at position {places[where[row]]}"
        )
        good &= ~bad
    # The checks of values take each number for a row of its own.
    one = replace(column, shape=())
    if _is_cast(flat, numbers, column):
        numbers, found = _to_integers(numbers, [], one)
        bad = np.isin(np.arange(len(sizes)), owners[[error.row for error in found]]) & good
        row_errors += _errors(bad, column, lambda _: found[0].what)
        good &= ~bad
    if column.below is not None:
        found = _indices(numbers, [], one)[1]
        first = {int(owners[error.row]): error for error in reversed(found)}
        bad = np.isin(np.arange(len(sizes)), list(first)) & good
        row_errors += _errors(bad, column, lambda row: first[row].what)
        good &= ~bad
    known = set(np.flatnonzero(~good[owners]).tolist())
    row_errors += [replace(error, row=int(owners[error.row])) for error in _out_of_range(numbers, one, known)]
    row_errors.sort(key=lambda error: error.row)
    if not good.all():
        kept = good | (bool(column.paired) & (sizes > 0) & _fits(column.shape, sizes))
        before, sizes = np.maximum(sizes, 0), np.where(kept, sizes, column.known_size)
        numbers = _refilled(numbers, before, good, sizes, column)
    if numbers.dtype == np.uint8 and column.padding not in range(256):
        numbers = numbers.astype(column.dtype)
    return Ragged(numbers, offsets_of(sizes), column.shape, column.padding), row_errors


def _refilled(
    numbers: np.ndarray, before: np.ndarray, good: np.ndarray, sizes: np.ndarray, column: Column
) -> np.ndarray:
    """The numbers of the good rows, which have had the sizes ``before``, and filled rows of these ``sizes``."""
    found = np.full(sizes.sum(), _nothing(numbers.dtype, column), numbers.dtype)
    found[np.repeat(good, sizes)] = numbers[np.repeat(good, before)]
    return found


def match_lengths(
    arrays: dict[str, Any], columns: Sequence[Column], row_errors: Sequence[RowError] = ()
) -> list[RowError]:
    """Find the rows that are longer in one column than in the one that it is paired with, and fill them in both.

    Args:
        arrays: the arrays of ``decode`` by field, which this call changes.
        columns: the columns.
        row_errors: the errors of ``decode``: a bad row is reported once.
    """
    known, found = {error.row for error in row_errors}, []
    by_field = {column.field: column for column in columns}
    for column in columns:
        other = by_field.get(column.paired)
        if other is None or column.field < other.field:  # once for each pair
            continue
        pair = [(one, arrays[one.field]) for one in (column, other)]
        own, others = (np.diff(rows.offsets) for _, rows in pair)
        bad = own != others
        for row in np.flatnonzero(bad).tolist():
            what = f"has {own[row]} numbers, but column {other.name!r} has {others[row]}; expected equally many"
            found += [] if row in known else [RowError(row, column.name, what)]
        for one, rows in pair if bad.any() else ():
            before = np.diff(rows.offsets)
            sizes = np.where(bad, 1, before)
            numbers = _refilled(rows.flat_values, before, ~bad, sizes, one)
            arrays[one.field] = replace(rows, values=numbers, offsets=offsets_of(sizes))
    return found


def _from_decimals(flat: pa.Array, dtype: np.dtype[Any]) -> pa.Array:
    """Decimals as another type; null where a type of whole numbers can't hold them."""
    if dtype.kind in "iu":
        low, high = (pa.scalar(Decimal(int(limit))) for limit in (np.iinfo(dtype).min, np.iinfo(dtype).max))
        fits = pc.and_(pc.greater_equal(flat, low), pc.less_equal(flat, high))
        fits = pc.and_(fits, pc.equal(flat, pc.trunc(flat)))
        flat = pc.if_else(fits, flat, pa.scalar(None, flat.type))
    return flat.cast(pa.from_numpy_dtype(dtype if dtype.kind in "iu" else np.dtype("float64")), safe=False)


def _is_cast(flat: pa.Array, numbers: np.ndarray, column: Column) -> bool:
    """Whether the values still have to become the column's whole numbers or booleans; most bytes stay what they are."""
    is_stored = flat.type == pa.uint8() and column.dtype != "int8"
    return column.dtype.startswith(INTEGRAL) and numbers.dtype != column.dtype and not is_stored


def _nothing(dtype: np.dtype[Any], column: Column) -> Any:
    """What bad rows are filled with: where indices are expected, with one that exists."""
    return {"O": b"", "f": np.nan if column.below is None else 0}.get(dtype.kind, 0)


def as_list_array(rows: np.ndarray | Ragged, empty: np.ndarray | None = None) -> pa.Array:
    """Convert rows to Arrow lists without copying; null where ``empty`` is true (both sides)."""
    sizes = np.diff(rows.offsets) if isinstance(rows, Ragged) else np.full(len(rows), math.prod(rows.shape[1:]))
    if empty is None or not empty.any():
        offsets = pa.array(offsets_of(sizes).astype(np.int32))
    else:
        ends = offsets_of(np.where(empty, 0, sizes)).astype(np.int32)
        offsets, rows = pa.array(ends, mask=np.append(empty, False)), rows[~empty]
    return pa.ListArray.from_arrays(
        offsets, pa.array(rows.flat_values if isinstance(rows, Ragged) else rows.reshape(-1))
    )


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


def _is_finite(numbers: np.ndarray) -> bool:
    # A sum of squares is NaN or infinite if any number is: one fast pass, no temporary array. So is that of large ones.
    flat = numbers.reshape(-1)
    with np.errstate(over="ignore"):
        return flat.dtype.kind != "f" or bool(np.isfinite(np.dot(flat, flat)) or np.isfinite(flat).all())


def _errors(bad_rows: np.ndarray, column: Column, what: Callable[[int], str]) -> list[RowError]:
    """An error for each row that is marked in ``bad_rows``, a boolean array."""
    return [RowError(row, column.name, what(row)) for row in np.flatnonzero(bad_rows).tolist()]


def _flat_rows(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(len(numbers), math.prod(numbers.shape[1:]))


def _finite(numbers: np.ndarray, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """The numbers with NaN in place of infinite ones, and an error for each row that has one that is not finite."""
    if _is_finite(numbers):
        return numbers, []
    rows = _flat_rows(numbers)
    bad = ~np.isfinite(rows)

    def what(row: int) -> str:
        first = int(bad[row].argmax())
        if rows.shape[1] == 1:
            return "is NaN" if np.isnan(rows[row, 0]) else "is infinite"
        return f"{_has(rows[row, first])} at position {first}"

    row_errors = _errors(bad.any(axis=1), column, what)
    numbers = np.where(np.isinf(numbers), np.array(np.nan, numbers.dtype), numbers)
    return numbers, row_errors


def _has(number: float) -> str:
    return "has NaN" if np.isnan(number) else "has an infinite number"


def _filled(flat: pa.Array) -> np.ndarray:
    """Arrow's numbers or strings as an array, with 0 or "" for nulls."""
    if flat.null_count:
        kind = flat.type
        flat = flat.fill_null(b"" if pa.types.is_large_binary(kind) else False if pa.types.is_boolean(kind) else 0)
    return flat.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _check_rows(flat: pa.Array, sizes: np.ndarray, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """A boolean array of the rows that have a right size and no nulls, and the errors of the others."""
    with_null = np.zeros(len(sizes), bool)
    if flat.null_count:
        with_null[np.repeat(np.arange(len(sizes)), np.maximum(sizes, 0))[_nulls(flat)]] = True
    fits = _fits(column.shape, sizes) & ((sizes > 0) | (not column.alternatives))
    wrong_size = ~fits & (sizes >= 0)
    # Spark has replaced numbers that are not of an integer type by null.
    other = f" or not {_a(column.dtype)}" if column.dtype.startswith(INTEGRAL) else ""
    items = "strings" if column.dtype == "string" else "numbers"
    size = f"a multiple of {column.known_size}" if None in column.shape else column.known_size
    wrong = f"{items}; the network expects {size}, of shape {column.shape}{column.hint and '. '}{column.hint}"
    row_errors = _errors(sizes < 0, column, lambda _: f"is null{other}")
    row_errors += _errors(with_null & ~wrong_size, column, lambda _: f"contains an element that is null{other}")
    row_errors += _errors(wrong_size, column, lambda row: f"has {sizes[row]} {wrong}")
    return ~with_null & fits, row_errors


def _decode_bad(flat: pa.Array, sizes: np.ndarray, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """The rare case: a row is null, contains a null, or has the wrong size."""
    raw, (good, row_errors) = _filled(flat), _check_rows(flat, sizes, column)
    numbers = np.full((len(sizes), *column.shape), _nothing(raw.dtype, column), raw.dtype)  # type: ignore[arg-type]
    numbers[good] = raw[np.repeat(good, np.maximum(sizes, 0))].reshape(-1, *column.shape)
    numbers[good], found = _finite(numbers[good], column)
    good_rows = np.flatnonzero(good).tolist()
    row_errors += [replace(error, row=good_rows[error.row]) for error in found]
    return numbers, row_errors


def _a(dtype: str) -> str:
    return f"an {dtype}" if dtype.startswith("int") else f"a {dtype}"


def _to_integers(numbers: np.ndarray, errors: list[RowError], column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Cast to the column's integer type or bool; bad rows, and those with a number it can't hold, become 0."""
    if numbers.dtype.kind == "f" and column.dtype != "bool":
        limits = np.iinfo(column.dtype)
        # The largest number of a type may have no float of its own, but the one above it has: a power of two.
        fits = (numbers >= float(limits.min)) & (numbers < float(int(limits.max) + 1)) & (numbers == np.trunc(numbers))
        integers = np.where(fits, numbers, 0).astype(column.dtype)
    else:
        integers = numbers.astype(column.dtype)
        fits = (integers == numbers) | (column.dtype == "bool")
    differs = _flat_rows(~fits).any(axis=1)
    differs[[error.row for error in errors]] = False  # reported already
    errors = errors + _errors(differs, column, lambda _: f"contains a number that is not {_a(column.dtype)}")
    integers[[error.row for error in errors]] = 0
    return integers, errors


def _indices(numbers: np.ndarray, errors: list[RowError], column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Find rows with an index that the Embedding does not have; bad rows become 0, which it has."""
    below = column.below
    if below is None:
        return numbers, errors
    rows = _flat_rows(numbers)
    bad = ~((rows > (-2 if column.is_bag else -1)) & (rows < below))  # Keras cuts fractions off
    bad[[error.row for error in errors]] = False  # reported already

    def what(row: int) -> str:
        index, single = int(bad[row].argmax()), rows.shape[1] == 1
        is_number = f"is {rows[row, index]:g}" if single else f"has {rows[row, index]:g} at position {index}"
        return f"{is_number}; expected an index from 0 to {below - 1}, because the network's Embedding has {below} rows"

    errors = errors + _errors(bad.any(axis=1), column, what)
    if errors:
        numbers = numbers.copy()
        numbers[[error.row for error in errors]] = 0
    return numbers, errors


def _out_of_range(numbers: np.ndarray, column: Column, known: set[int]) -> list[RowError]:
    """The first label that is not a class of the network's output, or a number that is too small or too large."""
    low, high, classes = column.low, column.high, column.classes
    rows = _flat_rows(numbers)
    if classes is not None:
        bad = (rows < 0) | (rows >= classes) | (rows != np.floor(rows))
        if column.ignored is not None:
            bad &= rows != column.ignored
        also = "" if column.ignored is None or 0 <= column.ignored < classes else f", or {column.ignored:g}"
        what = f"is {{:g}}; expected an integer from 0 to {classes - 1}{also}, because the network's output has "
        what += f"{classes} classes"
    elif low is not None and high is not None:
        bad = (rows < low) | (rows > high)
        what = f"is {{:g}}; expected a number from {low:g} to {high:g}, because the loss compares probabilities"
    elif low is not None:
        bad, what = rows < low, f"is {{:g}}; must be >= {low:g}"
    else:
        return []
    for row in np.flatnonzero(bad.any(axis=1)).tolist():
        if row not in known:
            return [RowError(row, column.name, what.format(rows[row][bad[row]][0]), fatal=True)]
    return []
