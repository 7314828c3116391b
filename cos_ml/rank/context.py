"""What a rank knows of itself and the others (rank side)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from cos_ml.rank.collectives import Ranks
from cos_ml.rank.heartbeat import Pulse

__all__ = []


@dataclass
class Here:
    """This rank, and what it knows of the others.

    Attributes:
        ranks: all of them, connected.
        rank: which one this is.
        tasks: what each rank's task said when they met, by rank.
        clock: counts the seconds of each phase.
        pulse: goes to this rank's task.
        candidate: which one it trains, of how many.
    """

    ranks: Ranks
    rank: int
    tasks: list[dict[str, Any]]
    clock: Clock
    pulse: Pulse
    candidate: dict[str, int] = field(default_factory=dict)

    @property
    def partition(self) -> int:
        """Which rows it has; unlike the rank, it does not change with the hosts that Spark finds free."""
        return self.tasks[self.rank]["partition"]

    @property
    def digest(self) -> list[Any]:
        """Of all ranks' rows."""
        return [task["digest"] for task in sorted(self.tasks, key=lambda task: task["partition"])]

    def tell(self, **event: Any) -> None:
        """Let the person at the driver see something; rank 0 speaks for all."""
        if self.rank == 0:
            self.pulse.report(**event, **self.candidate)


class Clock:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def forget(self, *phases: str) -> None:
        """Count these phases from 0 again."""
        for phase in phases:
            self.seconds.pop(phase, None)

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as ``phase``."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
