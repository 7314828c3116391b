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
from cos_ml.network.archive import Network, load_model
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
    spark_internals.check_message_size(dataset.sparkSession, [network.archive])
    selected = frames.select_columns(dataset, spec)
    summed = selected.mapInArrow(partial(_sum_up, network.archive, spec.dumps()), "state string")
    states = [json.loads(row["state"]) for row in summed.collect()]
    if not states:
        return {"loss": float("nan")}
    evaluator = _Evaluator(network.archive, spec.dumps())
    evaluator.build(states[0]["like"])
    sums = [np.sum(values, axis=0) for values in zip(*(state["values"] for state in states), strict=True)]
    for variable, value in zip(evaluator.variables, sums, strict=True):
        variable.assign(value)
    return {name: float(value) for name, value in evaluator.network.get_metrics_result().items()}


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
        state = json.dumps({"like": like, "values": [variable.numpy().tolist() for variable in evaluator.variables]})
        yield pa.RecordBatch.from_arrays([pa.array([state])], ["state"])


@functools.lru_cache(maxsize=2)
def _evaluator(archive: bytes, spec: str) -> _Evaluator:
    return _Evaluator(archive, spec)  # once per Python worker


class _Evaluator:
    """A compiled network whose test step adds up rows."""

    def __init__(self, archive: bytes, spec: str) -> None:
        from cos_ml.network.exact_step import ExactStep, batch_data, compile_network  # imports TensorFlow

        self.spec, self.batch_data = TrainSpec.loads(spec), batch_data
        self.network = load_model(archive, self.spec.modules)
        compile_network(self.network, ExactStep, self.spec)
        self.step = forward.traced(self.network.test_step)

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Count these rows."""
        size = self.spec.batch_size
        for start in range(0, len(next(iter(arrays.values()))), size):
            batch = {field: rows[start : start + size] for field, rows in arrays.items()}
            self.step(self.batch_data(self.spec, batch, len(next(iter(batch.values())))))

    def build(self, like: dict[str, Any]) -> None:
        """Create the metrics' variables, without any row."""
        arrays = {
            field: np.full((1, *shape), b"", object) if dtype == "|O" else np.zeros((1, *shape), dtype)
            for field, (shape, dtype) in like.items()
        }
        self.step(self.batch_data(self.spec, arrays, 0))

    def reset(self) -> None:
        """Forget all rows."""
        self.network.reset_metrics()

    @property
    def variables(self) -> list[Any]:
        """The metrics' sums and counts."""
        return [variable for metric in self.network.metrics for variable in metric.variables]
