"""What a rank knows of itself and of the other ranks (rank side)."""

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
        communicator: connects it to the other ranks.
        rank: its number.
        tasks: rank -> what its barrier task sent when all met.
        timer: measures the seconds of each phase.
        heartbeat: sends events to this rank's task.
        candidate: which candidate of a grid it trains, and how many there are.
    """

    communicator: Communicator
    rank: int
    tasks: list[dict[str, Any]]
    timer: PhaseTimer
    heartbeat: Heartbeat
    candidate: dict[str, int] = field(default_factory=dict)

    @property
    def partition(self) -> int:
        """The partition whose rows it has; unlike the rank, it does not depend on which hosts Spark finds free."""
        return self.tasks[self.rank]["partition"]

    @property
    def digest(self) -> list[Any]:
        """The digests of all ranks' rows."""
        return [task["digest"] for task in sorted(self.tasks, key=lambda task: task["partition"])]

    def report(self, **event: Any) -> None:
        """Show an event at the driver; rank 0 reports for all."""
        if self.rank == 0:
            self.heartbeat.send(**event, **self.candidate)


@dataclass
class TrainingLog:
    """The course of a training so far.

    Attributes:
        history: metric -> its value by epoch.
        seconds: of each epoch.
    """

    history: dict[str, list[float]] = field(default_factory=dict, init=False)
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
