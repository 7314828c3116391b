"""Work on Spark that ends with the call that began it, whatever ends that call (driver side).

An exception of a signal handler, such as that of a time limit, would meet Py4J within a call, which makes another one
of it. So the work has a thread of its own, and the caller waits in plain Python, where the exception stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pyspark import InheritableThread
from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import ClusterError

__all__ = ["Cancelled", "Tag", "cancellable", "check_not_cancelled", "job_tag"]

T = TypeVar("T")

CLASSIC_TAGS = ("addJobTag", "removeJobTag", "cancelJobsWithTag")  # methods of SparkContext
CONNECT_TAGS = ("addTag", "removeTag", "interruptTag")  # methods of a session of Spark Connect
RECHECK = 0.5  # seconds; Python raises an exception from another thread only between two waits
PERIOD = 3.0  # seconds between two cancellations: short jobs that clean up have time for it
LONGEST = 30.0  # seconds that the end of cancelled work may take

logger = logging.getLogger(__name__)
_own = threading.local()  # "cancelled", an event, in a thread that does such work


class Cancelled(Exception):
    """Nobody waits for this work any more."""


@dataclass(frozen=True)
class Tag:
    """The tag of the jobs of one ``with`` block.

    Attributes:
        name: the tag.
        cancel: cancels the jobs.
    """

    name: str
    cancel: Callable[[], Any]


@contextlib.contextmanager
def job_tag(spark: SparkSession) -> Iterator[Tag]:
    """Tag the jobs that this thread starts in this ``with`` block."""
    name, connect = f"cos_ml-{uuid.uuid4().hex}", spark_internals.is_connect(spark)
    owner: Any = spark if connect else spark.sparkContext
    add, remove, cancel = (getattr(owner, method) for method in (CONNECT_TAGS if connect else CLASSIC_TAGS))
    add(name)
    try:
        yield Tag(name, partial(cancel, name))
    finally:
        with contextlib.suppress(Exception):  # the session has ended
            remove(name)


def cancellable(spark: SparkSession, work: Callable[[], T]) -> T:
    """Return what ``work`` returns, in a thread that has this one's job group, tags and local properties.

    What this thread raises meanwhile, as for Ctrl-C or in any other signal handler, cancels the jobs, waits until they
    and the work have ended, for 30 s at most, and is raised then. A second exception ends that wait.

    Raises:
        ClusterError: the session has ended before the work.
    """
    result: Future[T] = Future()
    ended, cancelled, tags = threading.Event(), threading.Event(), []

    def run() -> None:
        _own.cancelled = cancelled
        try:
            with job_tag(spark) as tag:
                tags.append(tag)
                check_not_cancelled()
                result.set_result(work())
        except BaseException as error:
            result.set_exception(error)
        finally:
            ended.set()

    try:
        InheritableThread(target=run, session=spark, daemon=True).start()
        while not ended.wait(RECHECK):
            pass
    except BaseException:
        cancelled.set()
        # This thread may be in the middle of a call to the JVM, on a connection that it has given up.
        canceller = threading.Thread(target=_cancel, args=[spark, tags, ended], daemon=True)
        canceller.start()
        canceller.join(LONGEST + RECHECK)
        if canceller.is_alive() or not ended.is_set():
            logger.warning("The jobs of a call that was interrupted have not ended after %.0f s.", LONGEST)
        raise
    try:
        return result.result()
    except Exception:
        if spark_internals.has_ended(spark):
            raise ClusterError(
                "The Spark session ended while this call ran: SparkContext.stop() was called, or the driver's JVM was "
                "killed. Make a new session, and call again."
            ) from None
        raise


def check_not_cancelled() -> None:
    """Raises Cancelled if nobody waits any more for the work that this thread does."""
    cancelled = getattr(_own, "cancelled", None)
    if cancelled is not None and cancelled.is_set():
        raise Cancelled("The call that began this work has been interrupted.")


def _cancel(spark: SparkSession, tags: list[Tag], ended: threading.Event) -> None:
    """Cancel jobs, also those that start late, until the work has ended, and wait for their tasks."""
    until = time.monotonic() + LONGEST
    while not ended.is_set() and time.monotonic() < until:
        for tag in tags:
            with contextlib.suppress(Exception):  # the session has ended, and its jobs with it
                tag.cancel()
        ended.wait(PERIOD)
    while time.monotonic() < until and any(spark_internals.running_tasks(spark, tag.name) for tag in tags):
        time.sleep(RECHECK / 5)
