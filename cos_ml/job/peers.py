"""The handshake of the barrier tasks, after which each knows what the others have (barrier task side)."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyspark import BarrierTaskContext

from cos_ml.data.spool import Spool
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.job import preflight
from cos_ml.job.horovod_env import rank_environment
from cos_ml.job.placement import RankInfo, own_address
from cos_ml.job.rendezvous import all_ready
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from cos_ml.job.rendezvous_server import Rendezvous

__all__ = ["PeerInfo", "wait_for_peers"]


@dataclass
class PeerInfo:
    """What a task knows of all tasks after the handshake.

    Attributes:
        tasks: rank -> what its task sent.
        environment: the variables with which ``hvd.init()`` finds the other ranks.
        rendezvous: Horovod's server in task 0 of several; else None.
        secret: the secret of that server, which must not reach any log.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Report whether this task's rank can join, and wait for all reports; returns whether all can."""
        first = self.tasks[0]  # the task of partition 0, which always is rank 0
        several = len(self.tasks) > 1
        return all_ready(first["address"], first["port"], self.secret, rank, ready) if several else ready

    def close(self) -> None:
        """Stop the rendezvous server, if it still runs in this task."""
        if self.rendezvous is not None:
            self.rendezvous.close()


def wait_for_peers(
    context: BarrierTaskContext, spec: TrainSpec, hosts: list[str], ranks: list[RankInfo], spool: Spool, invalid: bool
) -> PeerInfo:
    """Exchange what each task has: one allGather, which also is the barrier.

    Spark checks once a second whether all tasks are there. Meanwhile the rank imports TensorFlow. Hosts and ranks are
    those of all tasks, by partition; ``invalid`` says whether the rows of this task can't be used.
    """
    several, task = len(hosts) > 1, context.partitionId()
    address = own_address(hosts, task, spec.variables.get(INTERFACE)) if several else ""
    with contextlib.ExitStack() as on_failure:
        rendezvous = None
        if several and task == 0:
            from cos_ml.job.rendezvous_server import Rendezvous  # a single rank needs no Horovod

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
    first = messages[0]
    secret, environment = first["secret"], {}
    if several:
        environment = rank_environment(ranks[task], address, first["address"], first["port"], secret)
    tasks = [{name: value for name, value in other.items() if name != "secret"} for other in messages]
    return PeerInfo(sorted(tasks, key=lambda other: other["rank"]), environment, rendezvous, secret)
