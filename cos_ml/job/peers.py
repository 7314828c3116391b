"""The handshake of the barrier tasks, after which each knows what the others have (barrier task side)."""

from __future__ import annotations

import contextlib
import http.client
import json
from dataclasses import dataclass, field
from typing import Any

from pyspark import BarrierTaskContext

from cos_ml.data.parquet import Shard
from cos_ml.data.spool import Spool
from cos_ml.errors import RankError
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.job import preflight
from cos_ml.job.horovod_env import JOIN_TIMEOUT, rank_environment, secret_path
from cos_ml.job.placement import RankInfo, own_address
from cos_ml.job.rendezvous import NOT_READY, READY, READY_SCOPE, Rendezvous
from cos_ml.spec import TrainSpec

__all__ = ["PeerInfo", "all_ready", "wait_for_peers"]


@dataclass
class PeerInfo:
    """What a task knows of all tasks once they have met.

    Attributes:
        tasks: rank -> what its task sent.
        environment: the variables with which ``hvd.init()`` finds the other ranks.
        rendezvous: Horovod's server; None but in task 0, and with one rank.
        secret: of the rendezvous, which must not reach any log.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Report whether this task's rank can join, and wait for all reports; returns whether all can."""
        if len(self.tasks) == 1:
            return ready
        server = self.tasks[0]  # the task of partition 0, which always is rank 0
        return all_ready(server["address"], server["port"], self.secret, rank, ready)

    def close(self) -> None:
        """Stop the rendezvous server, if it still runs in this task."""
        if self.rendezvous is not None:
            self.rendezvous.close()


def wait_for_peers(
    context: BarrierTaskContext,
    spec: TrainSpec,
    hosts: list[str],
    ranks: list[RankInfo],
    spool: Spool | Shard,
    invalid: bool,
) -> PeerInfo:
    """Send the other tasks what this one has, and wait for all: one allGather, which also is the barrier.

    Spark checks once a second whether all tasks are there. Meanwhile the rank imports TensorFlow.

    Args:
        context: of this task.
        spec: what the ranks will do.
        hosts: the host of each task, by partition.
        ranks: the rank of each task, by partition.
        spool: this task's rows.
        invalid: whether they can't be used.
    """
    several, task = len(hosts) > 1, context.partitionId()
    address = own_address(hosts, task, spec.variables.get(INTERFACE)) if several else ""
    with contextlib.ExitStack() as on_failure:
        rendezvous = None
        if several and task == 0:
            rendezvous = on_failure.enter_context(contextlib.closing(Rendezvous(address)))
        message = json.dumps({
            "rank": ranks[task].rank, "partition": task, "invalid": invalid,
            "rows": spool.rows, "digest": spool.digest, "skipped": spool.skipped,
            "shapes": spool.shapes, "dtypes": spool.dtypes,
            "address": address, "addresses": list(local_addresses()) if several else [],
            "port": rendezvous.port if rendezvous else 0, "secret": rendezvous.secret if rendezvous else "",
            **preflight.executor_facts(),
        })  # fmt: skip
        messages = [json.loads(one) for one in (context.allGather(message) if several else [message])]
        if rendezvous is not None:
            rendezvous.serve(ranks, [address for other in messages for address in other["addresses"]])
        on_failure.pop_all()
    secret = messages[0]["secret"]
    environment = {}
    if several:
        environment = rank_environment(ranks[task], address, messages[0]["address"], messages[0]["port"], secret)
    tasks = [{name: value for name, value in other.items() if name != "secret"} for other in messages]
    return PeerInfo(sorted(tasks, key=lambda other: other["rank"]), environment, rendezvous, secret)


def all_ready(server: str, port: int, secret: str, rank: int, ready: bool) -> bool:
    """Report whether this task's rank can join the others, and wait until all tasks have reported.

    Args:
        server: the address of the rendezvous server, which task 0 runs.
        port: of the rendezvous server.
        secret: of the rendezvous server.
        rank: the rank of this task.
        ready: whether it can join.

    Returns:
        bool: whether all ranks can join.

    Raises:
        RankError: the server can't be reached.
    """

    def ask(method: str, key: str, value: bytes | None = None) -> bytes | None:
        with contextlib.closing(http.client.HTTPConnection(server, port, timeout=float(JOIN_TIMEOUT))) as connection:
            connection.request(method, f"/{secret_path(secret, port)}/{READY_SCOPE}/{key}", value)
            response = connection.getresponse()
            return response.read() if response.status == http.HTTPStatus.OK else None

    try:
        ask("PUT", str(rank), READY if ready else NOT_READY)
    except (OSError, http.client.HTTPException) as error:
        raise RankError(f"Rank {rank} can't reach the rendezvous server at {server}: {error}.") from None
    reports = None
    while reports is None:
        try:
            reports = ask("GET", "all")
        except (OSError, http.client.HTTPException):
            return False  # task 0 has ended, as it does once it knows that not all are ready
    return NOT_READY not in reports
