"""What a barrier job is given and what it returns, as plain values (driver and barrier task side)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from cos_ml.data.parquet import Shards
from cos_ml.errors import REPORTED, RankError
from cos_ml.job.progress import Address
from cos_ml.spec import TrainSpec

__all__ = [
    "CANCELLED",
    "PARTIAL_RETRY",
    "PEERS_LOST",
    "UNKNOWN",
    "Job",
    "Outcome",
    "peers_lost",
    "raise_reported",
    "with_log_tail",
]

LOG_LINES = 30  # lines of a rank's output in an exception
CANCELLED = "Horovod has been shut down"  # in the errors of all ranks but the one that failed
PARTIAL_RETRY = "Spark repeated only some of the tasks."
PEERS_LOST = "Ranks lost their connections; none reported an error of its own."
UNKNOWN = "The cause is unknown: Spark does not report it."


@dataclass(frozen=True)
class Job:
    """What all ranks of one barrier job are given.

    Attributes:
        function: "module:name" of the function that each rank runs. It takes the start message, a function that waits
            for the other ranks, and a Heartbeat, and returns named bytes.
        specs: what to train, one after the other on the same rows.
        networks: the archives to start from; specs refer to them by index.
        shards: files that the ranks read; None if they get the rows of the DataFrame.
        progress: where the driver listens; None for nowhere.
        versions: the driver's versions, which the executors must share; empty if unknown, as with Spark Connect.
        secret: what the job's tasks know, and nobody else.
        gang: where the driver gangs the tasks; None for those of a barrier stage.
        idle_timeout: seconds without ranks after which an executor's rank server ends; 0 for none.
        ports: those that ranks and tasks may listen on; None for any.
    """

    function: str
    specs: tuple[TrainSpec, ...]
    networks: tuple[bytes, ...]
    shards: Shards | None = None
    progress: Address | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    idle_timeout: float = 0.0
    ports: range | None = None
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)  # 128 bits
    gang: Address | None = None


@dataclass(frozen=True)
class Outcome:
    """What each rank's function returned, and the causes of failed attempts, as far as Spark reports them."""

    results: list[dict[str, bytes]]
    failures: list[str]

    @property
    def notes(self) -> list[str]:
        """The warnings of all ranks."""
        return [note for result in self.results for note in json.loads(result.get("notes", b"[]"))]


def peers_lost(results: Sequence[dict[str, bytes]]) -> bool:
    """Whether ranks failed only because they lost their connections: a retry may help."""
    if any(kind in result for result in results for kind in REPORTED):
        return False
    tracebacks = [result["traceback"].decode() for result in results if "traceback" in result]
    return bool(tracebacks) and all(CANCELLED in text for text in tracebacks)


def raise_reported(results: Sequence[dict[str, bytes]]) -> None:
    """Raise the error that tasks or ranks report, if any: the cause rather than its consequences on other ranks."""
    for kind, error in REPORTED.items():
        for result in results:
            if kind in result:
                raise error(result[kind].decode())
    failed = {rank: result["traceback"].decode() for rank, result in enumerate(results) if "traceback" in result}
    if failed:
        first = min(failed, key=lambda rank: (CANCELLED in failed[rank], rank))
        host, log = results[first].get("host", b"?").decode(), results[first].get("log", b"")
        raise RankError(with_log_tail(f"Rank {first} on {host} failed.\n{failed[first].strip()}", log))


def with_log_tail(message: str, log: bytes) -> str:
    """A message with the last lines of a rank's output."""
    lines = log.decode(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join([message, "Last output:", *lines]) if lines else message
