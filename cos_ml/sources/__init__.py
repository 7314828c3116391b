"""Formats for ``spark.read`` and ``df.write``; ``register`` makes them known to a session (driver side)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["register"]


def register(spark: SparkSession) -> None:
    """Make the format "lmdb" known to ``spark``: ``spark.read.format("lmdb").load(path)``.

    Args:
        spark: the session; executors and driver run a Python in which cos_ml is installed.
    """
    from cos_ml.sources.lmdb import LmdbDataSource

    spark.dataSource.register(LmdbDataSource)
