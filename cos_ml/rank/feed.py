"""A rank's rows as a dataset of steps (rank side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from cos_ml.data.parquet import Shards
from cos_ml.data.spool import Batch, Rows, step_weights
from cos_ml.errors import InvalidInputError
from cos_ml.network.exact_step import batch_data
from cos_ml.rank.context import RankContext
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import TrainSpec

__all__ = ["Feed", "open_rows", "stored_rows"]


class Feed:
    """This rank's rows of one part as a dataset of steps, as many as every other rank takes.

    Attributes:
        steps: in an epoch.
        total_rows: on all ranks.
        share: this rank's part of them.
    """

    def __init__(self, part: str, spec: TrainSpec, context: RankContext, rows: Rows | ShardRows) -> None:
        self.problem: InvalidInputError | None = None
        counts = [task["rows"][part] for task in context.tasks]
        self.spec, self.communicator, self.partition = spec, context.communicator, context.partition
        self.rows = rows.reshaped(spec.columns)
        self.total_rows = sum(counts)
        self.share = counts[context.rank] / max(self.total_rows, 1)
        self.steps = -(-max(counts) // spec.batch_size)
        self.shuffled = spec.shuffle and part == "train"
        self.padding: dict[str, np.ndarray] = {}
        if self.steps and 0 in counts:  # a rank without rows takes part with one of another's
            source_rank = int(np.argmax(counts))
            self.padding = context.communicator.broadcast(
                self.rows.first() if context.rank == source_rank else None, source_rank
            )

    def dataset(self) -> Any:
        """A ``tf.data.Dataset`` of the steps of one epoch, in the form that ``ExactStep`` takes."""
        signature = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None, *array.shape[1:]] if array.ndim else [], array.dtype), self._example()
        )
        dataset = tf.data.Dataset.from_generator(self._steps, output_signature=signature)
        options = tf.data.Options()
        options.autotune.enabled = False  # there is nothing to tune, and the end of its thread can be late by a minute
        return dataset.apply(tf.data.experimental.assert_cardinality(self.steps)).prefetch(4).with_options(options)

    def begin(self, epoch: int, passed: int = 0) -> None:
        """Agree with the other ranks on the next pass over the dataset: its order here, each step's weight on all.

        Args:
            epoch: counted from 0.
            passed: steps at its begin that are there, and empty.
        """
        self.passed = passed
        self.ordered = self.rows.ordered(self.shuffled, (self.spec.seed % 2**63, epoch, self.partition))
        weights = step_weights(self.ordered.weights(), self.spec.batch_size, self.steps)
        self.totals = self.communicator.sum(weights)

    def _steps(self) -> Iterator[Any]:
        batches = self.ordered.batches(self.spec.batch_size, self.steps, self.padding)
        try:
            for step, (batch, total) in enumerate(zip(batches, self.totals, strict=True)):
                yield self._example() if step < self.passed else self._data(batch, float(total))
        except InvalidInputError as error:
            self.problem = error  # tf.data would make a text of it
            raise

    def _data(self, batch: Batch, total: float) -> Any:
        return batch_data(self.spec, batch.arrays, batch.real, self.communicator.size, total)

    def _example(self) -> Any:
        """One step of no rows: what shapes and dtypes a step has."""
        empty = {field: np.empty((0, *rows.shape[1:]), rows.dtype) for field, rows in self.rows.arrays.items()}
        return self._data(Batch(empty, 0), 0.0)


def open_rows(part: str, start: dict[str, Any], spec: TrainSpec, tasks: list[dict[str, Any]]) -> Rows | ShardRows:
    """This rank's rows of one part: its task's spool, or a shard that it reads by itself."""
    if start["shards"] is None:
        return stored_rows(part, tasks, start["rank_info"]["rank"], start["spool"][part])
    return ShardRows(part, spec, Shards.from_plain(start["shards"]), start["partition"])


def stored_rows(part: str, tasks: list[dict[str, Any]], rank: int, descriptors: dict[str, int]) -> Rows:
    """This rank's rows of one part; a rank that has seen none looks like another's."""
    like = tasks[rank] if tasks[rank]["shapes"] else next((task for task in tasks if task["shapes"]), tasks[rank])
    return Rows(descriptors, tasks[rank]["rows"][part], like["shapes"], like["dtypes"])
