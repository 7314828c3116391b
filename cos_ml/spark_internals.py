"""What is different in a session of Spark Connect (driver side)."""

from __future__ import annotations

from collections.abc import Iterable

from pyspark.sql import SparkSession

from cos_ml.errors import InvalidInputError

__all__ = ["check_size", "is_connect", "remove"]

LONGEST_MESSAGE = 128 << 20  # bytes; PySpark's client sends no more at a time, and has no setting for it


def is_connect(spark: SparkSession) -> bool:
    """Whether ``spark`` talks to its driver over Spark Connect, instead of being in one."""
    return not hasattr(spark, "_jsparkSession")


def check_size(spark: SparkSession, archives: Iterable[bytes]) -> None:
    """Raises InvalidInputError where networks can't reach the tasks: with Connect, they travel in the query itself."""
    size = sum(map(len, archives))
    if is_connect(spark) and size >= LONGEST_MESSAGE:
        raise InvalidInputError(
            f"The network has {size / (1 << 20):,.0f} MiB, and Spark Connect sends a query of "
            f"{LONGEST_MESSAGE >> 20} MiB at most, with the network in it. Use a smaller one, or a session without "
            "Spark Connect: SparkSession.builder.master(...) instead of remote(...)."
        )


def remove(path: str) -> None:
    """Remove what is saved at ``path``, in the active session, which is one of Connect."""
    from pyspark.ml.connect.readwrite import RemoteMLWriter

    RemoteMLWriter.handleOverwrite(path, True)
