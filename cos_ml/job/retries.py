"""The attempts of one barrier job: Spark retries the stage when a rank or an executor is lost (driver side)."""

from __future__ import annotations

import re

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import RankError, from_spark
from cos_ml.job.messages import PARTIAL_RETRY

__all__ = ["LIMIT", "cause", "failures", "first_error", "incomplete", "max_attempts"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
DEFAULT_LIMIT = 4  # Spark's
MAX_CHARACTERS = 2000  # of the cause of one attempt
# Of a task that Spark gave a Python worker which it was about to end, with a task of the attempt before.
ENDED_WORKER = "java.nio.channels.ClosedChannelException"


def max_attempts(spark: SparkSession) -> int:
    """How many attempts Spark makes at a job: at least one."""
    return max(1, int(spark.conf.get(LIMIT, None) or DEFAULT_LIMIT))


def failures(spark: SparkSession, tag: str) -> list[str]:
    """The causes of failed attempts at the tagged jobs, in order; none where Spark does not report them.

    The caller knows whether another attempt has succeeded after the last one.
    """
    return [cause(errors) for errors in spark_internals.stage_failures(spark, tag)]


def first_error(spark: SparkSession, tag: str) -> Exception | None:
    """The error of the task that failed first, in tagged jobs that were cancelled for it; None for unknown."""
    errors = [error for attempt in spark_internals.stage_failures(spark, tag) for error in attempt[:-1]]
    return (from_spark(Exception("\n\n".join(errors))) or RankError(cause(errors))) if errors else None


def cause(errors: list[str]) -> str:
    """The cause of a failed attempt: a rank's own error, or what Spark reports of its first failed task."""
    known = [str(error) for error in map(from_spark, map(Exception, errors)) if error is not None]
    return (known or [re.split(r"\n\s*at ", errors[0])[0].strip()])[0][:MAX_CHARACTERS]


def incomplete(cause: str) -> bool:
    """Whether the attempt that failed for this ``cause`` never had all its tasks, through no fault of a rank."""
    return PARTIAL_RETRY in cause or ENDED_WORKER in cause
