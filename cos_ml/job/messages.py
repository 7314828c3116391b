"""What barrier tasks tell each other and the driver (barrier task and driver side)."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from pyspark import BarrierTaskContext

from cos_ml.data.parquet import Shard
from cos_ml.data.spool import Spool
from cos_ml.errors import ClusterError, InvalidInputError, RankError
from cos_ml.job import preflight
from cos_ml.job.barrier import Job
from cos_ml.job.horovod_env import INTERFACE, rank_environment
from cos_ml.job.placement import Place, local_addresses, own_address
from cos_ml.job.rendezvous import Rendezvous, all_ready

__all__ = []

MESSAGE_TAIL = 30  # lines of it in an exception
HOROVOD_ECHO = "Horovod has been shut down"  # what the other ranks' errors say when one fails


@dataclass
class Meeting:
    """What the ranks know of each other once all have met.

    Attributes:
        tasks: what each task said, by rank.
        environment: in which ``hvd.init()`` finds the others.
        rendezvous: Horovod's server, in task 0 and where there is more than one rank.
        secret: of the rendezvous, which is to be in no log.
    """

    tasks: list[dict[str, Any]]
    environment: dict[str, str] = field(repr=False)
    rendezvous: Rendezvous | None
    secret: str = field(repr=False)

    def all_ready(self, rank: int, ready: bool) -> bool:
        """Say whether this task's rank can join, and wait until all have said it; returns whether all can."""
        first = self.tasks[0]  # it runs the server
        several = len(self.tasks) > 1
        return all_ready(first["address"], first["port"], self.secret, rank, ready) if several else ready

    def close(self) -> None:
        """Stop the rendezvous server, if it runs here and still does."""
        if self.rendezvous is not None:
            self.rendezvous.close()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _meet(
    context: BarrierTaskContext, job: Job, hosts: list[str], places: list[Place], spool: Spool | Shard, problem: str
) -> Meeting:
    """Tell the others what this task has, and wait for all: one allGather, which is also the rendezvous for Horovod.

    Spark asks once a second whether all are there. Meanwhile the rank imports TensorFlow.
    """
    several = len(hosts) > 1
    task = context.partitionId()
    with contextlib.ExitStack() as unless_met:
        rendezvous, own = None, ""
        if several:
            own = own_address(hosts, task, job.specs[0].variables.get(INTERFACE))
        if several and task == 0:
            rendezvous = unless_met.enter_context(Rendezvous(own))
        mine = {
            "rank": places[task].rank, "partition": task, "problem": bool(problem),
            "rows": spool.rows, "digest": spool.digest, "skipped": spool.skipped,
            "validation": spool.rows["validation"], "shapes": spool.shapes, "dtypes": spool.dtypes,
            "addresses": list(local_addresses()) if several else [], "port": rendezvous.port if rendezvous else 0,
            "address": own, "secret": rendezvous.secret if rendezvous else "",
            **preflight.facts(),
        }  # fmt: skip
        message = json.dumps(mine)
        told = [json.loads(one) for one in (context.allGather(message) if several else [message])]
        if rendezvous is not None:
            rendezvous.serve(places, [address for other in told for address in other["addresses"]])
        unless_met.pop_all()
    secret = told[0]["secret"]
    server, port = told[0]["address"], told[0]["port"]
    environment = rank_environment(places[task], own, server, port, secret) if several else {}
    told = [{name: value for name, value in other.items() if name != "secret"} for other in told]
    return Meeting(sorted(told, key=lambda other: other["rank"]), environment, rendezvous, secret)


def _lost_each_other(results: list[dict[str, bytes]]) -> bool:
    """Whether ranks failed, and each of them only because it lost the others: none has a reason of its own."""
    if any(reason in result for result in results for reason in ("cluster", "problem", "failure")):
        return False
    errors = [result["error"].decode() for result in results if "error" in result]
    return bool(errors) and all(HOROVOD_ECHO in error for error in errors)


def _raise_reported(results: list[dict[str, bytes]]) -> None:
    """Raise what the ranks report: bad rows first, then the rank that failed by itself and not because another did."""
    foreign = [result["cluster"].decode() for result in results if "cluster" in result]
    if foreign:
        raise ClusterError(foreign[0])
    problems = [result["problem"].decode() for result in results if "problem" in result]
    if problems:
        raise InvalidInputError(problems[0])
    ended = [result["failure"].decode() for result in results if "failure" in result]
    if ended:
        raise RankError(ended[0])
    failed = {rank: result["error"].decode() for rank, result in enumerate(results) if "error" in result}
    if failed:
        first = min(failed, key=lambda rank: (HOROVOD_ECHO in failed[rank], rank))
        host = results[first].get("host", b"?").decode()
        raise RankError(_message(f"Rank {first} on {host} failed.", failed[first], results[first].get("log", b"")))


def _message(what: str, traceback: str, log: bytes) -> str:
    tail = log.decode(errors="replace").splitlines()[-MESSAGE_TAIL:]
    parts = [what, traceback.strip(), "Its last output:\n" + "\n".join(tail) if tail else ""]
    return "\n".join(part for part in parts if part)
