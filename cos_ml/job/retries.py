"""The attempts of one barrier job: Spark retries the stage when a rank or an executor is lost (driver side)."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.cancellation import Tag
from cos_ml.errors import RankError, from_spark
from cos_ml.job import reach
from cos_ml.job.messages import PARTIAL_RETRY

__all__ = ["LIMIT", "cause", "failures", "first_error", "hosts_lost", "incomplete", "max_attempts", "watch_hosts"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
DEFAULT_LIMIT = 4  # Spark's
MAX_CHARACTERS = 2000  # of the cause of one attempt
RECHECK = 2.0  # seconds between two looks at the causes so far
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
    known.sort(key=lambda text: not reach.lost_by(text))  # which says more than what follows from it
    return (known or [re.split(r"\n\s*at ", errors[0])[0].strip()])[0][:MAX_CHARACTERS]


def incomplete(cause: str) -> bool:
    """Whether the attempt that failed for this ``cause`` never had all its tasks, through no fault of a rank."""
    return PARTIAL_RETRY in cause or ENDED_WORKER in cause


def hosts_lost(spark: SparkSession, causes: Sequence[str], ranks: int) -> str:
    """The last of these causes of which hosts lost each other, if another attempt would lose them, too; or "".

    It would not on others: an attempt is left where enough of them have executors, and one alone, as Spark may choose
    the same hosts.
    """
    lost = [cause for cause in causes if reach.lost_by(cause)]
    if not lost or (len(lost) == 1 and spark_internals.slots_elsewhere(spark, reach.lost_by(lost[0])) >= ranks):
        return ""
    return lost[-1]


@contextlib.contextmanager
def watch_hosts(spark: SparkSession, tag: Tag, ranks: int) -> Iterator[None]:
    """Cancel the jobs of a tag if, in this ``with`` block, an attempt fails as ``hosts_lost`` says.

    Spark would start another on the same hosts, or wait without a limit for one that is cut off from it as well.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(RECHECK):
            if hosts_lost(spark, failures(spark, tag.name), ranks):
                tag.cancel()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if ranks > 1 and not spark_internals.is_connect(spark):  # which does not tell the causes
        watcher.start()
    try:
        yield
    finally:
        ended.set()
