"""The attempts of one barrier job: Spark starts the stage again when a rank or an executor is lost (driver side)."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import from_spark

__all__ = ["failures", "job_tag", "max_attempts"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
DEFAULT_LIMIT = 4  # Spark's
MAX_CHARACTERS = 2000  # of the cause of one attempt


@dataclass
class Tag:
    """What the jobs of one ``with`` block are tagged with.

    Attributes:
        name: the tag.
        interrupted: whether the user has pressed Ctrl-C; py4j makes an error of its own of that.
    """

    name: str
    interrupted: bool = False


@contextlib.contextmanager
def job_tag(spark: SparkSession) -> Iterator[Tag]:
    """Tag the jobs that begin in this ``with`` block; Ctrl-C, or whatever else interrupts it, ends them."""
    tag = Tag(f"cos_ml-{uuid.uuid4().hex}")
    session: Any = spark
    classic = not spark_internals.is_connect(spark)
    if classic:
        add, remove, cancel = (getattr(spark.sparkContext, name) for name in TAGS)
    else:
        add, remove, cancel = session.addTag, session.removeTag, session.interruptTag
    add(tag.name)
    try:
        with _noting_interrupts(tag):
            yield tag
    except BaseException as error:
        if tag.interrupted or not isinstance(error, Exception):
            # From another thread: this one's connection to the JVM is in the middle of the call that was interrupted.
            canceller = threading.Thread(target=cancel, args=(tag.name,))
            canceller.start()
            canceller.join()
        if tag.interrupted and isinstance(error, Exception):
            raise KeyboardInterrupt from None
        raise
    finally:
        with contextlib.suppress(Exception):  # after an interrupt, Spark has forgotten this thread and its tags
            remove(tag.name)


@contextlib.contextmanager
def _noting_interrupts(tag: Tag) -> Iterator[None]:
    """Note Ctrl-C, and do with it what would have been done without; only the main thread hears of it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> Any:
        tag.interrupted = True
        return before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


TAGS = ("addJobTag", "removeJobTag", "cancelJobsWithTag")


def max_attempts(spark: SparkSession) -> int:
    """How many attempts at a job there may be."""
    return int(spark.conf.get(LIMIT, None) or DEFAULT_LIMIT)


def failures(spark: SparkSession, tag: str) -> list[str]:
    """Why attempts at the tagged jobs failed, in order, as far as Spark tells; Spark Connect does not.

    Whether another attempt has made up for the last one is for the caller to know.
    """
    return [_cause(reasons) for reasons in spark_internals.stage_failures(spark, tag)]


def _cause(reasons: list[str]) -> str:
    """The cause of a failed attempt: a rank's own error, or what Spark reports of its first failed task."""
    known = [str(error) for error in map(from_spark, map(Exception, reasons)) if error is not None]
    return (known or [re.split(r"\n\s*at ", reasons[0])[0].strip()])[0][:MAX_CHARACTERS]
