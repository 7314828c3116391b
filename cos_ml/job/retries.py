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

__all__ = ["failures", "limit", "tagged"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
DEFAULT_LIMIT = 4  # Spark's
LISTENER_TIME = 10_000  # milliseconds for Spark to write down what has happened
MOST_TASKS = 10_000
ECHO = "Stage cancelled"  # what tasks are told that are killed because another one failed
SHOWN = 2000  # characters of one attempt's cause


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
def tagged(spark: SparkSession) -> Iterator[Tag]:
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


def limit(spark: SparkSession) -> int:
    """How many attempts at a job there may be."""
    return int(spark.conf.get(LIMIT, None) or DEFAULT_LIMIT)


def failures(spark: SparkSession, tag: str) -> list[str]:
    """Why attempts at the tagged jobs failed, in their order; Spark Connect does not tell.

    Whether the last one was made good by another attempt is for the caller to know.
    """
    if spark_internals.is_connect(spark):
        return []
    context = spark.sparkContext._jsc.sc()
    with contextlib.suppress(Exception):  # a bus that is late tells less; that is no reason to fail
        context.listenerBus().waitUntilEmpty(LISTENER_TIME)
    store, jvm = context.statusStore(), spark.sparkContext._jvm
    assert jvm is not None
    quantiles = spark.sparkContext._gateway.new_array(jvm.double, 0)  # type: ignore[union-attr]
    found: dict[tuple[int, int], str] = {}
    for job in context.statusTracker().getJobIdsForTag(tag):
        for stage in _all(store.job(job).stageIds()):
            for attempt in _all(store.stageData(stage, False, jvm.java.util.ArrayList(), False, quantiles)):
                if attempt.failureReason().isDefined():
                    tasks = store.taskList(stage, attempt.attemptId(), MOST_TASKS)
                    told = [(one.status(), one.errorMessage()) for one in _all(tasks)]
                    told = [(status, message.get()) for status, message in told if message.isDefined()]
                    reasons = [text for status, text in told if status == "FAILED"]
                    reasons += [text for status, text in told if status == "KILLED" and ECHO not in text]
                    found[stage, attempt.attemptId()] = _cause([*reasons, attempt.failureReason().get()])
    return [found[key] for key in sorted(found)]


def _all(sequence: Any) -> Iterator[Any]:
    """The elements of one of Scala's."""
    return (sequence.apply(at) for at in range(sequence.size()))


def _cause(reasons: list[str]) -> str:
    """What failed an attempt, as a person reads it: a rank's own error, or what Spark says of its first failed task."""
    known = [str(error) for error in map(from_spark, map(Exception, reasons)) if error is not None]
    return (known or [re.split(r"\n\s*at ", reasons[0])[0].strip()])[0][:SHOWN]
