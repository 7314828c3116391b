"""Shards of a Parquet dataset, read by petastorm anew in every epoch (rank side)."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column
from cos_ml.data.spool import Batch
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    pass
from cos_ml.data.parquet import Shards, _raise_on_invalid, as_marks, decode_stored, inconsistent_shapes

__all__ = ["ShardPass", "ShardRows"]

WINDOW = 64 << 20  # bytes of rows among which the order is random
ATTEMPTS = 10  # until a pass over the row groups comes to its end


class ShardRows:
    """This rank's rows of one part, read anew in every pass.

    Args:
        part: "train" or "validation".
        spec: the columns.
        shards: what to read.
        rank: whose.
        columns: those of the spec, in the shapes of the network that trains; without, in the spec's own.

    Attributes:
        count: how many rows there are.
        arrays: by field, of no rows: what they look like.
    """

    def __init__(
        self, part: str, spec: TrainSpec, shards: Shards, rank: int, columns: tuple[Column, ...] | None = None
    ) -> None:
        self.part, self.spec, self.shards, self.rank = part, spec, shards, rank
        self.columns = spec.columns if columns is None else columns
        self.count = shards.rows[rank][part]
        self.arrays = {
            column.field: np.empty((0, *self._row_shape(column)), shards.dtypes[column.field])
            for column in self.columns
        }

    def reshaped(self, columns: tuple[Column, ...]) -> ShardRows:
        """The same rows, each in the shape of its column: networks of one job may see them in different ones."""
        return ShardRows(self.part, self.spec, self.shards, self.rank, columns)

    def _row_shape(self, column: Column) -> tuple[int, ...]:
        return column.row_shape(math.prod(self.shards.shapes[column.field]))

    def first(self) -> dict[str, np.ndarray]:
        """One row, by field."""
        return {field: array[:1] for field, array in next(self._windows(self.columns, 1, shuffle=False)).items()}

    def ordered(self, shuffle: bool, seed: tuple[int, ...]) -> ShardPass:
        """A pass over the rows: row groups, and rows within windows, in an order that depends on ``seed`` alone."""
        return ShardPass(self, shuffle, int(np.random.SeedSequence(seed).generate_state(1)[0]) | 1)

    def _windows(self, columns: tuple[Column, ...], seed: int, shuffle: bool) -> Iterator[dict[str, np.ndarray]]:
        """The rows, by field, in pieces of about WINDOW bytes; a pass over fewer columns has the same order."""
        random = np.random.default_rng(seed)
        size = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in self.arrays.values())
        size += self.shards.text_bytes
        held: list[dict[str, np.ndarray]] = []
        rows = 0
        for arrays in self._groups(columns, seed, shuffle):
            held.append(arrays)
            rows += len(next(iter(arrays.values())))
            if rows * size >= WINDOW:
                yield _mixed(held, rows, random if shuffle else None)
                held, rows = [], 0
        if rows:
            yield _mixed(held, rows, random if shuffle else None)

    def _groups(self, columns: tuple[Column, ...], seed: int, shuffle: bool) -> Iterator[dict[str, np.ndarray]]:
        """One row group after the other, decoded and checked."""
        if self.rank >= self.shards.groups:
            return
        wanted = {column.field: self.shards.names[column.field] for column in columns}
        if self.spec.validation:
            wanted["v"] = self.shards.names["v"]
        for stored in _all(self.shards, list(wanted.values()), self.rank, seed, shuffle):
            arrays = {column.field: self._checked(stored[wanted[column.field]], column) for column in columns}
            if self.spec.validation:
                marks = as_marks(stored[wanted["v"]])
                kept = marks if self.part == "validation" else ~marks
                arrays = {field: array[kept] for field, array in arrays.items()}
            yield arrays

    def _checked(self, stored: pa.ChunkedArray, column: Column) -> np.ndarray:
        array, row_errors = decode_stored(stored, column)
        if array.shape[1:] != (shape := self._row_shape(column)):
            raise inconsistent_shapes(column, array.shape[1:], shape)
        if row_errors:
            # What was to be skipped was not stored: what is left are rows of another length than the file's first.
            _raise_on_invalid(row_errors, "error" if self.spec.handle_invalid == "skip" else self.spec.handle_invalid)
        return array


@dataclass(frozen=True)
class ShardPass:
    """One pass over a rank's rows, in an order that is the same whenever it is made again."""

    rows: ShardRows
    shuffle: bool
    seed: int

    def weights(self) -> np.ndarray:
        """float64 [count]: the row weights in the order of this pass, all 1 where there is no weight column."""
        weight = self.rows.spec.weight
        if weight is None or not self.rows.count:
            return np.ones(self.rows.count)
        weights = np.concatenate([window["w"] for window in self._windows((weight,))] or [np.empty(0)])
        if len(weights) != self.rows.count:
            raise self._changed(len(weights))
        return weights.astype(np.float64)

    def batches(self, size: int, steps: int, padding: dict[str, np.ndarray]) -> Iterator[Batch]:
        """``steps`` batches of ``size`` rows, then filler rows of weight zero: the pass's first, or ``padding``."""
        done = seen = 0
        first: dict[str, np.ndarray] = {}
        # One ahead, for the last one is only handed out when it is known to be: nobody may ask for more.
        cut = itertools.chain(_cut(self._windows(self.rows.columns), size), [{}])
        for arrays, following in itertools.pairwise(cut):
            first = first or arrays
            batch = Batch(arrays, len(next(iter(arrays.values()))))
            done += 1
            seen += batch.real
            if bool(following) == (seen == self.rows.count):
                raise self._changed(seen)
            yield batch
        if seen != self.rows.count:
            raise self._changed(seen)
        for _ in range(done, steps):
            yield Batch(first or padding, 0)

    def _changed(self, seen: int) -> InvalidInputError:
        rows = f"{seen} rows or more" if seen >= self.rows.count else f"{seen} rows"
        return InvalidInputError(
            f"The Parquet files have {rows} for this rank, and had {self.rows.count} when the fit began: something "
            "writes to them."
        )

    def _windows(self, columns: tuple[Column, ...]) -> Iterator[dict[str, np.ndarray]]:
        return self.rows._windows(columns, self.seed, self.shuffle) if self.rows.count else iter(())


