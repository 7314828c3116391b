"""What a rank knows about itself and the other ranks (rank side)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from cos_ml.rank.collectives import Communicator
from cos_ml.rank.heartbeat import Heartbeat

__all__ = ["PhaseTimer", "RankContext", "TrainingLog"]


@dataclass
class RankContext:
    """This rank and its connections.

    Attributes:
        communicator: connects this rank to the others.
        rank: the number of this rank.
        tasks: rank -> what its barrier task sent to the others.
        timer: measures the seconds of each phase.
        heartbeat: sends events to this rank's task.
        candidate: the number of the candidate being trained, and the number of candidates.
    """

    communicator: Communicator
    rank: int
    tasks: list[dict[str, Any]]
    timer: PhaseTimer
    heartbeat: Heartbeat
    candidate: dict[str, int] = field(default_factory=dict)

    @property
    def partition(self) -> int:
        """The partition whose rows this rank has; unlike the rank, it does not depend on where Spark runs tasks."""
        return self.tasks[self.rank]["partition"]

    @property
    def digest(self) -> list[Any]:
        """The digests of all ranks' rows, by partition."""
        return [task["digest"] for task in sorted(self.tasks, key=lambda task: task["partition"])]

    def report(self, **event: Any) -> None:
        """Send an event to the driver; only rank 0 does, for all ranks."""
        if self.rank == 0:
            self.heartbeat.send(**event, **self.candidate)


@dataclass
class TrainingLog:
    """The epochs of a training so far.

    Attributes:
        history: metric -> its value after each epoch: a number, or a list of them for a metric with several.
        seconds: the duration of each epoch.
    """

    history: dict[str, list[Any]] = field(default_factory=dict, init=False)
    seconds: list[float] = field(default_factory=list, init=False)


class PhaseTimer:
    """Seconds spent in each phase.

    Attributes:
        seconds: phase -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def reset(self, *phases: str) -> None:
        """Count these phases from 0 again."""
        for phase in phases:
            self.seconds.pop(phase, None)

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to ``phase``."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
