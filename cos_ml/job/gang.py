"""Ranks as tasks of an ordinary stage, which the driver gangs instead of Spark's barrier (driver and task side).

Spark runs no barrier stage with dynamic allocation. What tasks have of the barrier, a server on the driver gives them:
it knows when all are there, and passes their messages on to all. Once they have met, none can be replaced: if one is
lost, or Spark starts one again, the driver cancels the job, as Spark itself ends a barrier stage, and starts another.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyspark import BarrierTaskContext, BarrierTaskInfo
from pyspark.sql import SparkSession

from cos_ml import spark_internals
from cos_ml.errors import ClusterError
from cos_ml.job import link, slots
from cos_ml.job.auth import BoundedServer, on_free_port
from cos_ml.job.link import Link, pack
from cos_ml.job.progress import Address
from cos_ml.job.settings import duration, port_range
from cos_ml.python_worker import current_task

__all__ = ["GangContext", "GangServer", "check", "gathered", "task_context"]

CONNECT_TIME = 10.0  # seconds to connect, and to prove the secret
REPORT_TIME = 2.0  # seconds that Spark may take to learn why a task was lost
RECHECK = 1.0  # seconds
PARTITION, MESSAGE, FINISHED = "partition", "message", "finished"  # what tasks send

logger = logging.getLogger(__name__)


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(spark: SparkSession) -> None:
    """Check that tasks can be ganged in this application.

    Raises:
        ClusterError: it is one of Spark Connect, or starts copies of tasks that are slow.
    """
    if spark_internals.is_connect(spark):
        raise ClusterError(
            "useBarrier=False is not possible with Spark Connect: the ranks' tasks meet at the driver, and this "
            "program is only its client. Use a session without Connect, or useBarrier=True without dynamic allocation."
        )
    if (spark.conf.get("spark.speculation", None) or "").lower() == "true":
        raise ClusterError(
            "useBarrier=False is not possible with spark.speculation=true: Spark would start a second copy of a rank's "
            "task, and keep whichever ends first. Set spark.speculation=false for the application that trains."
        )


class Handler(socketserver.BaseRequestHandler):
    """The connection of one task."""

    server: GangServer

    def handle(self) -> None:
        self.request.settimeout(CONNECT_TIME)
        with contextlib.suppress(OSError, ValueError, KeyError):
            own = link.accept(self.request, self.server.secret)
            partition = int(own.receive()[PARTITION])
            own.set_timeout(None)
            self.server.join(partition, own)
            finished = False
            try:
                while not finished:
                    received = own.receive()
                    finished = FINISHED in received
                    if not finished:
                        self.server.gather(partition, own, received[MESSAGE])
            finally:
                self.server.leave(partition, own, finished)


class GangServer(BoundedServer):
    """Where the tasks of one job meet.

    Args:
        own: the address and the port to listen on.
        host: the name or the address by which executors know the driver.
        size: the number of tasks.
        cancel: cancels their job.
        limit: seconds to wait for the next task, while some are there and others are not.

    Attributes:
        address: what tasks need to find it.
        expired: whether not all have met in time.
    """

    request_queue_size = 1024

    def __init__(self, own: tuple[str, int], host: str, size: int, cancel: Callable[[], Any], limit: float) -> None:
        self.secret = secrets.token_hex(16)  # 128 bits
        self.size, self.cancel, self.limit = size, cancel, limit
        self.max_connections = 64 + 2 * size
        self.members: dict[int, Link] = {}
        self.messages: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.met = self.lost = self.expired = self.closed = False
        self.changed = threading.Condition()
        self.last_arrival = time.monotonic()
        super().__init__(own, Handler)
        self.address = Address(host, self.server_address[1], self.secret)
        self.start()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def join(self, partition: int, own: Link) -> None:
        """A task has come: for the first time, or again because Spark has given up the one before."""
        with self.changed:
            if not self.met:
                if partition in self.members:
                    self.members[partition].close()
                    self.messages.pop(partition, None)
                self.members[partition] = own
                self.last_arrival = time.monotonic()
                return
        self._lose()

    def gather(self, partition: int, own: Link, message: bytes) -> None:
        """Take a task's message; when all have sent theirs, each gets all. One that has come too late gets nothing."""
        with self.changed:
            if self.members.get(partition) is not own:
                return
            self.messages[partition] = message
            if len(self.messages) < self.size:
                return
            answer = pack({str(one): self.messages[one] for one in range(self.size)})
            self.messages, self.met = {}, True
            receivers = list(self.members.values())
            self.changed.notify_all()
        for one in receivers:
            with contextlib.suppress(OSError):  # it has gone, which its own thread notices
                one.send(answer)

    def leave(self, partition: int, own: Link, finished: bool) -> None:
        """The connection of a task has ended: it has ``finished``, or it is lost."""
        with self.changed:
            if self.members.get(partition) is not own:
                return
            if finished:
                self.finished.add(partition)
                self.changed.notify_all()
            if not self.met:
                del self.members[partition]
                self.messages.pop(partition, None)
            if finished or not self.met or self.changed.wait_for(lambda: self.lost or self.closed, REPORT_TIME):
                return
        self._lose()

    def _lose(self) -> None:
        """Cancel the job, once: it can't go on without the task that was lost."""
        with self.changed:
            first, self.lost = not (self.lost or self.closed), True
            self.changed.notify_all()
        if first:
            self.cancel()

    def _watch(self) -> None:
        """Cancel the job if not all tasks come in time; log how many are there."""
        warned = slots.FIRST_WARNING - slots.WARNINGS
        with self.changed:
            while not (self.met or self.closed or self.expired):
                self.changed.wait(RECHECK)
                here, waited = len(self.members), time.monotonic() - self.last_arrival
                self.expired = 0 < here < self.size and waited >= self.limit
                if 0 < here < self.size and waited >= warned + slots.WARNINGS:
                    warned = waited
                    logger.warning(
                        "Waiting for executors: %d of %d ranks have started. The fit fails if no other starts in "
                        "%.0f s (%s).", here, self.size, self.limit - waited, slots.TIMEOUT,
                    )  # fmt: skip
        if self.expired:
            self.cancel()

    def has_lost(self) -> bool:
        """Whether a job that has failed had lost a task, for which Spark may have ended it before this server did."""
        return self.lost or (self.met and len(self.finished) < self.size)

    def close(self) -> None:
        """Stop listening, and end all connections."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        super().close()
        self.watch.join()


@contextlib.contextmanager
def gathered(spark: SparkSession, size: int, cancel: Callable[[], Any], wanted: bool) -> Iterator[GangServer | None]:
    """Gather the tasks of a job that starts in this ``with`` block; None if that is not ``wanted``.

    Raises:
        ClusterError: they can't be ganged in this application, or not all of them have started in time.
    """
    if not wanted:
        yield None
        return
    check(spark)
    with contextlib.closing(_listen(spark, size, cancel)) as server:
        try:
            yield server
        except Exception:
            if not server.expired:
                raise
            raise ClusterError(
                f"numTrainWorkers={size} needs {size} tasks at the same time, but not all of them have started: Spark "
                f"got no more executors within {server.limit:.0f} s, or other jobs hold the slots. Set numTrainWorkers "
                f"to less, give the application more executors, or raise {slots.TIMEOUT}."
            ) from None


def _listen(spark: SparkSession, size: int, cancel: Callable[[], Any]) -> GangServer:
    """Let the driver listen where executors reach it.

    Raises:
        ClusterError: it can't listen there.
    """
    host = (spark.conf.get("spark.driver.host", None) or "").strip("[]")  # in which Spark writes addresses of IPv6
    own = (spark.conf.get("spark.driver.bindAddress", None) or host).strip("[]")
    limit = duration(spark.conf, slots.TIMEOUT, "10min")
    try:
        return on_free_port(
            lambda port: GangServer((own, port), host, size, cancel, limit), port_range(spark.conf) or [0]
        )
    except OSError as error:
        raise ClusterError(
            f"With useBarrier=False the ranks' tasks meet at the driver, but it can't listen on {own}: {error}. Set "
            "spark.driver.host, or spark.driver.bindAddress, to an address of this host."
        ) from None


# ── task ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class GangContext:
    """What ``BarrierTaskContext`` is to the tasks of a barrier stage."""

    def __init__(self, address: Address) -> None:
        self.task = current_task()
        try:
            self.link = link.connect(address.host, address.port, address.secret, CONNECT_TIME)
        except OSError as error:
            raise ClusterError(
                f"An executor can't reach the driver at {address.host}, port {address.port}: {error}. With "
                "useBarrier=False the ranks' tasks meet there. If a firewall lets only some ports through, name them: "
                "spark.cosml.portRange=40000-40099."
            ) from None
        self.link.set_timeout(None)
        self.link.send(pack({PARTITION: str(self.partitionId()).encode()}))

    def partitionId(self) -> int:
        """The task's partition, from 0."""
        return self.task.partitionId()

    def taskAttemptId(self) -> int:
        """The task's number, which is unique in the application."""
        return self.task.taskAttemptId()

    def getTaskInfos(self) -> list[BarrierTaskInfo]:
        """The hosts of all tasks, once all are there: the addresses from which they have reached the driver."""
        return [BarrierTaskInfo(f"{host}:0") for host in self.allGather(self.link.local)]

    def allGather(self, message: str = "") -> list[str]:
        """Send a message, and wait for those of all tasks; returns them by partition."""
        self.link.send(pack({MESSAGE: message.encode()}))
        found = self.link.receive()
        return [found[str(partition)].decode() for partition in range(len(found))]

    def finish(self) -> None:
        """Tell the driver that this task has returned its result."""
        with contextlib.suppress(OSError):  # the driver will find out by the result
            self.link.send(pack({FINISHED: b""}))

    def close(self) -> None:
        """Leave; a task that has not finished is lost."""
        self.link.close()


@contextlib.contextmanager
def task_context(gang: Address | None) -> Iterator[BarrierTaskContext | GangContext]:
    """The context of this task: that of Spark's barrier, or of the gang that the driver gathers at an address."""
    if gang is None:
        yield BarrierTaskContext.get()
        return
    with contextlib.closing(GangContext(gang)) as context:
        yield context
        context.finish()
