"""The handshake of the barrier tasks, after which each knows what the others have (barrier task side)."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyspark import BarrierTaskContext

from cos_ml.data.spool import Spool
from cos_ml.errors import RankError
from cos_ml.interfaces import ADDRESS, INTERFACE, REMEDY, by_interface, is_loopback, local_addresses
from cos_ml.job import channel, horovod_env, preflight, reach
from cos_ml.job.channel import Channel, FallBack
from cos_ml.job.gang import GangContext
from cos_ml.job.messages import Job
from cos_ml.job.placement import LOOPBACK, RankInfo, address_of_first, own_address

if TYPE_CHECKING:
    from cos_ml.job.rendezvous_server import Rendezvous

__all__ = ["Handshake", "PeerInfo"]

MAX_HOSTS = 16  # that an error names


@dataclass
class PeerInfo:
    """What a task knows of all tasks after the handshake.

    Attributes:
        tasks: rank -> what its task sent.
        environment: the variables with which ``hvd.init()`` finds the other ranks.
        rendezvous: Horovod's rendezvous server for this task's rank; None for a single rank.
        secret: the secret of that server, which must not reach any log.
        channel: the connections to the other tasks; None for a single rank.
        host: Spark's name of this task's host.
        place: where this task listens for those of other hosts; None if it does not.
        places: where those of the other hosts listen, by name.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)
    channel: Channel | None = None
    host: str = ""
    place: reach.Place | None = None
    places: dict[str, reach.Place] = field(default_factory=dict)

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Report whether this task's rank can join, and wait for all reports; returns whether all can.

        Raises:
            RankError: the connection to another task was lost.
        """
        if self.channel is None:
            return ready
        try:
            report = json.dumps({"ready": ready, "host": self.host, "place": self.place}).encode()
            reports = [json.loads(one) for one in self.channel.exchange("ready", {str(rank): report}).result().values()]
        except RankError:
            if ready:
                raise
            return False  # this rank has failed by itself, which says more
        others = [report for report in reports if report["place"] and report["host"] != self.host]
        self.places = {report["host"]: tuple(report["place"]) for report in others}
        return all(report["ready"] for report in reports)

    def lost_hosts(self) -> str:
        """What to say if this host can't reach some of the others; "" if it can."""
        lost = reach.unreachable(self.places)
        return reach.message(self.host, lost) if lost else ""

    def joining_hint(self) -> str:
        """Where the ranks are, for the error of one that can't connect to the others; "" for a single rank."""
        if self.rendezvous is None:
            return ""
        hosts = {task["host"]: by_interface(task["addresses"]) for task in self.tasks}
        found = "; ".join(f"{host}: {addresses}" for host, addresses in list(hosts.items())[:MAX_HOSTS])
        return (
            f" It ended while ranks connected to each other. It listened at {self.environment[ADDRESS]}. The ranks' "
            f"hosts: {found}. {REMEDY}"
        )

    def close(self) -> None:
        """Stop the rendezvous server and end the connections, if they are still there."""
        if self.rendezvous is not None:
            self.rendezvous.close()
        if self.channel is not None:
            self.channel.close()


