"""Loss and metrics over all rows of a DataFrame, on the cluster (driver and scoring task side).

Keras's metrics keep sums and counts. Each partition computes its own; the driver adds them up and computes the results.
All rows count as one step: a mean over rows or over valid elements does not depend on how Spark divides them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from cos_ml import broadcasts, python_worker
from cos_ml.cancellation import cancellable
from cos_ml.data import frames, spool
from cos_ml.data.columns import Column, inconsistent_shapes
from cos_ml.data.ragged import cut
from cos_ml.errors import from_spark
from cos_ml.network import forward
from cos_ml.network.archive import Network, load_model
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.scoring import predict
from cos_ml.scoring.ahead import Ahead
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from cos_ml.broadcasts import Archive

__all__ = ["evaluate"]

logger = logging.getLogger("cos_ml")


@dataclass(frozen=True)
class Totals:
    """What is known of all rows before they are evaluated; nothing at first.

    Attributes:
        rows: their number.
        weight: the sum of their weights.
        counts: the divisor of each loss that divides by something else than rows, such as the valid elements of a mask.
    """

    rows: float = 1.0
    weight: float = 1.0
    counts: list[float] = field(default_factory=list)


def evaluate(dataset: DataFrame, network: Network, spec: TrainSpec) -> dict[str, Any]:
    """The loss and the metrics of ``spec.compile`` over all rows.

    Rows with weights, and losses with masks, are read twice: their sums come first.

    Args:
        dataset: a DataFrame with the columns of ``spec``.
        network: the network to evaluate.
        spec: the columns, the arguments of ``compile``, the batch size, and how to handle invalid rows.

    Returns:
        dict[str, Any]: the values by name, each a number, or a list for a metric with one per class; NaN without rows.

    Raises:
        InvalidInputError: a column is missing or has an unusable type, or a row is invalid.
    """
    selected = frames.select_columns(dataset, spec)
    parts, totals = _parts(selected, network, spec, Totals()), Totals()
    if not parts:
        return _without_rows(selected, network, spec)
    _check_shapes(parts, spec)
    found = Totals(
        rows=sum(part["rows"] for part in parts),
        weight=sum(part["weight"] for part in parts),
        counts=np.sum([part["counts"] for part in parts], axis=0).tolist(),
    )
    if found.counts or (spec.weight and found.weight != found.rows):
        parts, totals = _parts(selected, network, spec, found), found
    evaluator = _Evaluator(_Source(network.archive, network.digest), spec.dumps())
    evaluator.build(parts[0]["columns"], totals)
    sums = [np.sum(values, axis=0) for values in zip(*(part["values"] for part in parts), strict=True)]
    for variable, value in zip(evaluator.network.metrics_variables, sums, strict=True):
        variable.assign(value)
    results = evaluator.network.get_metrics_result()
    if set(parts[0]["logs"]) != set(results):  # a test_step with logs of its own: what they are on average
        results = {name: sum(part["logs"][name] for part in parts) / found.rows for name in parts[0]["logs"]}
    return {name: np.asarray(value).astype(float).tolist() for name, value in results.items()}


def _without_rows(selected: DataFrame, network: Network, spec: TrainSpec) -> dict[str, Any]:
    """NaN for each value that rows would have; for the loss alone where only rows tell what there is."""
    results: dict[str, Any] = {"loss": 0.0}
    try:
        schema = selected.limit(0).toArrow().schema
        arrays, _ = spool.usable_rows(pa.RecordBatch.from_pylist([], schema), spec, 0)
        evaluator = _Evaluator(_Source(network.archive, network.digest), spec.dumps())
        columns = {name: [rows.shape[1:], rows.dtype.str] for name, rows in arrays.items()}
        logs, results = evaluator.build(columns, Totals()), evaluator.network.get_metrics_result()
        results = logs if set(logs) != set(results) else results
    except Exception as error:  # of a network that does not compute a row of zeros
        logger.info("no metrics are known without rows: %s", error)
    return {name: np.full_like(np.asarray(value, float), np.nan).tolist() for name, value in results.items()}


def _check_shapes(parts: list[dict[str, Any]], spec: TrainSpec) -> None:
    """Raises InvalidInputError where rows of partitions have different ones of the shapes that a column allows."""
    for column in spec.columns:
        shapes = sorted({tuple(part["columns"][column.field][0]) for part in parts}, key=str)
        if len(shapes) > 1:
            raise inconsistent_shapes(column, shapes[1], shapes[0])


def _parts(selected: DataFrame, network: Network, spec: TrainSpec, totals: Totals) -> list[dict[str, Any]]:
    """What ``_sum_up`` returns for each partition that has rows."""
    source = _Source(broadcasts.shared(selected.sparkSession, network), network.digest)
    summed = partial(_sum_up, source, spec.dumps(), totals)
    try:
        sums = cancellable(selected.sparkSession, selected.mapInArrow(summed, "sums string").collect)
    except Exception as error:
        raise from_spark(error) or error from None
    return [json.loads(row["sums"]) for row in sums]


@dataclass(frozen=True)
class _Source:
    """Where a task finds a network, which its digest identifies."""

    archive: Archive = field(compare=False)
    digest: str


def _sum_up(source: _Source, spec: str, totals: Totals, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The metrics' sums and counts over the rows of one partition, as one row of JSON; no row if it has no rows."""
    python_worker.spare_archives()
    predict.limit_devices()
    evaluator = _cached_evaluator(source, spec)
    evaluator.begin(totals)
    columns, fresh = None, not evaluator.step.known
    with closing(Ahead(_usable(evaluator.spec, batches))) as rows:
        rows.start()
        while (arrays := rows.result()) is not None:
            rows.start()
            columns = columns or {field: [one.shape[1:], one.dtype.str] for field, one in arrays.items()}
            evaluator.add(arrays)
            if fresh:
                python_worker.freeze()
                fresh = False
    if columns is not None:
        yield pa.RecordBatch.from_pydict({"sums": [json.dumps({"columns": columns, **evaluator.sums()})]})


