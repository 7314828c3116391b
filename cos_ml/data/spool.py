"""The Arrow feed: rows stream from Spark to local disk in bounded memory, and the rank memory-maps them (both sides).

``select_columns`` runs on the driver, ``Spool`` in the barrier task, ``Rows`` in the rank. The spool's files have no name from
the moment they are made, so nothing is left on disk whatever ends the fit.
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
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, decode, renumber
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    pass

__all__ = ["PARTS", "Batch", "Rows", "Spool", "local_folder", "raise_on_invalid", "step_weights", "usable_rows"]

PARTS = ("train", "validation")
MAPPED = 256 << 20  # bytes of a column that are mapped; what is read of a map counts as the process's memory
ENDS = ".ends"  # after a field's name: where its strings end
KEYS = ".keys"  # in the place of a field's name: a hash of each row


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Spool:
    """One partition on local disk, as a file of fixed-width rows per column, for training and for validation rows.

    Strings have no fixed width: their bytes go to one file, and where each of them ends to another.

    Attributes:
        files: by part and field; open, and without a name.
        rows: how many rows each part has.
        digest: of each part's rows, in whatever order they came.
        shapes: of a row, by field, once a row has been seen.
        dtypes: of a row's numbers, by field, once a row has been seen.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        fields = [*(column.field for column in spec.columns), KEYS]
        fields += [column.field + ENDS for column in spec.columns if column.dtype == "string"]
        self.files: dict[str, dict[str, IO[bytes]]] = {
            part: {field: tempfile.TemporaryFile(dir=local_folder(), buffering=0) for field in fields} for part in PARTS
        }
        self.rows = dict.fromkeys(PARTS, 0)
        self.skipped = 0
        self.digest = dict.fromkeys(PARTS, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write all rows of ``batches``, one batch in memory at a time.

        Raises:
            InvalidInputError: a row can't be used; the message names row and column.
        """
        seen = 0
        for batch in batches:
            self._write(batch, seen)
            seen += batch.num_rows

    def _write(self, batch: pa.RecordBatch, first_row: int) -> None:
        arrays, kept, skipped = usable_rows(batch, self.spec, first_row)
        self.skipped += skipped
        marked = np.zeros(batch.num_rows, bool)
        if self.spec.validation:
            marked = batch.column(self.spec.validation.field).fill_null(False).to_numpy(zero_copy_only=False)
        keys = row_keys(arrays)
        for part, rows in (("train", kept & ~marked), ("validation", kept & marked)):
            if not rows.any():
                continue
            self.rows[part] += int(rows.sum())
            self.digest[part] = (self.digest[part] + int(keys[rows].sum())) % 2**64
            self._put(part, KEYS, keys[rows])
            for field, array in arrays.items():
                self._append(part, field, array if rows.all() else array[rows])

    def _append(self, part: str, field: str, array: np.ndarray) -> None:
        shape = self.shapes.setdefault(field, array.shape[1:])
        dtype = self.dtypes.setdefault(field, array.dtype.str)
        if shape != array.shape[1:]:
            raise InvalidInputError(
                f"Column {self._name(field)!r} has rows of shape {array.shape[1:]} after rows of {shape}: expected "
                "one shape."
            )
        if array.dtype == object:
            texts = array.reshape(-1)
            end = self.files[part][field].tell()
            self._put(part, field + ENDS, end + np.cumsum([len(text) for text in texts], dtype=np.int64))
            array = np.frombuffer(b"".join(texts), np.uint8)
            dtype = "|u1"
        self._put(part, field, np.ascontiguousarray(array, dtype))

    def _put(self, part: str, field: str, array: np.ndarray) -> None:
        data = array.data.cast("B") if array.size else b""
        written = 0
        while written < len(data):
            written += self.files[part][field].write(data[written:])

    def _name(self, field: str) -> str:
        return next(column.name for column in self.spec.columns if column.field == field)

    def descriptors(self) -> dict[str, dict[str, int]]:
        """The open files' descriptors, to be inherited by the rank."""
        return {part: {field: file.fileno() for field, file in files.items()} for part, files in self.files.items()}

    def close(self) -> None:
        """Give the disk back."""
        for files in self.files.values():
            for file in files.values():
                file.close()


def usable_rows(
    batch: pa.RecordBatch, spec: TrainSpec, first_row: int
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """A batch's columns as arrays by field, which of its rows are to be used, and how many are not.

    Raises:
        InvalidInputError: a row can't be used, and is not to be skipped; its number counts from ``first_row``.
    """
    arrays, row_errors = {}, []
    for column in spec.columns:
        arrays[column.field], found = decode(batch.column(column.field), column)
        row_errors += renumber(found, first_row)
    kept = np.ones(batch.num_rows, bool)
    if row_errors:
        raise_on_invalid(row_errors, spec.handle_invalid)
        if spec.handle_invalid == "skip":
            kept[[problem.row - first_row for problem in row_errors]] = False
    return arrays, kept, int((~kept).sum())


def row_keys(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """uint64 [B]: a hash of each row, the same wherever and in whatever company it is met.

    Spark hands the rows of a partition over in another order when it reads a shuffle again. In the order of their keys
    they are the same rows, to train on in the same order.
    """
    keys = np.zeros(len(next(iter(arrays.values()))), np.uint64)
    for array in arrays.values():
        rows = np.ascontiguousarray(array).reshape(len(keys), math.prod(array.shape[1:]))
        if array.dtype == object:
            texts = [hashlib.blake2b(text, digest_size=8).digest() for text in array.reshape(-1)]
            rows = np.frombuffer(b"".join(texts), np.uint64).reshape(rows.shape)
        words = rows.view("u4" if rows.itemsize * rows.shape[1] % 4 == 0 else "u1")
        keys = _mixed(keys + np.einsum("ij,j->i", words, _factors(words.shape[1])))
    return keys


@lru_cache(maxsize=16)
def _factors(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2**63, size=count, dtype=np.uint64) | np.uint64(1)


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the key: the finalizer of SplitMix64 (Steele et al., 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def raise_on_invalid(row_errors: list[RowError], handle_invalid: str) -> None:
    """Raises InvalidInputError for the first bad row, unless ``handle_invalid`` says to go on."""
    fatal = [problem for problem in row_errors if problem.fatal]
    if fatal:
        raise InvalidInputError(str(fatal[0]))
    if handle_invalid == "error":
        raise InvalidInputError(f'{row_errors[0]}. handleInvalid="skip" leaves such rows out, "keep" makes them NaN.')


def local_folder() -> str:
    """The folder that Spark gave this executor for temporary data."""
    folders = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    return next((folder for folder in folders if folder and os.path.isdir(folder)), tempfile.gettempdir())


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Batch:
    """One step's rows of one rank: arrays by field, of ``real`` rows; an idle rank has filler rows and ``real`` 0."""

    arrays: dict[str, np.ndarray]
    real: int


class Rows:
    """Spooled rows of one part: memory-mapped, or read from disk where they are large.

    Args:
        descriptors: of the spool's open files, by field.
        count: how many rows they hold.
        shapes, dtypes: of one row, by field.
    """

    def __init__(self, descriptors: dict[str, int], count: int, shapes: dict[str, Any], dtypes: dict[str, str]) -> None:
        self.count = count
        self.arrays: dict[str, Any] = {}
        self.keys = _map(descriptors[KEYS], count, (), "<u8")
        for field, fd in descriptors.items():
            if field == KEYS or field.endswith(ENDS):
                continue
            shape, dtype = tuple(shapes[field]), dtypes[field]
            if field + ENDS in descriptors:
                ends = _map(descriptors[field + ENDS], count, shape, "<i8")
                self.arrays[field] = Strings(_map(fd, os.fstat(fd).st_size, (), "|u1"), ends)
            elif os.fstat(fd).st_size > MAPPED:
                self.arrays[field] = RowsOnDisk(fd, (count, *shape), dtype)
            else:
                self.arrays[field] = _map(fd, count, shape, dtype)

    def reshaped(self, columns: Iterable[Column]) -> Rows:
        """The same rows, each in the shape of its column: networks of one job may see them in different ones."""
        other = copy.copy(self)
        other.arrays = {
            column.field: (rows := self.arrays[column.field]).reshape(
                self.count, *column.row_shape(math.prod(rows.shape[1:]))
            )
            for column in columns
        }
        return other

    def first(self) -> dict[str, np.ndarray]:
        """One row, by field."""
        return {field: array[:1] for field, array in self.arrays.items()}

    def ordered(self, shuffle: bool, seed: tuple[int, ...]) -> Pass:
        """A pass over the rows: every row once; in a random order that depends on ``seed`` alone, or as they came."""
        if not shuffle:
            return Pass(self.arrays, np.arange(self.count))
        return Pass(self.arrays, np.random.default_rng(seed).permutation(self.by_key))

    @cached_property
    def by_key(self) -> np.ndarray:
        """uint32 or int64 [count]: the rows in an order that does not depend on the one they came in."""
        order = np.argsort(self.keys, kind="stable")
        return order.astype(np.uint32) if self.count < 2**32 else order


@dataclass(frozen=True)
class Pass:
    """One pass over a rank's rows: arrays by field, and whole numbers [count], the order of their rows."""

    arrays: dict[str, Any]
    order: np.ndarray

    def weights(self) -> np.ndarray:
        """float64 [count]: the row weights in the order of this pass, all 1 where there is no weight column."""
        weights = self.arrays.get("w")
        if weights is None:
            return np.broadcast_to(1.0, len(self.order))  # it takes no memory
        return weights[:].astype(np.float64)[self.order]

    def batches(self, size: int, steps: int, padding: dict[str, np.ndarray]) -> Iterator[Batch]:
        """``steps`` batches: the rows in order, ``size`` at a time, then filler rows of weight zero.

        Filler comes from this rank's own rows, so that layers which keep statistics see data of the same kind; a rank
        without any takes ``padding``.
        """
        for step in range(steps):
            chosen = self.order[step * size : (step + 1) * size]
            real = len(chosen)
            if not real and not len(self.order):
                yield Batch(padding, 0)
                continue
            if not real:
                chosen = self.order[:size]
            if len(chosen) > 1 and int(chosen[-1]) - int(chosen[0]) == len(chosen) - 1 and (np.diff(chosen) == 1).all():
                rows: Any = slice(int(chosen[0]), int(chosen[-1]) + 1)  # neighbours need no gathering
            else:
                rows = chosen
            yield Batch({field: array[rows] for field, array in self.arrays.items()}, real)


class Strings:
    """Memory-mapped strings, which give an array of [rows, ...] bytes objects where they are indexed by rows.

    Args:
        data: uint8 [bytes], all strings one after the other.
        ends: int64 [rows, ...], where each string ends.
    """

    dtype = np.dtype(object)

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self.data, self.ends = data, ends
        self.shape = ends.shape

    def reshape(self, *shape: int) -> Strings:
        """The same strings, in another shape."""
        return Strings(self.data, self.ends.reshape(shape))

    def __getitem__(self, rows: Any) -> np.ndarray:
        flat, width = self.ends.reshape(-1), math.prod(self.shape[1:])
        numbers = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.asarray(rows)
        chosen = (numbers.reshape(-1, 1) * width + np.arange(width)).reshape(-1)
        texts = np.empty(chosen.size, object)
        for at, index in enumerate(chosen.tolist()):
            texts[at] = self.data[flat[index - 1] if index else 0 : flat[index]].tobytes()
        return texts.reshape(len(numbers), *self.shape[1:])


class RowsOnDisk:
    """Rows of a file, read when they are asked for; the page cache holds them, and this process none.

    A map would grow to the whole file: Linux maps up to megabytes around each row that is read.

    Args:
        descriptor: of the open file.
        shape: of all rows, [count, ...].
        dtype: of their numbers.
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
        bytes_ = found.data.cast("B")
        for place, row in enumerate(rows.tolist()):
            self._read(bytes_[place * self.width : (place + 1) * self.width], row)
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


def step_weights(weights: np.ndarray, size: int, steps: int) -> np.ndarray:
    """float64 [steps]: the sum of this rank's row weights in each step, from those of a pass in its order."""
    starts = np.arange(0, len(weights), size)
    sums = np.add.reduceat(weights, starts) if len(weights) else np.empty(0)
    return np.pad(sums, (0, steps - len(sums)))
