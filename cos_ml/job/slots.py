"""Slots of the cluster: whether they are enough for a fit's ranks, and which fit is next (driver side).

A barrier job needs all its slots at the same time. Fits of one application that run side by side, as CrossValidator's
threads do, therefore acquire slots from one pool, first come, first served.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.cancellation import check_not_cancelled
from cos_ml.errors import ClusterError
from cos_ml.job.settings import duration

__all__ = ["SlotPool", "acquire", "check_cluster"]

TIMEOUT = "spark.cosml.executorsTimeout"
DYNAMIC = "spark.dynamicAllocation"
REGISTER_TIME = 30.0  # seconds to wait for more executors where the application has not requested a number of them
POLL = 0.2  # seconds
RECOUNT = 1.0  # seconds
FIRST_WARNING, WARNINGS = 5.0, 60.0  # seconds of waiting until the first warning, and between the others

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The executors that an application has requested of its cluster manager.

    Attributes:
        slots: tasks that they run at the same time.
        executors: their number; None for unknown.
        settings: the settings of Spark that say so.
    """

    slots: int
    executors: int | None
    settings: str


def check_cluster(spark: SparkSession, ranks: int, profile: Any = None, use_barrier: bool = True) -> None:
    """Check that the cluster can run ``ranks`` tasks at once; Spark would wait, or fail after a long time.

    Executors that were requested are waited for: each may unpack its environment for minutes before it registers.

    Raises:
        ClusterError: it can't run so many with this ResourceProfile (None: Spark's default), or not in time; or they
            are to be tasks of a barrier stage, and Spark allocates executors dynamically.
    """
    if _is_dynamic(spark):
        _check_dynamic(spark, ranks, use_barrier)
        return
    request, begun, next_warning = _request(spark.conf), time.monotonic(), FIRST_WARNING
    while True:
        # Before the slots, which are then those of as many at least; None for unknown.
        executors = None if _is_fixed(spark) else spark_internals.count_executors(spark)
        slots = _count_slots(spark, profile)
        if slots is None and request and request.slots < ranks:  # as with Spark Connect
            raise ClusterError(_describe_lack(ranks, 0, executors, request, 0.0))
        if slots is None or slots >= ranks:
            return  # of an unknown number, Spark itself decides
        waited, limit = time.monotonic() - begun, _time_limit(spark, ranks, slots, executors, request)
        if waited >= limit:
            raise ClusterError(_describe_lack(ranks, slots, executors, request, waited))
        if waited >= next_warning:
            next_warning = waited + WARNINGS
            logger.warning(
                "Waiting for executors: %d ranks need %d slots, and there are %d%s. The fit fails if it is still so in "
                "%.0f s (%s).", ranks, ranks, slots, _registered(executors, request), limit - waited, TIMEOUT,
            )  # fmt: skip
        time.sleep(POLL)


def _is_dynamic(spark: SparkSession) -> bool:
    """Whether Spark requests executors for the tasks that wait, and gives back those that have none."""
    local = re.match(r"local(\[|$)", spark.conf.get("spark.master", None) or "")  # where it ignores the setting
    return not local and (spark.conf.get(f"{DYNAMIC}.enabled", None) or "").lower() == "true"


