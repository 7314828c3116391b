"""Loss and metrics over all rows of a DataFrame, on the cluster (driver and scoring task side).

Keras's metrics keep sums and counts. Each partition computes its own; the driver adds them up and computes the results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
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
        dataset: a DataFrame with the columns of ``spec``.
        network: the network to evaluate.
        spec: the columns, the arguments of ``compile``, the batch size, and how to handle invalid rows.

    Returns:
        dict[str, float]: the values by name; only a loss of NaN if there are no rows.

    Raises:
        InvalidInputError: a column is missing or has an unusable type. An invalid row makes the Spark job fail instead.
    """
    spark_internals.check_message_size(dataset.sparkSession, [network.archive])
    selected = frames.select_columns(dataset, spec)
    rows = selected.mapInArrow(partial(_sum_up, network.archive, spec.dumps()), "sums string").collect()
    parts = [json.loads(row["sums"]) for row in rows]
    if not parts:
        return {"loss": float("nan")}
    evaluator = _Evaluator(network.archive, spec.dumps())
    evaluator.build(parts[0]["columns"])
    sums = [np.sum(values, axis=0) for values in zip(*(part["values"] for part in parts), strict=True)]
    for variable, value in zip(evaluator.variables, sums, strict=True):
        variable.assign(value)
    return {name: float(value) for name, value in evaluator.network.get_metrics_result().items()}


def _sum_up(archive: bytes, spec: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The metrics' sums and counts over the rows of one partition, as one row of JSON; no row if it has no rows."""
    predict.limit_devices()
    evaluator = _cached_evaluator(archive, spec)
    evaluator.network.reset_metrics()
    first_row = 0
    columns = None
    for batch in batches:
        arrays, kept = spool.usable_rows(batch, evaluator.spec, first_row)
        first_row += batch.num_rows
        if not kept.any():
            continue
        arrays = {field: rows[kept] for field, rows in arrays.items()}
        columns = columns or {field: [rows.shape[1:], rows.dtype.str] for field, rows in arrays.items()}
        evaluator.add(arrays)
    if columns is not None:
        values = [variable.numpy().tolist() for variable in evaluator.variables]
        yield pa.RecordBatch.from_pydict({"sums": [json.dumps({"columns": columns, "values": values})]})


class _Evaluator:
    """A compiled network whose test step adds rows to its metrics."""

    def __init__(self, archive: bytes, spec: str) -> None:
        from cos_ml.network.exact_step import ExactStep, batch_data, compile_network  # imports TensorFlow

        self.spec, self.batch_data = TrainSpec.loads(spec), batch_data
        self.network = load_model(archive, self.spec.modules)
        compile_network(self.network, ExactStep, self.spec)
        self.step = forward.traced(self.network.test_step)

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Add these rows to the metrics."""
        size = self.spec.batch_size
        for start in range(0, len(next(iter(arrays.values()))), size):
            batch = {field: rows[start : start + size] for field, rows in arrays.items()}
            self.step(self.batch_data(self.spec, batch, len(next(iter(batch.values())))))

    def build(self, columns: dict[str, Any]) -> None:
        """Create the metrics' variables without counting a row; ``columns`` is field -> [shape of a row, dtype]."""
        arrays = {
            field: np.full((1, *shape), b"", object) if dtype == "|O" else np.zeros((1, *shape), dtype)
            for field, (shape, dtype) in columns.items()
        }
        self.step(self.batch_data(self.spec, arrays, 0))

    @property
    def variables(self) -> list[Any]:
        """The metrics' sums and counts."""
        return [variable for metric in self.network.metrics for variable in metric.variables]


_cached_evaluator = lru_cache(maxsize=2)(_Evaluator)  # kept by a Python worker for its next partition
