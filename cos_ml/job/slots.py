"""Slots of the cluster: whether they are enough for a fit's ranks, and which fit is next (driver side).

A barrier job needs all its slots at the same time. Fits of one application that run side by side, as CrossValidator's
threads do, therefore acquire slots from one pool, first come, first served.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import ClusterError

__all__ = ["SlotPool", "acquire", "check_cluster"]

EXECUTORS_TIME = 30.0  # seconds for executors to register: an application's first, and replacements of lost ones
POLL = 0.2  # seconds
RECOUNT = 1.0  # seconds

logger = logging.getLogger(__name__)


def check_cluster(spark: SparkSession, ranks: int, profile: Any = None) -> None:
    """Check that the cluster can run ``ranks`` tasks at once; Spark would wait, or fail after a long time.

    Raises:
        ClusterError: it can't run so many with this ResourceProfile (None: Spark's default).
    """
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise ClusterError(
            "spark.dynamicAllocation.enabled is true, but Spark runs no barrier jobs then (SPARK-24942), and ranks are "
            "the tasks of one. Set spark.dynamicAllocation.enabled=false and spark.executor.instances for the "
            "application that trains."
        )
    slots = _count_slots(spark, profile)
    fixed = spark_internals.is_connect(spark) or (spark.conf.get("spark.master", "") or "").startswith("local[")
    deadline = time.monotonic() + (0.0 if fixed else EXECUTORS_TIME)
    while slots is not None and slots < ranks and time.monotonic() < deadline:
        time.sleep(POLL)
        slots = _count_slots(spark, profile)
    if slots is None or slots >= ranks:
        return  # of an unknown number, Spark itself decides
    needs = f"numTrainWorkers={ranks} needs {ranks} tasks at the same time, but this application has"
    if not slots:
        raise ClusterError(
            f"{needs} no executor that could run one. Spark's user interface shows whether any registered. Spark "
            "starts none where no worker has the cores, the memory or the GPUs that an executor requests (GPUs of a "
            "standalone worker: spark.worker.resource.gpu.amount)."
        )
    raise ClusterError(
        f"{needs} slots for {slots}. Set numTrainWorkers to {slots} or less, or start Spark with more: --master "
        f"'local[{ranks}]', or more executors or cores (spark.executor.instances, spark.executor.cores; each task "
        "uses spark.task.cpus of them)."
    )


def _count_slots(spark: SparkSession, profile: Any = None) -> int | None:
    """How many tasks the executors that are registered can run at once; None for unknown.

    Spark Connect reveals the master alone, which is enough for local ones.
    """
    if spark_internals.is_connect(spark):
        local = re.fullmatch(r"local\[(\d+)(?:,\d+)?\]", spark.conf.get("spark.master", "") or "")
        return int(local[1]) // int(spark.conf.get("spark.task.cpus", "1") or 1) if local else None
    return spark_internals.max_concurrent_tasks(spark, profile)


class SlotPool:
    """Slots, which threads acquire in the order in which they ask."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[object] = []
        self._held = 0

    @contextlib.contextmanager
    def acquire(self, wanted: int, count: Callable[[], int | None]) -> Iterator[None]:
        """Wait for ``wanted`` slots, and hold them for the length of a ``with`` block.

        ``count`` returns how many the cluster has now; None for unknown, when one thread at a time holds them all.

        Raises:
            ClusterError: the cluster has fewer, and no executor is added in time.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                wanted = self._wait(ticket, wanted, count)
                self._held += wanted
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= wanted
                self._changed.notify_all()

    def _wait(self, ticket: object, wanted: int, count: Callable[[], int | None]) -> int:
        """Wait until the ticket is first in the queue and enough slots are free; returns how many to hold."""
        logged, lacking = False, 0.0
        while True:
            total = count()  # each time anew: executors are lost, and others register
            if total is None:
                wanted = total = 1
            if self._queue[0] is ticket and self._held + wanted <= total:
                return wanted
            if wanted <= total:
                lacking = 0.0
            elif lacking >= EXECUTORS_TIME:
                raise ClusterError(
                    f"This fit needs {wanted} tasks at the same time, but the application has slots for {total} now: "
                    "executors were lost and not replaced."
                )
            if not logged:
                logged = True
                held = self._held
                logger.info("Waiting for %d slots: other fits of this application hold %d of %d", wanted, held, total)
            if not self._changed.wait(RECOUNT) and wanted > total:
                lacking += RECOUNT


_pool = SlotPool()  # a process runs one Spark application


def acquire(
    spark: SparkSession, ranks: int, profile: Any = None, exclusive: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Wait for the slots of ``ranks`` tasks, or all slots, and hold them for the length of a ``with`` block."""
    return _pool.acquire(ranks, lambda: None if exclusive else _count_slots(spark, profile))