def _usable(spec: TrainSpec, batches: Iterable[pa.RecordBatch]) -> Generator[dict[str, Any], None, None]:
    """The arrays by field of the rows to use, for each batch that has any."""
    first_row, settled = 0, dict[str, Column]()
    for batch in batches:
        arrays, kept = spool.usable_rows(batch, spec, first_row, settled)
        first_row += batch.num_rows
        if kept.any():
            yield {field: rows[kept] for field, rows in arrays.items()}


class _Evaluator:
    """A compiled network whose test step adds rows to its metrics."""

    def __init__(self, source: _Source, spec: str) -> None:
        from cos_ml.network.batch import compile_network, pack_batch  # imports TensorFlow
        from cos_ml.network.step import PartialStep, install_hooks

        install_hooks()
        self.spec = TrainSpec.loads(spec)
        self.network = load_model(broadcasts.read(source.archive), self.spec.modules)
        compile_network(self.network, self.spec)
        test_step = getattr(self.network.test_step, "python_function", self.network.test_step)

        tf = import_tensorflow()

        def step(columns: Any, rows: Any, total: Any, counts: Any) -> Any:
            with PartialStep(rows / total, counts).active() as step:
                logs = test_step(pack_batch(self.network, self.spec, columns))
            return {name: tf.reduce_mean(tf.cast(value, tf.float64)) for name, value in logs.items()}, step.found

        self.step = forward.traced(step)

    def begin(self, totals: Totals) -> None:
        """Begin a partition."""
        self.network.reset_metrics()
        forward.reseed(forward.seed_generators(self.network), (self.spec.seed, predict.partition()))
        self.totals = totals
        self.rows, self.weight = 0, 0.0
        self.counts: Any = 0.0
        self.logs: dict[str, float] = {}

    def add(self, arrays: dict[str, Any]) -> None:
        """Add these rows to the metrics."""
        size = self.spec.batch_size
        for start in range(0, len(next(iter(arrays.values()))), size):
            batch = cut(arrays, slice(start, start + size))
            count = len(next(iter(batch.values())))
            if "w" in batch:
                self.weight += float(batch["w"].sum(dtype=np.float64))
                batch["w"] = (batch["w"] * (self.totals.rows / (self.totals.weight or 1))).astype(batch["w"].dtype)
            else:
                self.weight += count
            logs, counts = self._step(batch, count)
            self.rows += count
            self.counts = self.counts + np.array([one.numpy() for one in counts])
            for name, value in logs.items():
                self.logs[name] = self.logs.get(name, 0.0) + count * float(value)

    def _step(self, batch: dict[str, np.ndarray], count: int) -> Any:
        columns = tuple(batch[column.field] for column in self.spec.columns)
        return self.step(columns, np.float64(count), np.float64(self.totals.rows), np.array(self.totals.counts))

    def sums(self) -> dict[str, Any]:
        """The state after the rows of a partition, as plain values."""
        values = [variable.numpy().tolist() for variable in self.network.metrics_variables]
        counts = np.atleast_1d(self.counts).tolist()
        return {"values": values, "rows": self.rows, "weight": self.weight, "counts": counts, "logs": self.logs}

    def build(self, columns: dict[str, Any], totals: Totals) -> dict[str, Any]:
        """Create the metrics' variables, and return the logs of a row; ``columns`` is field -> [its shape, dtype]."""
        self.begin(totals)
        arrays = {
            field: np.full((1, *(side or 1 for side in shape)), b"" if dtype == "|O" else 0, dtype)
            for field, (shape, dtype) in columns.items()
        }
        return dict(self._step(arrays, 1)[0])


_cached_evaluator = lru_cache(maxsize=2)(_Evaluator)  # kept by a Python worker for its next partition
