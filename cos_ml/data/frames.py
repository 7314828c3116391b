"""The columns and partitions that a fit needs, as a DataFrame (driver side)."""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cos_ml import spark_internals
from cos_ml.data.columns import expression
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["check_not_streaming", "repartition_to_ranks", "select_columns", "small_batches"]

BATCH_BYTES = 2 << 20
LEAST_BATCH = 16  # rows
DEFAULT_BATCH = 10_000  # rows, where Spark's setting is not set
OPEN_SIZE = 256  # numbers in a row of no known size
_batches: weakref.WeakKeyDictionary[SparkSession, _Batches] = weakref.WeakKeyDictionary()
_batches_lock = threading.Lock()


def select_columns(df: DataFrame, spec: TrainSpec) -> DataFrame:
    """Only the columns that ranks read, under their fixed names and as arrays of the network's number types."""
    return df.select(*(expression(df.schema, column).alias(column.field) for column in spec.stored))


def repartition_to_ranks(df: DataFrame, partitions: int) -> DataFrame:
    """``df`` in as many partitions as there are ranks; its rows move only where it has another number of them."""
    return df if spark_internals.fits_barrier(df, partitions) else df.repartition(partitions)


class _Batches:
    """A session's setting for the size of Arrow batches, lowered for as long as anybody needs it.

    It is one setting for the whole session: fits side by side share it, and the last one puts it back.
    """

    SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"

    def __init__(self, spark: SparkSession) -> None:
        self._conf = spark.conf
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._before: str | None = None

    @contextlib.contextmanager
    def of(self, rows: int) -> Iterator[None]:
        """Plan the jobs that begin in this ``with`` block with batches of at most ``rows`` rows."""
        with self._lock:
            if not self._wanted:
                self._before = self._conf.get(self.SETTING, None)
            self._wanted.append(rows)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(rows)
                self._set()

    def _set(self) -> None:
        users = int(self._before or DEFAULT_BATCH)
        if self._wanted:
            self._conf.set(self.SETTING, min(*self._wanted, users if users > 0 else sys.maxsize))
        elif self._before is None:
            self._conf.unset(self.SETTING)
        else:
            self._conf.set(self.SETTING, self._before)


def small_batches(spark: SparkSession, spec: TrainSpec) -> contextlib.AbstractContextManager[None]:
    """Arrow batches of about 2 MB for the jobs that begin in this ``with`` block.

    Spark's own default of 10,000 rows is 31 MB of 784 numbers each, and gets them to Python at half the speed: Java
    and Python take turns, and neither finds its batch in the processor's cache.
    """
    row = sum(4 * (OPEN_SIZE if column.size is None else column.size) for column in spec.columns)
    with _batches_lock:
        here = _batches.setdefault(spark, _Batches(spark))
    return here.of(max(LEAST_BATCH, BATCH_BYTES // row))


def check_not_streaming(df: DataFrame) -> None:
    """Raises InvalidInputError for a streaming DataFrame: it has no end to train until."""
    if df.isStreaming:
        raise InvalidInputError(
            "fit() takes a batch DataFrame, and this one is streaming. Train on a stored part of the stream."
        )
