"""The Arrow feed: Spark's rows on local disk, in bounded memory (``Spool``: barrier task; ``SpooledRows``: rank).

The spool's files never have a name, so nothing is left on disk however the fit ends.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import IO, Any

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, decode, renumber
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

__all__ = ["PARTS", "Batch", "Spool", "SpooledRows", "local_folder", "raise_on_invalid", "step_weights", "usable_rows"]

PARTS = ("train", "validation")
MAPPED = 256 << 20  # bytes of the largest column that is memory-mapped; pages read from a map count as memory in use
OFFSETS = ".offsets"  # suffix of a field: where its strings start and end
KEYS = ".keys"  # in place of a field: a hash of each row


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Spool:
    """One partition on local disk: a file of fixed-width rows per column, for training and for validation rows.

    Strings have no fixed width: one file holds their bytes, another one their offsets, both as Arrow lays them out.

    Attributes:
        files: the open, unnamed files, by part and field.
        rows: the number of rows, by part.
        skipped: the number of bad rows that were skipped.
        digest: a hash of the rows of each part that does not depend on their order.
        shapes: the shape of a row by field, empty before the first row.
        dtypes: the dtype of a row by field, empty before the first row.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        fields = [*(column.field for column in spec.columns), KEYS]
        fields += [column.field + OFFSETS for column in spec.columns if column.dtype == "string"]
        self.files: dict[str, dict[str, IO[bytes]]] = {
            part: {field: tempfile.TemporaryFile(dir=local_folder(), buffering=0) for field in fields} for part in PARTS
        }
        self.rows = dict.fromkeys(PARTS, 0)
        self.skipped = 0
        self.digest: dict[str, Any] = dict.fromkeys(PARTS, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write all rows of ``batches``, holding one batch in memory at a time.

        Raises:
            InvalidInputError: a row is bad; the message names the row and the column.
        """
        seen = 0
        for batch in batches:
            arrays, kept = usable_rows(batch, self.spec, seen)
            seen += batch.num_rows
            self.skipped += int((~kept).sum())
            marked = np.zeros(batch.num_rows, bool)
            if self.spec.validation:
                marked = batch.column(self.spec.validation.field).fill_null(False).to_numpy(zero_copy_only=False)
            keys = row_keys(arrays)
            for part, rows in (("train", kept & ~marked), ("validation", kept & marked)):
                if not rows.any():
                    continue
                for field, array in arrays.items():
                    self._append(part, field, array if rows.all() else array[rows])
                self._put(part, KEYS, keys[rows])
                self.rows[part] += int(rows.sum())
                self.digest[part] = (self.digest[part] + int(keys[rows].sum())) % 2**64

    def _append(self, part: str, field: str, array: np.ndarray) -> None:
        shape = self.shapes.setdefault(field, array.shape[1:])
        dtype = self.dtypes.setdefault(field, array.dtype.str)
        if shape != array.shape[1:]:
            column = next(column for column in self.spec.columns if column.field == field)
            raise inconsistent_shapes(column, array.shape[1:], shape)
        if array.dtype == object:
            strings, files = array.reshape(-1), self.files[part]
            offsets = files[field].tell() + np.cumsum([0, *map(len, strings)], dtype=np.int64)
            self._put(part, field + OFFSETS, offsets[1:] if files[field + OFFSETS].tell() else offsets)
            array, dtype = np.frombuffer(b"".join(strings), np.uint8), "|u1"
        self._put(part, field, np.ascontiguousarray(array, dtype))

    def _put(self, part: str, field: str, array: np.ndarray) -> None:
        data = array.data.cast("B") if array.size else b""
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


def inconsistent_shapes(column: Column, shape: tuple[int, ...], expected: tuple[int, ...]) -> InvalidInputError:
    """The error of rows of another shape than those before them."""
    return InvalidInputError(f"Column {column.name!r} has inconsistent row shapes: {shape} after {expected}.")


def usable_rows(batch: pa.RecordBatch, spec: TrainSpec, first_row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A batch's columns as arrays by field, and a boolean array of the rows to use.

    Raises:
        InvalidInputError: a row is bad and may not be skipped; the message counts rows from ``first_row``.
    """
    arrays, row_errors = {}, []
    for column in spec.columns:
        arrays[column.field], found = decode(batch.column(column.field), column)
        row_errors += renumber(found, first_row)
    kept = np.ones(batch.num_rows, bool)
    if row_errors:
        raise_on_invalid(row_errors, spec.handle_invalid)
        if spec.handle_invalid == "skip":
            kept[[error.row - first_row for error in row_errors]] = False
    return arrays, kept


def row_keys(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """uint64 [B]: a hash of each row that depends on nothing but its values.

    Spark returns the rows of a partition in another order when it reads a shuffle again; sorted by their keys they are
    in the same order each time.
    """
    keys = np.zeros(len(next(iter(arrays.values()))), np.uint64)
    for array in arrays.values():
        rows = np.ascontiguousarray(array).reshape(len(keys), math.prod(array.shape[1:]))
        if array.dtype == object:
            hashes = [hashlib.blake2b(string, digest_size=8).digest() for string in array.reshape(-1)]
            rows = np.frombuffer(b"".join(hashes), np.uint64).reshape(rows.shape)
        words = rows.view("u4" if rows.itemsize * rows.shape[1] % 4 == 0 else "u1")
        keys = _scrambled(keys + np.einsum("ij,j->i", words, _factors(words.shape[1])))
    return keys


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
        self.arrays: dict[str, Any] = {}
        self.keys = _map(descriptors[KEYS], count, (), "<u8")
        for field, fd in descriptors.items():
            if field == KEYS or field.endswith(OFFSETS):
                continue
            shape, dtype = tuple(shapes[field]), dtypes[field]
            if field + OFFSETS in descriptors:
                self.arrays[field] = _map_strings(fd, descriptors[field + OFFSETS], (count, *shape))
            elif os.fstat(fd).st_size > MAPPED:
                self.arrays[field] = RowsOnDisk(fd, (count, *shape), dtype)
            else:
                self.arrays[field] = _map(fd, count, shape, dtype)

    def reshaped(self, columns: Iterable[Column]) -> SpooledRows:
        """The same rows in the shapes of ``columns``: the networks of one job may expect different ones."""
        other = copy.copy(self)
        rows = {column: self.arrays[column.field] for column in columns}
        shapes = {column: column.row_shape(math.prod(rows[column].shape[1:])) for column in rows}
        other.arrays = {column.field: rows[column].reshape(self.count, *shapes[column]) for column in rows}
        return other

    def weight_sum(self) -> float:
        """The sum of the row weights, which does not depend on the order of the rows; their number without weights."""
        weights = self.arrays.get("w")
        return float(self.count) if weights is None else math.fsum(weights[:].tolist())

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
        return {}

    def batches(self, size: int, steps: int, lengths: dict[str, np.ndarray]) -> Iterator[Batch]:
        """``steps`` batches: all rows in order, ``size`` at a time, then batches of no rows.

        Rows that differ in length are padded to ``lengths``, as ``lengths()`` returns them for this rank.
        """
        for step in range(steps):
            chosen = self.order[step * size : (step + 1) * size]
            rows: Any = chosen
            if not len(chosen):
                rows = slice(0, 0)
            elif len(chosen) > 1 and (np.diff(chosen) == 1).all():
                rows = slice(int(chosen[0]), int(chosen[-1]) + 1)  # a view of adjacent rows instead of a copy
            yield Batch({field: array[rows] for field, array in self.arrays.items()}, len(chosen))


class Strings:
    """Memory-mapped strings; indexing them by rows gives an array [rows, ...] of bytes objects."""

    dtype = np.dtype(object)

    def __init__(self, values: pa.LargeBinaryArray, shape: tuple[int, ...]) -> None:
        self.values, self.shape = values, shape

    def reshape(self, *shape: int) -> Strings:
        """The same strings, in another shape."""
        return Strings(self.values, shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        indices = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows.astype(np.int64)
        width = math.prod(self.shape[1:])
        places = (indices.reshape(-1, 1) * width + np.arange(width)).reshape(-1)
        strings = self.values.take(pa.array(places)).to_numpy(zero_copy_only=False)
        return strings.reshape(len(indices), *self.shape[1:])


class RowsOnDisk:
    """Rows of a file that are read on demand, so that they occupy the page cache but not this process's memory.

    A memory map would grow to the size of the file: Linux maps up to megabytes around each row that is read.

    Args:
        descriptor: the descriptor of the open file.
        shape: the shape of all rows, [count, ...].
        dtype: the dtype of the rows.
    """

    def __init__(self, descriptor: int, shape: tuple[int, ...], dtype: str) -> None:
        self.descriptor, self.shape, self.dtype = descriptor, shape, np.dtype(dtype)
        self.width = self.dtype.itemsize * math.prod(shape[1:])

    def reshape(self, *shape: int) -> RowsOnDisk:
        """The same rows, in another shape."""
        return RowsOnDisk(self.descriptor, shape, self.dtype.str)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            found = np.empty((stop - start, *self.shape[1:]), self.dtype)
            self._read(found.data.cast("B"), start)
            return found
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        data = found.data.cast("B")
        for place, row in enumerate(rows.tolist()):
            self._read(data[place * self.width : (place + 1) * self.width], row)
        return found

    def _read(self, into: memoryview, row: int) -> None:
        at = row * self.width
        while into:
            count = os.preadv(self.descriptor, [into], at)
            if not count:
                raise OSError(f"the spool ends before row {row}")
            into, at = into[count:], at + count


def _map(descriptor: int, count: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    with os.fdopen(descriptor, "rb") as file:
        if not count or 0 in shape:
            return np.empty((count, *shape), dtype)
        return np.asarray(np.memmap(file, dtype, "r", shape=(count, *shape)))


def _map_strings(data: int, offsets: int, shape: tuple[int, ...]) -> Strings:
    """Strings of two files, given by their descriptors."""
    files = [_map(offsets, os.fstat(offsets).st_size // 8, (), "<i8"), _map(data, os.fstat(data).st_size, (), "|u1")]
    buffers = [None, *map(pa.py_buffer, files)]
    return Strings(pa.Array.from_buffers(pa.large_binary(), math.prod(shape), buffers), shape)


def step_weights(weights: np.ndarray, size: int, steps: int) -> np.ndarray:
    """float64 [steps]: the sum of the row weights in each step of a pass, whose weights are given in its order."""
    starts = np.arange(0, len(weights), size)
    sums = np.add.reduceat(weights, starts) if len(weights) else np.empty(0)
    return np.pad(sums, (0, steps - len(sums)))
