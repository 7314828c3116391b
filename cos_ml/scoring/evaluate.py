"""Loss and metrics over all rows of a DataFrame, on the cluster (driver and scoring task side).

Metrics keep sums and counts. Each partition sums up its own; the driver adds those, and computes the results.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from cos_ml import spark_internals
from cos_ml.data import frames, spool
from cos_ml.network import forward
from cos_ml.network.archive import Network
from cos_ml.scoring import predict
from cos_ml.spec import TrainSpec

__all__ = ["evaluate"]


def evaluate(dataset: DataFrame, network: Network, spec: TrainSpec) -> dict[str, float]:
    """The loss and the metrics of ``spec.compile`` over all rows.

    Args:
        dataset: with the user's columns.
        network: what to evaluate.
        spec: columns, what to compile with, batch size, and what to do with bad rows.

    Returns:
        dict[str, float]: by name; NaN where there are no rows.

    Raises:
        InvalidInputError: there is no such column, or it is of no use. A bad row ends the Spark job instead.
    """
    spark_internals.check_size(dataset.sparkSession, [network.archive])
    narrow = frames.narrow(dataset, spec)
    summed = narrow.mapInArrow(partial(_sum_up, network.archive, spec.to_json()), "state string")
    states = [json.loads(row["state"]) for row in summed.collect()]
    if not states:
        return {"loss": float("nan")}
    evaluator = _Evaluator(network.archive, spec.to_json())
    evaluator.build(states[0]["like"])
    evaluator.state = [np.sum(values, axis=0) for values in zip(*(state["values"] for state in states), strict=True)]
    return {name: float(value) for name, value in evaluator.trainer.get_metrics_result().items()}


def _sum_up(archive: bytes, spec: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One partition: the metrics' sums and counts over its rows, as one row of JSON; none for no rows."""
    predict.limit_devices()
    evaluator = _evaluator(archive, spec)
    evaluator.reset()
    seen = 0
    like = None
    for batch in batches:
        arrays, kept, _ = spool.usable_rows(batch, evaluator.spec, seen)
        seen += batch.num_rows
        if not kept.any():
            continue
        arrays = {field: rows[kept] for field, rows in arrays.items()}
        like = like or {field: [rows.shape[1:], rows.dtype.str] for field, rows in arrays.items()}
        evaluator.add(arrays)
    if like is not None:
        state = json.dumps({"like": like, "values": [value.tolist() for value in evaluator.state]})
        yield pa.RecordBatch.from_arrays([pa.array([state])], ["state"])


@functools.lru_cache(maxsize=2)
def _evaluator(archive: bytes, spec: str) -> _Evaluator:
    return _Evaluator(archive, spec)  # once per Python worker


class _Evaluator:
    """A network compiled as for training, whose test step adds rows up."""

    def __init__(self, archive: bytes, spec: str) -> None:
        from cos_ml.rank.collectives import Ranks
        from cos_ml.rank.trainer import make_trainer

        self.spec = TrainSpec.from_json(spec)
        self.trainer = make_trainer(archive.load(archive, self.spec.modules), self.spec, Ranks(1))
        self.step = forward.traced(self.trainer.test_step)

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Count these rows."""
        for start in range(0, len(next(iter(arrays.values()))), self.spec.batch_size):
            self._step(
                {field: rows[start : start + self.spec.batch_size] for field, rows in arrays.items()}, counted=True
            )

    def build(self, like: dict[str, Any]) -> None:
        """Make the metrics ready for a state, without any row."""
        self._step({field: np.zeros((1, *shape), dtype) if dtype != "|O" else np.full((1, *shape), b"", object)
                    for field, (shape, dtype) in like.items()}, counted=False)  # fmt: skip

    def reset(self) -> None:
        """Forget all rows."""
        self.trainer.reset_metrics()

    @property
    def state(self) -> list[np.ndarray]:
        """The metrics' variables."""
        return [variable.numpy() for metric in self.trainer.metrics for variable in metric.variables]

    @state.setter
    def state(self, values: list[np.ndarray]) -> None:
        variables = [variable for metric in self.trainer.metrics for variable in metric.variables]
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _step(self, arrays: dict[str, np.ndarray], counted: bool) -> None:
        from cos_ml.rank.trainer import step_data

        self.step(step_data(self.spec, arrays, len(next(iter(arrays.values()))) if counted else 0))