def _mixed(held: list[dict[str, np.ndarray]], rows: int, random: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Row groups as one, in a random order."""
    places = np.arange(rows)
    if random is not None:
        places[random.permutation(rows)] = np.arange(rows)
    mixed = {
        field: np.empty((rows, *array.shape[1:]), np.result_type(*(one[field] for one in held)))
        for field, array in held[0].items()
    }
    start = 0
    for arrays in held:  # each row is copied once, to where it is to be
        stop = start + len(next(iter(arrays.values())))
        for field, array in arrays.items():
            mixed[field][places[start:stop]] = array
        start = stop
    return mixed


def _cut(windows: Iterator[dict[str, np.ndarray]], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of ``size`` rows out of windows of any, the last one smaller."""
    rest: dict[str, np.ndarray] = {}
    for window in windows:
        if rest:
            window = {field: np.concatenate([rest[field], array]) for field, array in window.items()}
        rows = len(next(iter(window.values())))
        for start in range(0, rows - rows % size, size):
            yield {field: array[start : start + size] for field, array in window.items()}
        rest = {field: array[rows - rows % size :] for field, array in window.items()} if rows % size else {}
    if rest:
        yield rest


def _all(shards: Shards, columns: list[str], rank: int, seed: int, shuffle: bool) -> Iterator[pa.Table]:
    """All row groups of a rank: petastorm's pool can take a late start for the end, and is then asked again."""
    done = 0
    for _ in range(ATTEMPTS):
        for group in itertools.islice(_petastorm(shards, columns, rank, seed, shuffle), done, None):
            yield group
            done += 1
        if done >= shards.filled[rank]:
            return


def _petastorm(shards: Shards, columns: list[str], rank: int, seed: int, shuffle: bool) -> Iterator[pa.Table]:
    """This rank's row groups that have rows, as petastorm reads them."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # it uses what pyarrow has long marked as old
    from petastorm.reader import make_batch_reader
    from petastorm.workers_pool import EmptyResultError

    reader = make_batch_reader(
        list(shards.files),
        schema_fields=[re.escape(column) for column in columns],
        reader_pool_type="thread",
        workers_count=1,  # more would hand out what is ready first, and no two passes would have one order
        results_queue_size=2,
        shuffle_row_groups=shuffle,
        seed=seed if shuffle else None,  # it moves the shard's row groups by a seed in any case
        cur_shard=rank,
        shard_count=min(len(shards.rows), shards.groups),  # petastorm refuses more shards than row groups
    )
    with reader, contextlib.suppress(EmptyResultError):
        while True:
            # What its own iterator takes, and turns into NumPy's arrays: nulls are gone there, and rows of different
            # sizes an error without a row.
            yield reader._workers_pool.get_results()