class Handshake:
    """The handshake of a job's tasks. It begins when this object is made; its connections last until ``close``.

    The tasks connect to task 0 while they spool their rows. Where they can't, they use allGather, which takes up to a
    second: Spark looks once a second whether all are there. The connection shows at which address of its host a rank
    is reached, whatever names the hosts have.

    Args:
        context: the task's.
        job: its secret, its network interface and its ports.
        hosts, ranks: those of all tasks, by partition.
    """

    def __init__(
        self, context: BarrierTaskContext | GangContext, job: Job, hosts: list[str], ranks: list[RankInfo]
    ) -> None:
        self.context, self.job, self.ranks, self.task = context, job, ranks, context.partitionId()
        self.hosts, self.interface = hosts, job.specs[0].variables.get(INTERFACE)
        self.opened = contextlib.ExitStack()
        self.channel: channel.Server | channel.Client | None = None
        if len(hosts) > 1:
            self.address, number = own_address(hosts, self.task, self.interface), context.taskAttemptId()
            first = address_of_first(hosts, self.task, self.interface)
            if self.task:
                found = channel.Client(first, job.secret, len(hosts), self.task, number, job.ports)
                self.channel = self.opened.enter_context(contextlib.closing(found))
            else:
                self.channel = self._listen(self.address, first is not None)

    def _listen(self, address: str | None, direct: bool) -> channel.Server:
        """Let task 0 listen; where its address is not known, on all that it has."""
        place, number = address or channel.EVERYWHERE, self.context.taskAttemptId()
        found = channel.listen(place, self.job.secret, self.hosts, number, direct, self.job.ports)
        return self.opened.enter_context(contextlib.closing(found))

    def wait(self, spool: Spool, invalid: bool) -> PeerInfo:
        """Exchange what each task has, which also is the barrier.

        ``invalid`` says whether the rows of this task can't be used.
        """
        own = self.ranks[self.task]
        message = json.dumps({
            "rank": own.rank, "partition": self.task, "invalid": invalid,
            "rows": spool.rows, "digest": spool.digest, "skipped": spool.skipped,
            "shapes": spool.shapes, "dtypes": spool.dtypes, "addresses": local_addresses(),
            "ports": self._ignored_ports(),
            **preflight.executor_facts(),
        })  # fmt: skip
        messages = [message] if self.channel is None else self._messages(message, self.channel)
        tasks = sorted(map(json.loads, messages), key=lambda other: other["rank"])
        if self.channel is None:
            return PeerInfo(tasks, {}, None, "")
        from cos_ml.job.rendezvous_server import Rendezvous  # a single rank needs no Horovod

        address = self.address if self.interface and self.address else self.channel.own_address()
        rendezvous = Rendezvous(LOOPBACK, self.channel.exchange)  # which its own rank alone uses
        rendezvous.serve(self.ranks, [LOOPBACK])
        environment = horovod_env.rank_environment(
            own, address, LOOPBACK, rendezvous.port, rendezvous.secret, self.job.ports
        )
        place = self._listen_for_hosts(own, address)
        return PeerInfo(tasks, environment, rendezvous, rendezvous.secret, self.channel, own.host, place)

    def _listen_for_hosts(self, own: RankInfo, address: str) -> reach.Place | None:
        """Let the first task of each host listen for those of other hosts; returns where."""
        needed = own.local_rank == 0 and len(set(self.hosts)) > 1
        server = reach.listen(address, self.job.ports) if needed else None
        if server is None:
            return None
        self.opened.callback(server.close)
        return address, server.server_address[1]

    def _ignored_ports(self) -> str:
        """Why a rank here would listen on other ports than the job's; "" if it would not, or on the loopback alone."""
        ports = self.job.ports if len(set(self.hosts)) > 1 else None
        return horovod_env.ignored_ports(ports, self.job.specs[0].use_gpu) if ports else ""

    def _messages(self, message: str, connected: channel.Server | channel.Client) -> list[str]:
        """The messages of all tasks, by partition."""
        try:
            return [facts.decode() for facts in connected.handshake(message.encode())]
        except FallBack:
            pass
        if isinstance(connected, channel.Server) and self.interface is None and self.address not in (None, LOOPBACK):
            self.channel = connected = self._listen(None, direct=False)
        port = connected.port if isinstance(connected, channel.Server) else 0
        gathered = self.context.allGather(json.dumps({"message": message, "address": self.address, "port": port}))
        places = list(map(json.loads, gathered))
        messages = [place["message"] for place in places]
        first, *others = map(json.loads, messages)
        if isinstance(connected, channel.Server):
            connected.allowed |= {address for other in others for address in other["addresses"]}
        else:
            places_of_first = [places[0]["address"]] if places[0]["address"] else []
            if self.interface is None and places_of_first != [LOOPBACK]:
                places_of_first += [one for one in first["addresses"] if not is_loopback(one)]
            connected.open(first["host"], list(dict.fromkeys(places_of_first)), places[0]["port"])
        return messages

    def close(self) -> None:
        """End the connections to the other tasks."""
        self.opened.close()
