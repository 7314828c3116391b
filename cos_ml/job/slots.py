"""Slots of the cluster: whether a fit's ranks fit in, and whose turn it is (driver side).

A barrier job needs all its slots at the same time. Fits of one application that run side by side, as CrossValidator's
threads do, therefore take the slots from one account, first come, first served.
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

EXECUTORS_TIME = 30.0  # seconds for executors to register: an application's first, and those in the place of lost ones
POLL = 0.2  # seconds
RECOUNT = 1.0  # seconds

logger = logging.getLogger(__name__)


def check_cluster(spark: SparkSession, ranks: int, profile: Any = None) -> None:
    """Raises ClusterError where Spark would wait, or fail after a long time, for ``ranks`` tasks at once.

    Args:
        spark: the session that trains.
        ranks: how many tasks.
        profile: the ResourceProfile of the tasks; None for Spark's default.
    """
    if spark.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        raise ClusterError(
            "spark.dynamicAllocation.enabled is true, and Spark runs no barrier job then (SPARK-24942), which the "
            "ranks of a fit are. "
            "Set spark.dynamicAllocation.enabled=false and spark.executor.instances for the application that trains."
        )
    slots = _slots(spark, profile)
    deadline = time.monotonic() + _patience(spark)
    while slots is not None and slots < ranks and time.monotonic() < deadline:
        time.sleep(POLL)
        slots = _slots(spark, profile)
    if slots is not None and slots < ranks:
        if not slots:
            raise ClusterError(
                f"numTrainWorkers={ranks} needs {ranks} tasks at the same time, and this application has no executor "
                "that could run one. Spark's user interface shows whether any registered; it starts none where no "
                "worker has the cores, the memory or the GPUs (spark.worker.resource.gpu.amount of a standalone "
                "worker) that an executor asks for."
            )
        raise ClusterError(
            f"numTrainWorkers={ranks} needs {ranks} tasks at the same time, and this application has slots for "
            f"{slots}. Set "
            f"numTrainWorkers to {slots} or less, or start Spark with more: --master 'local[{ranks}]', or more "
            "executors or cores "
            "(spark.executor.instances, spark.executor.cores; a task takes spark.task.cpus of them)."
        )


def _patience(spark: SparkSession) -> float:
    """Seconds to wait for executors that have not come yet; a local master has all it will ever have."""
    local = (spark.conf.get("spark.master", "") or "").startswith("local[")
    return 0.0 if local or spark_internals.is_connect(spark) else EXECUTORS_TIME


def _slots(spark: SparkSession, profile: Any = None) -> int | None:
    """How many tasks run at once on the executors there are now; None where Spark Connect does not tell.

    It tells which master there is, and that is enough for local ones only.
    """
    if spark_internals.is_connect(spark):
        local = re.fullmatch(r"local\[(\d+)(?:,\d+)?\]", spark.conf.get("spark.master", "") or "")
        return int(local[1]) // int(spark.conf.get("spark.task.cpus", "1") or 1) if local else None
    return spark_internals.max_concurrent_tasks(spark, profile)


class SlotPool:
    """So many slots, which threads take and give back in the order in which they come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: list[object] = []
        self._held = 0

    @contextlib.contextmanager
    def acquire(self, wanted: int, count: Callable[[], int | None]) -> Iterator[None]:
        """Hold ``wanted`` slots for the length of a ``with`` block; waits for them.

        Args:
            wanted: how many.
            count: how many there are now; None where nobody knows, and one holder at a time has them all.

        Raises:
            ClusterError: there are fewer, and none come.
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
        """Until it is the ticket's turn and so many are free; returns how many to take."""
        told, lacking = False, 0.0
        while True:
            total = count()  # anew: executors are lost, and others come
            if total is None:
                wanted = total = 1
            if self._queue[0] is ticket and self._held + wanted <= total:
                return wanted
            if wanted <= total:
                lacking = 0.0
            elif lacking >= EXECUTORS_TIME:
                raise ClusterError(
                    f"This fit needs {wanted} tasks at the same time, and the application has slots for {total} by "
                    "now: executors were lost, and none have come in their place."
                )
            if not told:
                logger.info(
                    "This fit needs %d slots and waits: other fits of this application hold %d of %d.",
                    wanted, self._held, total,
                )  # fmt: skip
                told = True
            if not self._changed.wait(RECOUNT) and wanted > total:
                lacking += RECOUNT


_pool = SlotPool()  # a process runs one Spark application


def acquire(
    spark: SparkSession, ranks: int, profile: Any = None, alone: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Hold the slots of ``ranks`` tasks, or all, for the length of a ``with`` block; waits for other fits to end."""
    return _pool.acquire(ranks, lambda: None if alone else _slots(spark, profile))
