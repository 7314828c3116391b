"""A rank's rows as a dataset of steps (rank side)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import tensorflow as tf

from cos_ml.data.parquet import Shards
from cos_ml.data.ragged import bucket
from cos_ml.data.spool import PARTS, SpooledRows
from cos_ml.errors import InvalidInputError
from cos_ml.rank.context import RankContext
from cos_ml.rank.row_weights import RowWeights
from cos_ml.rank.schedule import Schedule
from cos_ml.rank.shard_rows import ShardRows, reader_of
from cos_ml.spec import TrainSpec

__all__ = ["Feed", "Parts", "open_rows", "spooled_rows"]


class Feed:
    """This rank's rows of one part, training or validation, as a dataset with as many steps as on every other rank.

    Attributes:
        spec: the training, whose columns are those of a step: with the weights, where the rows of this part have any.
        error: why a row could not be used, once that happened while the dataset was read.
        steps: the number of steps in an epoch.
        total_rows: the number of rows on all ranks.
        share: this rank's fraction of them.
        lead: a rank that has rows in every step.
        idle: whether some rank has no rows in some step.
        equal: whether all ranks have the same number of rows in every step.
    """

    def __init__(self, part: str, spec: TrainSpec, context: RankContext, rows: SpooledRows | ShardRows) -> None:
        self.error: InvalidInputError | None = None
        counts = [task["rows"][part] for task in context.tasks]
        self.communicator, self.partition = context.communicator, context.partition
        self.rank = context.rank
        self.rows = rows.reshaped(spec.columns)
        self.total_rows = sum(counts)
        self.share = counts[context.rank] / max(self.total_rows, 1)
        self.lead = int(np.argmax(counts))
        self.steps = -(-max(counts) // spec.batch_size)
        self.shuffled = spec.shuffle and part == "train"
        starts = np.arange(self.steps)[:, np.newaxis] * spec.batch_size
        self.rows_by_rank = np.clip(np.array(counts) - starts, 0, spec.batch_size).astype(np.int32)  # [steps, ranks]
        self.idle = bool((self.rows_by_rank == 0).any())
        self.equal = len(set(counts)) == 1
        self.weights = RowWeights(part, spec, self.rows, self.communicator, self.total_rows)
        self.spec = replace(spec, weight=self.weights.column)
        self.no_rows: dict[str, Any] = {"w": ((), np.dtype("float32"))} if self.weights.column else {}
        self.no_rows |= {field: (array.shape[1:], array.dtype) for field, array in self.rows.arrays.items()}

    def signature(self) -> Any:
        """The ``tf.TensorSpec`` of each array of a step."""
        rows = [self.no_rows[column.field] for column in self.spec.columns]
        columns = tuple(tf.TensorSpec([None, *shape], dtype) for shape, dtype in rows)
        return columns, tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)

    def dataset(self) -> Any:
        """A ``tf.data.Dataset`` of the steps of one epoch: the columns, this rank's rows, and those of all ranks."""
        return self._dataset(self._steps).apply(tf.data.experimental.assert_cardinality(self.steps))

    def parts(self) -> Callable[[int], Any]:
        """A function of n: an iterator over the next n steps of this epoch, to be used up before another."""
        steps, part = self._steps(), iter(())
        dataset = self._dataset(lambda: part)

        def take(count: int) -> Any:
            nonlocal part
            part = itertools.islice(steps, count)
            return iter(dataset)

        return take

    def _dataset(self, steps: Callable[[], Iterator[Any]]) -> Any:
        options = tf.data.Options()
        options.autotune.enabled = False  # there is nothing to tune, and its thread can take a minute to end
        dataset = tf.data.Dataset.from_generator(steps, output_signature=self.signature())
        return dataset.prefetch(4).with_options(options)

    def begin(self, epoch: int, skipped: int = 0) -> None:
        """Prepare the next pass over the dataset: the order of this rank's rows, and each step's lengths on all ranks.

        Args:
            epoch: the epoch, counted from 0.
            skipped: the number of steps at its start that are delivered without rows.
        """
        self.skipped = skipped
        self.ordered = self.rows.ordered(self.shuffled, (self.spec.seed % 2**63, epoch, self.partition))
        own = self.ordered.lengths(self.spec.batch_size, self.steps)
        self.lengths = {field: self.communicator.maximum(lengths) for field, lengths in sorted(own.items())}
        if self.spec.jit_compile:  # XLA compiles a step again for each length
            self.lengths = {field: bucket(lengths) for field, lengths in self.lengths.items()}

    def _steps(self) -> Iterator[Any]:
        batches = self.ordered.batches(self.spec.batch_size, self.steps, self.lengths)
        try:
            for step, (batch, rows) in enumerate(zip(batches, self.rows_by_rank, strict=True)):
                columns = batch.arrays if step >= self.skipped else {}
                yield self._columns(columns), rows[self.rank], rows.sum(dtype=np.int32)
        except InvalidInputError as error:
            self.error = error  # tf.data keeps only its message
            raise

    def _columns(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The arrays of a step in the order of the spec's columns; without rows, where there are none."""
        if not arrays:
            rows = self.no_rows.items()
            arrays = {field: np.empty((0, *(side or 0 for side in shape)), dtype) for field, (shape, dtype) in rows}
        elif self.weights.column:
            arrays = arrays | {"w": self.weights.of(arrays)}
        return tuple(arrays[column.field] for column in self.spec.columns)


class Parts:
    """The steps of an epoch, cut into parts so that no call of TensorFlow goes past a step at which it has to end.

    Args:
        feed: the training rows, with which this epoch has begun.
        ends: the steps at which parts end, in ascending order.

    Attributes:
        steps: the number of steps of this epoch.
    """

    def __init__(self, feed: Feed, ends: Sequence[int]) -> None:
        self.steps = ends[-1]
        self._take, self._ends, self._end = feed.parts(), iter(ends), 0

    @classmethod
    def of(cls, feed: Feed, schedule: Schedule, epoch: int) -> Self | None:
        """The parts of an epoch; None where no call has to end early."""
        call, steps = schedule.spec.steps_per_execution, schedule.steps(epoch)
        cuts = schedule.cuts(epoch)
        after = (min(-(-step // call) * call, steps) for step in cuts)  # where Keras begins the next call
        return cls(feed, sorted({*cuts, *after, steps})) if cuts else None

    def iterator(self, step: int) -> Any:
        """The iterator over the part that contains a step, from 0; steps come in order."""
        if step >= self._end:
            begin, self._end = self._end, next(self._ends)
            self._iterator = self._take(self._end - begin)
        return self._iterator

    def until(self, end: int) -> int:
        """Where a call that goes on to ``end`` at most ends, in the current part."""
        return min(self._end, end)


def open_rows(
    start: dict[str, Any], spec: TrainSpec, tasks: list[dict[str, Any]]
) -> dict[str, SpooledRows | ShardRows]:
    """This rank's rows by part: from its task's spool, or from a shard of Parquet files."""
    if start["shards"] is None:
        rank = start["rank_info"]["rank"]
        return {part: spooled_rows(part, tasks, rank, start["spool"][part]) for part in PARTS}
    shards, partition = Shards(**start["shards"]), start["partition"]
    reader = reader_of(shards, partition)
    return {part: ShardRows(part, spec, shards, partition, reader) for part in PARTS}


def spooled_rows(part: str, tasks: list[dict[str, Any]], rank: int, descriptors: dict[str, int]) -> SpooledRows:
    """This rank's spooled rows of one part; where it has none, another rank's shapes and dtypes describe them."""
    like = next((task for task in (tasks[rank], *tasks) if task["shapes"]), tasks[rank])
    return SpooledRows(descriptors, tasks[rank]["rows"][part], like["shapes"], like["dtypes"])