def _check_dynamic(spark: SparkSession, ranks: int, use_barrier: bool) -> None:
    """Check that Spark will request enough executors for ``ranks`` tasks; see ``check_cluster``."""
    if use_barrier:
        remedy = "" if spark_internals.is_connect(spark) else "Set the Param useBarrier=False, or "
        raise ClusterError(
            f"{DYNAMIC}.enabled is true, but Spark runs no barrier stages then (SPARK-24942), and ranks are the tasks "
            f"of one. {remedy or 'Set '}{DYNAMIC}.enabled=false and spark.executor.instances for the application that "
            "trains."
        )
    used: dict[str, str] = {}

    def number(name: str, default: float) -> float:
        value = spark.conf.get(name, None)
        used.update({name: value} if value else {})
        return float(value or default)

    if not (cores := number("spark.executor.cores", 0)):
        return  # as many as a worker has, perhaps
    tasks = max(1, cores // number("spark.task.cpus", 1))
    wanted = math.ceil(ranks * number(f"{DYNAMIC}.executorAllocationRatio", 1) / tasks)
    executors = max(number(f"{DYNAMIC}.minExecutors", 0), min(wanted, number(f"{DYNAMIC}.maxExecutors", math.inf)))
    if executors * tasks < ranks:
        settings = ", ".join(f"{name}={value}" for name, value in used.items())
        raise ClusterError(
            f"numTrainWorkers={ranks} needs {ranks} tasks at the same time, but Spark will request executors for "
            f"{executors * tasks:.0f}: {settings}. Set numTrainWorkers to {executors * tasks:.0f} or less, or raise "
            f"{DYNAMIC}.maxExecutors, spark.executor.cores or {DYNAMIC}.executorAllocationRatio."
        )


def _request(settings: Any) -> Request | None:
    """What the ``settings`` of an application request; None where it takes all that the cluster has."""
    master, used = settings.get("spark.master", None) or "", {}

    def number(name: str, default: int) -> int:
        value = int(settings.get(name, None) or default)
        used.update({name: value} if value else {})
        return value

    if master.startswith(("yarn", "k8s:")):
        executors, cores = number("spark.executor.instances", 2), number("spark.executor.cores", 1)
    elif master.startswith("spark:") and (total := number("spark.cores.max", 0)):
        cores = number("spark.executor.cores", 0)
        executors, cores = (total // cores, cores) if cores else (0, total)
    else:
        return None
    slots = max(1, executors) * (cores // number("spark.task.cpus", 1))
    return Request(slots, executors or None, ", ".join(f"{name}={value}" for name, value in used.items()))


def _time_limit(spark: SparkSession, ranks: int, slots: int, executors: int | None, request: Request | None) -> float:
    """Seconds to wait for more slots than these; 0 where no more will come."""
    if _is_fixed(spark):
        return 0.0
    if request and request.slots < ranks:
        return 0.0
    if request and request.executors and executors is not None and executors >= request.executors:
        return 0.0  # all are there, but they run fewer tasks, such as those with a GPU
    return _timeout(spark.conf, request or not slots)


def _timeout(settings: Any, requested: Any) -> float:
    """Seconds to wait for executors: as ``TIMEOUT`` sets it, by default long for those that were requested."""
    return duration(settings, TIMEOUT, "10min" if requested else f"{REGISTER_TIME:.0f}s")


def _registered(executors: int | None, request: Request | None) -> str:
    """How many executors have registered, for a message; "" for unknown."""
    if executors is None:
        return ""
    total = f" of the {request.executors} requested" if request and request.executors else ""
    return f" ({executors}{total} executor{'' if executors == 1 else 's'} registered)"


def _describe_lack(ranks: int, slots: int, executors: int | None, request: Request | None, waited: float) -> str:
    """The error where ``ranks`` find too few slots, with what to do."""
    needs = f"numTrainWorkers={ranks} needs {ranks} tasks at the same time, but this application has"
    registered = _registered(executors, request)
    if request and request.slots < ranks:
        return (
            f"{needs} slots for {request.slots} in all: {request.settings}. Set numTrainWorkers to {request.slots} or "
            "less, or start Spark with more executors or cores."
        )
    after = f" after {waited:.0f} s" if waited >= 1 else ""
    longer = f" If executors take longer to start, unpacking archives first, raise {TIMEOUT}." if after else ""
    if not slots:
        return (
            f"{needs} no executor that could run one{after}{registered}. Spark's user interface shows whether any "
            "registered. Spark starts none where no worker has the cores, the memory or the GPUs that an executor "
            f"requests (GPUs of a standalone worker: spark.worker.resource.gpu.amount).{longer}"
        )
    return (
        f"{needs} slots for {slots}{after}{registered}. Set numTrainWorkers to {slots} or less, or start Spark with "
        f"more: --master 'local[{ranks}]', or more executors or cores (spark.executor.instances, spark.executor.cores; "
        f"each task uses spark.task.cpus of them).{longer}"
    )


def _is_fixed(spark: SparkSession) -> bool:
    """Whether the slots that are counted now are all that will be: those of a local master, or what Connect tells."""
    local = re.match(r"local(\[|$)", spark.conf.get("spark.master", None) or "")
    return bool(local) or spark_internals.is_connect(spark)


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
    def acquire(self, wanted: int, count: Callable[[], int | None], timeout: float = REGISTER_TIME) -> Iterator[None]:
        """Wait for ``wanted`` slots, and hold them for the length of a ``with`` block.

        ``count`` returns how many the cluster has now; None for unknown, when one thread at a time holds them all.
        ``timeout`` is the time in seconds that lost executors have to be replaced.

        Raises:
            ClusterError: the cluster has fewer, and no executor is added in time.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                wanted = self._wait(ticket, wanted, count, timeout)
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

    def _wait(self, ticket: object, wanted: int, count: Callable[[], int | None], timeout: float) -> int:
        """Wait until the ticket is first in the queue and enough slots are free; returns how many to hold."""
        logged, lacking = False, 0.0
        while True:
            check_not_cancelled()
            total = count()  # each time anew: executors are lost, and others register
            if total is None:
                wanted = total = 1
            if self._queue[0] is ticket and self._held + wanted <= total:
                return wanted
            if wanted <= total:
                lacking = 0.0
            elif lacking >= timeout:
                raise ClusterError(
                    f"This fit needs {wanted} tasks at the same time, but the application has slots for {total} now: "
                    f"executors were lost and not replaced within {timeout:.0f} s ({TIMEOUT})."
                )
            if not logged:
                logged = True
                held = self._held
                logger.info("Waiting for %d slots: other fits of this application hold %d of %d", wanted, held, total)
            if not self._changed.wait(RECOUNT) and wanted > total:
                lacking += RECOUNT


_pool = SlotPool()  # a process runs one Spark application


def acquire(
    spark: SparkSession, ranks: int, profile: Any = None, exclusive: bool = False, use_barrier: bool = True
) -> contextlib.AbstractContextManager[None]:
    """Wait for the slots of ``ranks`` tasks, or all slots, and hold them for the length of a ``with`` block."""

    def count() -> int | None:
        slots = None if exclusive else _count_slots(spark, profile)
        # Without a barrier the tasks of one fit wait for executors themselves; for another fit they must be there.
        return slots if slots is None or use_barrier else max(slots, ranks)

    return _pool.acquire(ranks, count, _timeout(spark.conf, _request(spark.conf)))
