"""The attempts of one barrier job: Spark retries the stage when a rank or an executor is lost (driver side)."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import RankError, from_spark
from cos_ml.job.messages import PARTIAL_RETRY

__all__ = ["LIMIT", "cause", "failures", "first_error", "incomplete", "job_tag", "max_attempts"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
DEFAULT_LIMIT = 4  # Spark's
MAX_CHARACTERS = 2000  # of the cause of one attempt
# Of a task that Spark gave a Python worker which it was about to end, with a task of the attempt before.
ENDED_WORKER = "java.nio.channels.ClosedChannelException"
CLASSIC_TAGS = ("addJobTag", "removeJobTag", "cancelJobsWithTag")  # methods of SparkContext
CONNECT_TAGS = ("addTag", "removeTag", "interruptTag")  # methods of a session of Spark Connect


@dataclass
class Tag:
    """The tag of the jobs of one ``with`` block.

    Attributes:
        name: the tag.
        cancel: cancels the jobs.
        interrupted: whether the user has pressed Ctrl-C, for which Py4J raises an error of its own.
    """

    name: str
    cancel: Callable[[], Any]
    interrupted: bool = False


@contextlib.contextmanager
def job_tag(spark: SparkSession) -> Iterator[Tag]:
    """Tag the jobs that start in this ``with`` block; Ctrl-C, or any other interruption, cancels them."""
    name, connect = f"cos_ml-{uuid.uuid4().hex}", spark_internals.is_connect(spark)
    owner: Any = spark if connect else spark.sparkContext
    add, remove, cancel = (getattr(owner, method) for method in (CONNECT_TAGS if connect else CLASSIC_TAGS))
    tag = Tag(name, partial(cancel, name))
    add(tag.name)
    try:
        with _recording_interrupts(tag):
            yield tag
    except BaseException as error:
        if tag.interrupted or not isinstance(error, Exception):
            # In another thread: this one's connection to the JVM is in the middle of the call that was interrupted.
            canceller = threading.Thread(target=tag.cancel)
            canceller.start()
            canceller.join()
        if tag.interrupted and isinstance(error, Exception):
            raise KeyboardInterrupt from None
        raise
    finally:
        with contextlib.suppress(Exception):  # after an interrupt, Spark has forgotten this thread and its tags
            remove(tag.name)


@contextlib.contextmanager
def _recording_interrupts(tag: Tag) -> Iterator[None]:
    """Record Ctrl-C, and handle it as before; only the main thread receives signals."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def record(number: int, frame: FrameType | None) -> Any:
        tag.interrupted = True
        return before(number, frame)

    signal.signal(signal.SIGINT, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
