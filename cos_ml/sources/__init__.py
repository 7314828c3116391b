"""Data formats for ``spark.read`` and ``df.write`` (driver side)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["register"]


def register(spark: SparkSession) -> None:
    """Register the formats "lmdb" and "tfrecord" with ``spark``: ``spark.read.format("lmdb").load(path)``.

    Spark finds them without this call (through ``pyspark_cos_ml``) if the driver's Python has cos_ml when Spark first
    searches for a format. It searches only once.

    Args:
        spark: the session. cos_ml must be installed in the Python of the driver and of the executors.
    """
    from pyspark.errors import AnalysisException

    from cos_ml.sources.lmdb import LmdbDataSource
    from cos_ml.sources.tfrecord import TFRecordDataSource

    for source in (LmdbDataSource, TFRecordDataSource):
        try:
            spark.dataSource.register(source)
        except AnalysisException as error:
            if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":  # Spark has found it already
                raise
