"""The handshake of the barrier tasks, after which each knows what the others have (barrier task side)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyspark import BarrierTaskContext

from cos_ml.data.spool import Spool
from cos_ml.errors import RankError
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.job import channel, preflight
from cos_ml.job.channel import Channel, FallBack
from cos_ml.job.horovod_env import rank_environment
from cos_ml.job.messages import Job
from cos_ml.job.placement import RankInfo, address_of_first, own_address

if TYPE_CHECKING:
    from cos_ml.job.rendezvous_server import Rendezvous

__all__ = ["Handshake", "PeerInfo"]

LOOPBACK = "127.0.0.1"  # where a rank finds its own task's rendezvous server
READY, NOT_READY = b"1", b"0"


@dataclass
class PeerInfo:
    """What a task knows of all tasks after the handshake.

    Attributes:
        tasks: rank -> what its task sent.
        environment: the variables with which ``hvd.init()`` finds the other ranks.
        rendezvous: Horovod's rendezvous server for this task's rank; None for a single rank.
        secret: the secret of that server, which must not reach any log.
        channel: the connections to the other tasks; None for a single rank.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)
    channel: Channel | None = None

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Report whether this task's rank can join, and wait for all reports; returns whether all can.

        Raises:
            RankError: the connection to another task was lost.
        """
        if self.channel is None:
            return ready
        try:
            reports = self.channel.exchange("ready", {str(rank): READY if ready else NOT_READY}).result()
        except RankError:
            if ready:
                raise
            return False  # this rank has failed by itself, which says more
        return NOT_READY not in reports.values()

    def close(self) -> None:
        """Stop the rendezvous server and end the connections, if they are still there."""
        if self.rendezvous is not None:
            self.rendezvous.close()
        if self.channel is not None:
            self.channel.close()


class Handshake:
    """The handshake of a job's tasks. It begins when this object is made; its connections last until ``close``.

    The tasks connect to task 0 while they spool their rows. Where they can't, they use allGather, which takes up to a
    second: Spark looks once a second whether all are there.

    Args:
        context: the task's.
        job: its secret and its network interface.
        hosts, ranks: those of all tasks, by partition.
    """

    def __init__(self, context: BarrierTaskContext, job: Job, hosts: list[str], ranks: list[RankInfo]) -> None:
        self.context, self.ranks, self.task = context, ranks, context.partitionId()
        self.address = ""
        self.channel: channel.Server | channel.Client | None = None
        if len(hosts) > 1:
            interface = job.specs[0].variables.get(INTERFACE)
            self.address = own_address(hosts, self.task, interface)
            first, number = address_of_first(hosts, self.task, interface), context.taskAttemptId()
            if self.task:
                self.channel = channel.Client(first, job.secret, len(hosts), self.task, number)
            else:
                self.channel = channel.listen(self.address, job.secret, hosts, number, direct=first is not None)

    def wait(self, spool: Spool, invalid: bool) -> PeerInfo:
        """Exchange what each task has, which also is the barrier.

        ``invalid`` says whether the rows of this task can't be used.
        """
        own, connected = self.ranks[self.task], self.channel
        message = json.dumps({
            "rank": own.rank, "partition": self.task, "invalid": invalid,
            "rows": spool.rows, "digest": spool.digest, "skipped": spool.skipped,
            "shapes": spool.shapes, "dtypes": spool.dtypes, "address": self.address,
            "addresses": list(local_addresses()) if connected else [],
            "port": connected.port if isinstance(connected, channel.Server) else 0,
            **preflight.executor_facts(),
        })  # fmt: skip
        messages = self._messages(message, connected) if connected else [message]
        tasks = sorted(map(json.loads, messages), key=lambda other: other["rank"])
        if not connected:
            return PeerInfo(tasks, {}, None, "")
        from cos_ml.job.rendezvous_server import Rendezvous  # a single rank needs no Horovod

        rendezvous = Rendezvous(LOOPBACK, connected.exchange)
        rendezvous.serve(self.ranks, [LOOPBACK])
        environment = rank_environment(own, self.address, LOOPBACK, rendezvous.port, rendezvous.secret)
        return PeerInfo(tasks, environment, rendezvous, rendezvous.secret, connected)

    def _messages(self, message: str, connected: channel.Server | channel.Client) -> list[str]:
        """The messages of all tasks, by partition."""
        try:
            return [facts.decode() for facts in connected.handshake(message.encode())]
        except FallBack:
            messages = self.context.allGather(message)
        first, *others = map(json.loads, messages)
        if isinstance(connected, channel.Server):
            connected.allowed |= {address for other in others for address in other["addresses"]}
        else:
            connected.open(first["address"], first["port"])
        return messages

    def close(self) -> None:
        """End the connections to the other tasks."""
        if self.channel is not None:
            self.channel.close()
