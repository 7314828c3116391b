"""The rows of a rank's shard of a Parquet dataset, which are read again in every epoch (rank side)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cos_ml.data.columns import Column, RowError, match_lengths, renumber
from cos_ml.data.parquet import IN_ROW_GROUP, Shards, decode_stored, marks_of, validation_mask, values_of
from cos_ml.data.ragged import Ragged, cut
from cos_ml.data.spool import Batch, lengths_of_step, longest_by_step, raise_on_invalid, row_keys, validates
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

__all__ = ["ShardPass", "ShardRows", "reader_of"]

WINDOW = 64 << 20  # bytes of rows that are shuffled together
PIECE = 1 << 20  # bytes of them that leave the window together
Arrays = dict[str, np.ndarray | Ragged]  # by field


class Reader(Protocol):
    """What reads the row groups of a rank."""

    def read(self, fields: Sequence[str], seed: int, shuffle: bool, row_bytes: int, convert: Any) -> Iterator[Arrays]:
        """The rows, converted; the order depends only on ``seed``."""


class ShardRows:
    """This rank's rows of one part, read again in every pass.

    Args:
        part: "train" or "validation".
        spec: the columns.
        shards: the dataset.
        rank: which shard to read.
        reader: what reads its row groups; None for a reader of its own.
        columns: the spec's columns in the shapes that the network expects; None for the spec's own.

    Attributes:
        count: the number of rows.
        arrays: arrays of no rows by field, which show shapes and dtypes.
    """

    def __init__(
        self, part: str, spec: TrainSpec, shards: Shards, rank: int, reader: Reader | None = None,
        columns: tuple[Column, ...] | None = None,
    ) -> None:  # fmt: skip
        self.part, self.spec, self.shards, self.rank = part, spec, shards, rank
        self.reader = reader or reader_of(shards, rank)
        self.columns = tuple(
            column.with_shape(column.shape_of(shards.shapes[column.field]))
            for column in (spec.columns if columns is None else columns)
        )
        self.count = shards.rows[rank][part]
        self.arrays = {column.field: _no_rows(column, shards.dtypes[column.field]) for column in self.columns}

    def reshaped(self, columns: tuple[Column, ...]) -> ShardRows:
        """The same rows in the shapes of ``columns``: the networks of one job may expect different ones."""
        return ShardRows(self.part, self.spec, self.shards, self.rank, self.reader, columns)

    def scan(self, fields: Sequence[str]) -> Iterator[Arrays]:
        """The rows of some fields, a window at a time; raises InvalidInputError if the files have changed."""
        columns, seen = tuple(column for column in self.columns if column.field in fields), 0
        for window in self.windows(columns, 1, shuffle=False) if self.count else ():
            seen += _length(window)
            yield window
        if seen != self.count:
            raise self.changed(seen)

    def changed(self, seen: int) -> InvalidInputError:
        """The error of files that had another number of rows when the fit began."""
        rows = f"at least {seen} rows" if seen >= self.count else f"{seen} rows"
        return InvalidInputError(
            f"The Parquet files changed during the fit: this rank's shard had {self.count} rows, now {rows}."
        )

    def ordered(self, shuffle: bool, seed: tuple[int, ...]) -> ShardPass:
        """A pass over all rows: row groups, and the rows of each window, in an order that depends only on ``seed``."""
        return ShardPass(self, shuffle, int(np.random.SeedSequence(seed).generate_state(1)[0]) | 1)

    def windows(self, columns: tuple[Column, ...], seed: int, shuffle: bool) -> Iterator[Arrays]:
        """The rows by field, shuffled within about WINDOW bytes; the order does not depend on ``columns``."""
        fixed = [array for array in self.arrays.values() if not isinstance(array, Ragged)]
        row = self.shards.varying_bytes + sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in fixed)
        pieces = self._pieces(columns, seed, shuffle, row)
        if not shuffle:
            return pieces
        capacity, size = (max(1, bytes // max(row, 1)) for bytes in (WINDOW, PIECE))
        return shuffled(pieces, min(capacity, self.count), size, np.random.default_rng(seed))

    def _pieces(self, columns: tuple[Column, ...], seed: int, shuffle: bool, row_bytes: int) -> Iterator[Arrays]:
        """The row groups one by one or in pieces, decoded and checked."""
        if self.rank >= self.shards.groups:
            return iter(())
        hashed = bool(self.spec.validation_fraction) and "v" not in self.shards.names
        marked = bool(self.spec.validation or self.spec.validation_fraction) and not hashed
        read = self.columns if hashed else columns

        def convert(stored: Any, first_row: int, folders: Mapping[str, str | None]) -> Arrays:
            arrays: Arrays = {}
            for column in read:
                values = values_of(stored, self.shards.names[column.field], column, folders)
                arrays[column.field], row_errors = decode_stored(values, column)
                self._check(row_errors, first_row)
            self._check(match_lengths(arrays, read), first_row)
            if not (marked or hashed):
                return arrays
            if marked:
                mask = validation_mask(marks_of(stored, self.shards.names["v"], folders))
            else:
                mask = validates(row_keys(arrays), self.spec)
            kept = mask if self.part == "validation" else ~mask
            return {column.field: arrays[column.field][kept] for column in columns}

        fields = [*(column.field for column in read), *(["v"] if marked else [])]
        return self.reader.read(fields, seed, shuffle, row_bytes, convert)

    def _check(self, row_errors: list[RowError], first_row: int) -> None:
        """Raises InvalidInputError for a bad row, unless bad rows are kept."""
        if row_errors:
            # Bad rows that are skipped were not stored. Those that remain differ in shape from the dataset's first row.
            handle_invalid = "error" if self.spec.handle_invalid == "skip" else self.spec.handle_invalid
            raise_on_invalid(renumber(row_errors, first_row), handle_invalid, IN_ROW_GROUP)


@dataclass(frozen=True)
class ShardPass:
    """One pass over a rank's rows, which can be repeated in the same order."""

    rows: ShardRows
    shuffle: bool
    seed: int

    def lengths(self, size: int, steps: int) -> dict[str, np.ndarray]:
        """int64 [steps] for each field whose rows differ in length: the longest row of each step, 0 without rows."""
        ragged = tuple(column for column in self.rows.columns if None in column.shape)
        if not ragged or not self.rows.count:
            return {column.field: np.zeros(steps, np.int64) for column in ragged}
        windows = [{field: _lengths(rows) for field, rows in window.items()} for window in self._windows(ragged)]
        lengths = {column.field: np.concatenate([window[column.field] for window in windows]) for column in ragged}
        if (count := _length(lengths)) != self.rows.count:
            raise self.rows.changed(count)
        return {field: longest_by_step(rows, size, steps) for field, rows in lengths.items()}

    def batches(self, size: int, steps: int, lengths: dict[str, np.ndarray]) -> Iterator[Batch]:
        """``steps`` batches: all rows, ``size`` at a time, then batches of no rows.

        Rows that differ in length are padded to the step's length in ``lengths``, which is at least what ``lengths()``
        returns; without one, to the longest row of the batch.
        """
        done = seen = 0
        # Read one batch ahead, to yield the last one only when it is known to be: the caller may not ask for more.
        batches = itertools.chain(_batches(self._windows(self.rows.columns), size), [{}])
        for arrays, following in itertools.pairwise(batches):
            batch = Batch(cut(arrays, slice(None), lengths_of_step(lengths, done)), _length(arrays))
            done += 1
            seen += batch.num_valid
            if bool(following) == (seen == self.rows.count):
                raise self.rows.changed(seen)
            yield batch
        if seen != self.rows.count:
            raise self.rows.changed(seen)
        for step in range(done, steps):
            yield Batch(cut(self.rows.arrays, slice(None), lengths_of_step(lengths, step)), 0)

    def _windows(self, columns: tuple[Column, ...]) -> Iterator[Arrays]:
        return self.rows.windows(columns, self.seed, self.shuffle) if self.rows.count else iter(())


