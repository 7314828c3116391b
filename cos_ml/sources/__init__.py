"""Formats for ``spark.read`` and ``df.write`` (driver side)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["register"]


def register(spark: SparkSession) -> None:
    """Make the format "lmdb" known to ``spark``: ``spark.read.format("lmdb").load(path)``.

    Where the driver's Python has cos_ml when Spark first looks for a format, it finds this one by itself
    (``pyspark_cos_ml``), and there is nothing to do. It looks once.

    Args:
        spark: the session; executors and driver run a Python in which cos_ml is installed.
    """
    from pyspark.errors import AnalysisException

    from cos_ml.sources.lmdb import LmdbDataSource

    try:
        spark.dataSource.register(LmdbDataSource)
    except AnalysisException as error:
        if error.getCondition() != "DATA_SOURCE_ALREADY_EXISTS":  # Spark has found it by itself
            raise
