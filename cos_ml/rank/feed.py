"""A rank's rows as a dataset of steps (rank side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from cos_ml.data.parquet import Shards
from cos_ml.data.spool import Batch, SpooledRows, step_weights
from cos_ml.errors import InvalidInputError
from cos_ml.network.exact_step import batch_data
from cos_ml.rank.context import RankContext
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import TrainSpec

__all__ = ["Feed", "open_rows", "spooled_rows"]


class Feed:
    """This rank's rows of one part, training or validation, as a dataset with as many steps as on every other rank.

    Attributes:
        error: why a row could not be used, once that happened while the dataset was read.
        steps: the number of steps in an epoch.
        total_rows: the number of rows on all ranks.
        share: this rank's fraction of them.
    """

    def __init__(self, part: str, spec: TrainSpec, context: RankContext, rows: SpooledRows | ShardRows) -> None:
        self.error: InvalidInputError | None = None
        counts = [task["rows"][part] for task in context.tasks]
        self.spec, self.communicator, self.partition = spec, context.communicator, context.partition
        self.rows = rows.reshaped(spec.columns)
        self.total_rows = sum(counts)
        self.share = counts[context.rank] / max(self.total_rows, 1)
        self.steps = -(-max(counts) // spec.batch_size)
        self.shuffled = spec.shuffle and part == "train"
        self.padding: dict[str, np.ndarray] = {}
        if self.steps and 0 in counts:  # a rank without rows pads its steps with a row of another rank
            source_rank = int(np.argmax(counts))
            row = self.rows.first() if context.rank == source_rank else None
            self.padding = context.communicator.broadcast(row, source_rank)

    def dataset(self) -> Any:
        """A ``tf.data.Dataset`` of the steps of one epoch, in the structure that ``ExactStep`` expects."""
        signature = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None, *array.shape[1:]] if array.ndim else [], array.dtype), self._example()
        )
        dataset = tf.data.Dataset.from_generator(self._steps, output_signature=signature)
        options = tf.data.Options()
        options.autotune.enabled = False  # there is nothing to tune, and its thread can take a minute to end
        return dataset.apply(tf.data.experimental.assert_cardinality(self.steps)).prefetch(4).with_options(options)

    def begin(self, epoch: int, skipped: int = 0) -> None:
        """Prepare the next pass over the dataset: the order of this rank's rows, and each step's weight on all ranks.

        Args:
            epoch: the epoch, counted from 0.
            skipped: the number of steps at its start that are delivered without rows.
        """
        self.skipped = skipped
        self.ordered = self.rows.ordered(self.shuffled, (self.spec.seed % 2**63, epoch, self.partition))
        weights = step_weights(self.ordered.weights(), self.spec.batch_size, self.steps)
        self.totals = self.communicator.sum(weights)

    def _steps(self) -> Iterator[Any]:
        batches = self.ordered.batches(self.spec.batch_size, self.steps, self.padding)
        try:
            for step, (batch, total) in enumerate(zip(batches, self.totals, strict=True)):
                yield self._example() if step < self.skipped else self._data(batch, float(total))
        except InvalidInputError as error:
            self.error = error  # tf.data keeps only its message
            raise

    def _data(self, batch: Batch, total: float) -> Any:
        return batch_data(self.spec, batch.arrays, batch.num_valid, self.communicator.size, total)

    def _example(self) -> Any:
        """A step without rows, which has the structure, shapes and dtypes of every step."""
        empty = {field: np.empty((0, *rows.shape[1:]), rows.dtype) for field, rows in self.rows.arrays.items()}
        return self._data(Batch(empty, 0), 0.0)


def open_rows(
    part: str, start: dict[str, Any], spec: TrainSpec, tasks: list[dict[str, Any]]
) -> SpooledRows | ShardRows:
    """This rank's rows of one part: from its task's spool, or from a shard of Parquet files."""
    if start["shards"] is None:
        return spooled_rows(part, tasks, start["rank_info"]["rank"], start["spool"][part])
    return ShardRows(part, spec, Shards(**start["shards"]), start["partition"])


def spooled_rows(part: str, tasks: list[dict[str, Any]], rank: int, descriptors: dict[str, int]) -> SpooledRows:
    """This rank's spooled rows of one part; where it has none, another rank's shapes and dtypes describe them."""
    like = next((task for task in (tasks[rank], *tasks) if task["shapes"]), tasks[rank])
    return SpooledRows(descriptors, tasks[rank]["rows"][part], like["shapes"], like["dtypes"])