def reader_of(shards: Shards, rank: int) -> Reader:
    """What reads the row groups of a rank; ranks of the Arrow feed do not wait for its imports."""
    if shards.reader == "petastorm":
        from cos_ml.rank.petastorm_reader import PetastormReader

        return PetastormReader(shards, rank)
    from cos_ml.rank.parquet_reader import ParquetReader

    return ParquetReader(shards, rank)


def _no_rows(column: Column, dtype: str) -> np.ndarray | Ragged:
    """The rows of a column, none of them, in the type that the others have."""
    if None in column.shape:
        return Ragged(np.empty(0, dtype), np.zeros(1, np.int64), column.shape, column.padding)
    return np.empty((0, *column.shape), dtype)  # type: ignore[arg-type]


def _lengths(rows: Any) -> np.ndarray:
    return rows.lengths  # type: ignore[no-any-return]


def _length(arrays: Mapping[str, np.ndarray | Ragged]) -> int:
    return len(next(iter(arrays.values())))


def _concatenated(parts: Sequence[Any]) -> Any:
    """The rows of all parts, arrays or Ragged."""
    if len(parts) == 1:
        return parts[0]
    return Ragged.join(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)


def shuffled(pieces: Iterable[Arrays], capacity: int, size: int, random: np.random.Generator) -> Iterator[Arrays]:
    """The rows of ``pieces``, ``size`` at a time: each ``capacity`` of them in a random order."""
    window = _Window(capacity)
    for piece in pieces:
        start, count = 0, _length(piece)
        while start < count:
            start += window.add({field: rows[start:] for field, rows in piece.items()})
            if window.count == capacity:
                yield from window.drained(random, size)
    yield from window.drained(random, size)


