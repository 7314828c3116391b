"""The Arrow feed: Spark's rows on local disk, in bounded memory (``Spool``: barrier task; ``SpooledRows``: rank).

The spool's files never have a name, so nothing is left on disk however the fit ends.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import IO, Any

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, decode, inconsistent_shapes, match_lengths, renumber, settle
from cos_ml.data.disk_arrays import RowsOnDisk, Strings, map_array, map_offsets, map_strings
from cos_ml.data.ragged import Ragged, cut, offsets_of
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

__all__ = ["PARTS", "Batch", "Spool", "SpooledRows", "local_folder", "raise_on_invalid", "row_keys",
           "usable_rows", "validates"]  # fmt: skip

PARTS = ("train", "validation")
SCANNED = 8192  # rows that are looked at together
MAPPED = 256 << 20  # bytes of the largest column that is memory-mapped; pages read from a map count as memory in use
OFFSETS = ".offsets"  # suffix of a field: where its strings start and end
ROWS = ".rows"  # suffix of a field: where its rows start and end, if they differ in length
KEYS = ".keys"  # in place of a field: a hash of each row


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Spool:
    """One partition on local disk: a file of fixed-width rows per column, for training and for validation rows.

    Strings have no fixed width: one file holds their bytes, another one their offsets, both as Arrow lays them out.
    Rows that differ in length lie end to end, and one more file holds where each of them starts and ends.

    Attributes:
        files: the open, unnamed files, by part and field.
        rows: the number of rows, by part.
        skipped: the number of bad rows that were skipped.
        digest: a hash of the rows of each part that does not depend on their order.
        settled: the columns by field, each with the shape of its rows as soon as that is known.
        shapes: the shape of a row by field, empty before the first row.
        dtypes: the dtype of a row by field, empty before the first row.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        fields = [*(column.field for column in spec.columns), KEYS]
        fields += [column.field + OFFSETS for column in spec.columns if column.dtype == "string"]
        fields += [column.field + ROWS for column in spec.columns if column.may_vary]
        self.files: dict[str, dict[str, IO[bytes]]] = {
            part: {field: tempfile.TemporaryFile(dir=local_folder(), buffering=0) for field in fields} for part in PARTS
        }
        self.rows = dict.fromkeys(PARTS, 0)
        self.skipped = 0
        self.digest: dict[str, Any] = dict.fromkeys(PARTS, 0)
        self.settled: dict[str, Column] = {}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.ends: dict[tuple[str, str], int] = {}  # the last offset, by part and file

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write all rows of ``batches``, holding one batch in memory at a time.

        Raises:
            InvalidInputError: a row is bad; the message names the row and the column.
        """
        seen = 0
        for batch in batches:
            arrays, kept = usable_rows(batch, self.spec, seen, self.settled)
            seen += batch.num_rows
            self.skipped += int((~kept).sum())
            marked = np.zeros(batch.num_rows, bool)
            if self.spec.validation:
                marked = batch.column(self.spec.validation.field).fill_null(False).to_numpy(zero_copy_only=False)
            keys = row_keys(arrays)
            if self.spec.validation_fraction:
                marked = validates(keys, self.spec)
            for part, rows in (("train", kept & ~marked), ("validation", kept & marked)):
                if not rows.any():
                    continue
                for field, array in arrays.items():
                    self._append(part, field, array if rows.all() else array[rows])
                self._put(part, KEYS, keys[rows])
                self.rows[part] += int(rows.sum())
                self.digest[part] = (self.digest[part] + int(keys[rows].sum())) % 2**64

    def _append(self, part: str, field: str, array: np.ndarray | Ragged) -> None:
        shape = self.shapes.setdefault(field, array.shape[1:])
        dtype = self.dtypes.setdefault(field, array.dtype.str)
        if shape != array.shape[1:]:
            column = next(column for column in self.spec.columns if column.field == field)
            raise inconsistent_shapes(column, array.shape[1:], shape)
        if isinstance(array, Ragged):
            self._put_offsets(part, field + ROWS, np.diff(array.offsets))
        values: np.ndarray = array.flat_values if isinstance(array, Ragged) else array.reshape(-1)
        if values.dtype == object:
            self._put_offsets(part, field + OFFSETS, np.fromiter(map(len, values), np.int64, len(values)))
            values, dtype = np.frombuffer(b"".join(values), np.uint8), "|u1"
        self._put(part, field, np.ascontiguousarray(values, dtype))

    def _put_offsets(self, part: str, name: str, sizes: np.ndarray) -> None:
        """Append where things of these sizes end; the file begins with a 0, where the first of all starts."""
        end = self.ends.get((part, name), 0)
        offsets = end + offsets_of(sizes)
        self._put(part, name, offsets[1:] if (part, name) in self.ends else offsets)
        self.ends[part, name] = int(offsets[-1])

    def _put(self, part: str, field: str, array: np.ndarray) -> None:
        data = array.reshape(-1).view(np.uint8).data
        while data:
            data = data[self.files[part][field].write(data) :]

    def descriptors(self) -> dict[str, dict[str, int]]:
        """The descriptors of the open files, which the rank inherits."""
        return {part: {field: file.fileno() for field, file in files.items()} for part, files in self.files.items()}

    def close(self) -> None:
        """Free the disk space."""
        for files in self.files.values():
            for file in files.values():
                file.close()


def usable_rows(
    batch: pa.RecordBatch, spec: TrainSpec, first_row: int, settled: dict[str, Column] | None = None
) -> tuple[dict[str, np.ndarray | Ragged], np.ndarray]:
    """A batch's columns as arrays by field, and a boolean array of the rows to use.

    Args:
        batch: the values of the columns, as ``frames.select_columns`` returns them.
        spec: the columns, and how to handle invalid rows.
        first_row: the number of the batch's first row in its partition.
        settled: the columns by field with the shapes that rows of earlier batches had, which this call completes; pass
            the same dict with each batch of a partition, so that all of its rows have one shape.

    Raises:
        InvalidInputError: a row is bad and may not be skipped, the message counts rows from ``first_row``; or rows have
            several of the shapes that a column allows.
    """
    arrays: dict[str, np.ndarray | Ragged] = {}
    row_errors: list[RowError] = []
    settled = {} if settled is None else settled
    for column in spec.columns:
        values = batch.column(column.field)
        own, before = settle(values, column), settled.get(column.field, column)
        if column not in (own, before) and own.shape != before.shape:
            raise inconsistent_shapes(column, own.shape, before.shape)
        settled[column.field] = before if own == column else own
        arrays[column.field], found = decode(values, settled[column.field])
        row_errors += found
    row_errors = renumber([*row_errors, *match_lengths(arrays, spec.columns, row_errors)], first_row)
    if spec.validation:
        marks = batch.column(spec.validation.field)
        nulls = np.flatnonzero(marks.is_null().to_numpy(zero_copy_only=False)).tolist() if marks.null_count else []
        row_errors += [RowError(first_row + row, spec.validation.name, "is null") for row in nulls]
    kept = np.ones(batch.num_rows, bool)
    if row_errors:
        raise_on_invalid(row_errors, spec.handle_invalid)
        if spec.handle_invalid == "skip":
            kept[[error.row - first_row for error in row_errors]] = False
    return arrays, kept


def row_keys(arrays: Mapping[str, np.ndarray | Ragged]) -> np.ndarray:
    """uint64 [B]: a hash of each row that depends on nothing but its values.

    Spark returns the rows of a partition in another order when it reads a shuffle again; sorted by their keys they are
    in the same order each time.
    """
    keys = np.zeros(len(next(iter(arrays.values()))), np.uint64)
    for array in arrays.values():
        if isinstance(array, Ragged):
            keys = _scrambled(keys + _ragged_keys(array))
            continue
        rows = np.ascontiguousarray(array).reshape(len(keys), math.prod(array.shape[1:]))
        if array.dtype == object:
            rows = _string_hashes(rows)
        words = rows.view("u4" if rows.itemsize * rows.shape[1] % 4 == 0 else "u1")
        keys = _scrambled(keys + np.einsum("ij,j->i", words, _factors(words.shape[1])))
    return keys


def validates(keys: np.ndarray, spec: TrainSpec) -> np.ndarray:
    """bool [B]: which rows ``validationFraction`` selects, by their ``row_keys`` and the seed.

    Every feed hashes the rows as they are decoded for the network, so all feeds make the same split.
    """
    seed = _scrambled(np.array([spec.seed % 2**64], np.uint64) + np.uint64(1))
    return (_scrambled(keys ^ seed) >> np.uint64(11)) < (spec.validation_fraction or 0.0) * 2.0**53


def _ragged_keys(rows: Ragged) -> np.ndarray:
    """uint64 [B]: a hash of each row and its length."""
    values, offsets = rows.flat_values, rows.offsets - rows.offsets[0]
    values = np.ascontiguousarray(_string_hashes(values) if values.dtype == object else values)
    width = "u4" if values.itemsize % 4 == 0 else "u1"
    words, offsets = values.view(width), offsets * (values.itemsize // np.dtype(width).itemsize)
    places = np.arange(len(words)) - np.repeat(offsets[:-1], np.diff(offsets))  # of each word within its row
    sums = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words * (_scrambled(places.astype(np.uint64) + np.uint64(1)) | np.uint64(1)), out=sums[1:])
    return sums[offsets[1:]] - sums[offsets[:-1]] + _scrambled(np.diff(offsets).astype(np.uint64))


def _string_hashes(strings: np.ndarray) -> np.ndarray:
    hashes = [hashlib.blake2b(string, digest_size=8).digest() for string in strings.reshape(-1)]
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(strings.shape)


@lru_cache(maxsize=16)
def _factors(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2**63, size=count, dtype=np.uint64) | np.uint64(1)


def _scrambled(keys: np.ndarray) -> np.ndarray:
    """Let every bit of a key affect every bit of the result: the finalizer of SplitMix64 (Steele et al., 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def raise_on_invalid(row_errors: list[RowError], handle_invalid: str, note: str = "") -> None:
    """Raises InvalidInputError for the first bad row, unless ``handle_invalid`` allows it."""
    fatal = [error for error in row_errors if error.fatal]
    if fatal:
        raise InvalidInputError(f"{fatal[0]}{note}")
    if handle_invalid == "error":
        message = f'{row_errors[0]}. handleInvalid="skip" skips such rows, "keep" fills them with NaN.'
        raise InvalidInputError(message + note)


def local_folder() -> str:
    """The folder for temporary data that Spark assigned to this executor."""
    folders = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    return next((folder for folder in folders if folder and os.path.isdir(folder)), tempfile.gettempdir())


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Batch:
    """The rows of one rank for one step, ``num_valid`` of them: arrays by field."""

    arrays: dict[str, np.ndarray]
    num_valid: int


class SpooledRows:
    """The spooled rows of one part: memory-mapped, or read from disk where a column is large.

    Args:
        descriptors: the descriptors of the spool's open files, by field.
        count: the number of rows.
        shapes: the shape of a row, by field.
        dtypes: the dtype of a row, by field.
    """

    def __init__(self, descriptors: dict[str, int], count: int, shapes: dict[str, Any], dtypes: dict[str, str]) -> None:
        self.count = count
        self.keys = map_array(descriptors[KEYS], count, (), "<u8")
        self.arrays: dict[str, Any] = {
            field: _open_rows(descriptors, field, count, tuple(shapes[field]), dtypes[field])
            for field in descriptors
            if field != KEYS and not field.endswith((OFFSETS, ROWS))
        }

    def reshaped(self, columns: Iterable[Column]) -> SpooledRows:
        """The same rows in the shapes of ``columns``: the networks of one job may expect different ones."""
        other = copy.copy(self)
        other.arrays = {column.field: _reshaped(self.arrays[column.field], column) for column in columns}
        return other

    def scan(self, fields: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """The rows of some fields, a few thousand at a time."""
        for start in range(0, self.count, SCANNED):
            yield {field: self.arrays[field][start : start + SCANNED] for field in fields}

    def ordered(self, shuffle: bool, seed: tuple[int, ...]) -> Pass:
        """A pass over all rows, in a random order that depends only on ``seed``, or in the order of the spool."""
        if not shuffle:
            return Pass(self.arrays, np.arange(self.count))
        return Pass(self.arrays, np.random.default_rng(seed).permutation(self.by_key))

    @cached_property
    def by_key(self) -> np.ndarray:
        """uint32 or int64 [count]: the indices of the rows in the order of their keys."""
        order = np.argsort(self.keys, kind="stable")
        return order.astype(np.uint32) if self.count < 2**32 else order


@dataclass(frozen=True)
class Pass:
    """One pass over a rank's rows: arrays by field, and the indices of the rows in the order of the pass."""

    arrays: dict[str, Any]
    order: np.ndarray

    def lengths(self, size: int, steps: int) -> dict[str, np.ndarray]:
        """int64 [steps] for each field whose rows differ in length: the longest row of each step, 0 without rows."""
        ragged = {field: array for field, array in self.arrays.items() if isinstance(array, Ragged)}
        return {field: longest_by_step(rows.lengths[self.order], size, steps) for field, rows in ragged.items()}

    def batches(self, size: int, steps: int, lengths: dict[str, np.ndarray]) -> Iterator[Batch]:
        """``steps`` batches: all rows in order, ``size`` at a time, then batches of no rows.

        Rows that differ in length are padded to the step's length in ``lengths``, which is at least what ``lengths()``
        returns; without one, to the longest row of the batch.
        """
        for step in range(steps):
            chosen = self.order[step * size : (step + 1) * size]
            rows: Any = chosen
            if not len(chosen):
                rows = slice(0, 0)
            elif len(chosen) > 1 and (np.diff(chosen) == 1).all():
                rows = slice(int(chosen[0]), int(chosen[-1]) + 1)  # a view of adjacent rows instead of a copy
            yield Batch(cut(self.arrays, rows, lengths_of_step(lengths, step)), len(chosen))


def longest_by_step(lengths: np.ndarray, size: int, steps: int) -> np.ndarray:
    """int64 [steps]: the longest row of each step, at least 1, or 0 without rows; ``lengths`` are those of a pass."""
    starts = np.arange(0, len(lengths), size)
    found = np.maximum(np.maximum.reduceat(lengths, starts), 1) if len(lengths) else lengths
    return np.pad(found, (0, steps - len(found)))


def lengths_of_step(lengths: Mapping[str, np.ndarray], step: int) -> dict[str, int]:
    """The lengths to which the rows of one step are padded, by field."""
    return {field: int(steps[step]) for field, steps in lengths.items()}


def _open_rows(
    descriptors: dict[str, int], field: str, count: int, shape: tuple[int | None, ...], dtype: str
) -> Ragged | Strings | RowsOnDisk | np.ndarray:
    """The rows of one field."""
    if None in shape:
        values = _open_array(descriptors, field, None, dtype)
        return Ragged(values, map_offsets(descriptors[field + ROWS]), shape)
    return _open_array(descriptors, field, (count, *shape), dtype)  # type: ignore[arg-type]


def _open_array(
    descriptors: dict[str, int], field: str, shape: tuple[int, ...] | None, dtype: str
) -> Strings | RowsOnDisk | np.ndarray:
    """An array in the file of a field; with one dimension and as long as the file is, if ``shape`` is None."""
    descriptor = descriptors[field]
    if field + OFFSETS in descriptors:
        return map_strings(descriptor, descriptors[field + OFFSETS], shape)
    size = os.fstat(descriptor).st_size
    shape = (size // np.dtype(dtype).itemsize,) if shape is None else shape
    return RowsOnDisk(descriptor, shape, dtype) if size > MAPPED else map_array(descriptor, shape[0], shape[1:], dtype)


def _reshaped(rows: Any, column: Column) -> Any:
    """The rows of ``column`` in its shape."""
    if isinstance(rows, Ragged):
        return replace(rows, padding=column.padding)
    return rows.reshape(rows.shape[0], *column.shape_of(rows.shape[1:]))
