"""Prepares a DataFrame for a fit: its columns, its partitions, the size of its Arrow batches (driver side)."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cos_ml import spark_internals
from cos_ml.data.expressions import expression
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.conf import RuntimeConfig

__all__ = ["check_not_streaming", "planned_at_once", "repartition_to_ranks", "select_columns", "small_batches"]

SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
ADAPTIVE = "spark.sql.adaptive.enabled"
DEFAULT_ROWS = 10_000  # Spark's default for the setting
BATCH_BYTES = 2 << 20
MIN_ROWS = 16
UNKNOWN_SIZE = 256  # assumed numbers in a row of unknown size
_requests: weakref.WeakKeyDictionary[SparkSession, _Requests] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
logger = logging.getLogger(__name__)


def select_columns(df: DataFrame, spec: TrainSpec) -> DataFrame:
    """Select the columns that ranks read, under their fixed names and as arrays of the network's number types."""
    return df.select(*(expression(df, column).alias(column.field) for column in spec.stored))


def repartition_to_ranks(df: DataFrame, partitions: int) -> DataFrame:
    """``df`` with one partition per rank; rows move only if its number of partitions differs."""
    stay = spark_internals.fits_barrier(df, partitions)
    logger.info("Rows %s", "stay where they are" if stay else "are repartitioned to the ranks")
    return df if stay else df.repartition(partitions)


@dataclass
class _Requests:
    """The batch sizes that running fits of one session have requested, and the user's setting before the first."""

    rows: list[int] = field(default_factory=list)
    before: str | None = None

    def apply(self, conf: RuntimeConfig) -> None:
        """Set the smallest requested size, or restore the user's setting if nothing is requested."""
        limit = int(self.before or DEFAULT_ROWS)
        if self.rows:
            conf.set(SETTING, min(*self.rows, limit if limit > 0 else sys.maxsize))
        elif self.before is None:
            conf.unset(SETTING)
        else:
            conf.set(SETTING, self.before)


@contextlib.contextmanager
def small_batches(spark: SparkSession, spec: TrainSpec) -> Iterator[None]:
    """Plan the jobs that start in this ``with`` block with Arrow batches of about 2 MB.

    Spark's default of 10,000 rows is 31 MB of 784 numbers each, and reaches Python at half the speed: Java and Python
    take turns, and neither finds its batch in the processor's cache. The setting is the session's: concurrent fits
    share it, and the last one restores it.
    """
    row = sum(4 * (UNKNOWN_SIZE if column.size is None else column.size) for column in spec.columns)
    rows = max(MIN_ROWS, BATCH_BYTES // row)
    with _lock:
        requests = _requests.setdefault(spark, _Requests())
        if not requests.rows:
            requests.before = spark.conf.get(SETTING, None)
        requests.rows.append(rows)
        requests.apply(spark.conf)
    try:
        yield
    finally:
        with _lock:
            requests.rows.remove(rows)
            requests.apply(spark.conf)


@contextlib.contextmanager
def planned_at_once(df: DataFrame) -> Iterator[None]:
    """Turn off adaptive execution for what is planned in this ``with`` block, unless ``df`` itself has shuffles.

    Adaptive execution runs a job for each shuffle and then plans the rest again, which takes longer than a small fit
    trains. Only shuffles of the user's own query gain by it. The setting is the session's.
    """
    conf = df.sparkSession.conf
    if conf.get(ADAPTIVE, "true") != "true" or spark_internals.has_exchange(df):
        yield
        return
    with _lock:  # otherwise a second thread would find, and restore, what this one has set
        before = conf.get(ADAPTIVE, None)
        conf.set(ADAPTIVE, "false")
        try:
            yield
        finally:
            conf.unset(ADAPTIVE) if before is None else conf.set(ADAPTIVE, before)


def check_not_streaming(df: DataFrame, method: str = "fit") -> None:
    """Raises InvalidInputError for a streaming DataFrame, which has no end."""
    if df.isStreaming:
        raise InvalidInputError(
            f"{method}() needs a batch DataFrame, but this one is streaming. Store its rows first. (transform() takes "
            "streams.)"
        )