class _Window:
    """Rows that are shuffled together; their memory is used again for those of the next window."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        self.arrays: dict[str, np.ndarray] = {}
        self.ragged: dict[str, list[Ragged]] = {}

    def add(self, piece: Arrays) -> int:
        """Add as many rows as fit, and return how many that were."""
        count = min(self.capacity - self.count, _length(piece))
        for field, rows in piece.items():
            if isinstance(rows, Ragged):
                self.ragged.setdefault(field, []).append(rows[:count])
            else:
                self._room(field, rows)[self.count : self.count + count] = rows[:count]
        self.count += count
        return count

    def _room(self, field: str, rows: np.ndarray) -> np.ndarray:
        """The array of a field, converted if its type can't hold ``rows``."""
        array = self.arrays.get(field)
        if array is None:
            array = np.empty((self.capacity, *rows.shape[1:]), rows.dtype)
        self.arrays[field] = array.astype(np.result_type(array.dtype, rows.dtype), copy=False)
        return self.arrays[field]

    def drained(self, random: np.random.Generator, size: int) -> Iterator[Arrays]:
        """The rows, in a random order, which leave the window."""
        order, self.count = random.permutation(self.count), 0
        held = self.arrays | {field: Ragged.join(parts) for field, parts in self.ragged.items()}
        self.ragged = {}
        for start in range(0, len(order), size):
            yield {field: rows[order[start : start + size]] for field, rows in held.items()}


def _batches(windows: Iterator[Arrays], size: int) -> Iterator[Arrays]:
    """Divide windows of any size into batches of ``size`` rows; the last batch may be smaller."""
    held: list[Arrays] = []
    for window in windows:
        held.append(window)
        count = sum(map(_length, held))
        if count < size:
            continue
        joined = {field: _concatenated([rows[field] for rows in held]) for field in window}
        end = count - count % size
        for start in range(0, end, size):
            yield {field: array[start : start + size] for field, array in joined.items()}
        held = [{field: array[end:] for field, array in joined.items()}] if end < count else []
    if held:
        yield {field: _concatenated([rows[field] for rows in held]) for field in held[0]}
