"""The attempts of one barrier job: Spark starts the stage again when a rank or an executor is lost (driver side)."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import connect
from cos_ml.errors import from_spark

__all__ = ["failures", "tagged"]

LIMIT = "spark.stage.maxConsecutiveAttempts"
LISTENER_TIME = 10_000  # milliseconds for Spark to write down what has happened
SHOWN = 2000  # characters of one attempt's cause


@contextlib.contextmanager
def tagged(spark: SparkSession) -> Iterator[str]:
    """Tag the jobs that begin in this ``with`` block; Ctrl-C, or whatever else interrupts it, ends them."""
    tag = f"cos_ml-{uuid.uuid4().hex}"
    session: Any = spark
    classic = not connect.is_connect(spark)
    if classic:
        add, remove, cancel = (getattr(spark.sparkContext, name) for name in TAGS)
    else:
        add, remove, cancel = session.addTag, session.removeTag, session.interruptTag
    add(tag)
    try:
        yield tag
    except BaseException as error:
        if not isinstance(error, Exception):
            cancel(tag)
        raise
    finally:
        remove(tag)


TAGS = ("addJobTag", "removeJobTag", "cancelJobsWithTag")


def failures(spark: SparkSession, tag: str) -> list[str]:
    """Why attempts at the tagged jobs failed, in their order; Spark Connect does not tell.

    Whether the last one was made good by another attempt is for the caller to know.
    """
    if connect.is_connect(spark):
        return []
    context = spark.sparkContext._jsc.sc()
    with contextlib.suppress(Exception):  # a bus that is late tells less; that is no reason to fail
        context.listenerBus().waitUntilEmpty(LISTENER_TIME)
    store, jvm = context.statusStore(), spark.sparkContext._jvm
    assert jvm is not None
    quantiles = spark.sparkContext._gateway.new_array(jvm.double, 0)  # type: ignore[union-attr]
    found: dict[tuple[int, int], str] = {}
    for job in context.statusTracker().getJobIdsForTag(tag):
        stages = store.job(job).stageIds()
        for stage in (stages.apply(at) for at in range(stages.size())):
            attempts = store.stageData(stage, False, jvm.java.util.ArrayList(), False, quantiles)
            for attempt in (attempts.apply(at) for at in range(attempts.size())):
                reason = attempt.failureReason()
                if reason.isDefined():
                    found[stage, attempt.attemptId()] = _cause(reason.get())
    return [found[key] for key in sorted(found)]


def _cause(reason: str) -> str:
    """A stage's failure as a person reads it: the rank's own error, or what Spark says of a lost executor."""
    known = from_spark(Exception(reason))
    if known is not None:
        return str(known)[:SHOWN]
    text = re.sub(r"^Stage failed because barrier task \S+ finished unsuccessfully\.\s*", "", reason.strip())
    return text.split("\n\tat ")[0].strip()[:SHOWN]
