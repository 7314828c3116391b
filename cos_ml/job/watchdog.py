"""Whether a rank makes progress, as its barrier task sees it (barrier task side)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from cos_ml.rank.heartbeat import BEAT, JOINING, STARTING, WAITING

__all__ = []

SILENT = 5.0  # seconds without one, after which a rank does not run at all
RECENT = 5.0  # seconds over which a rank's use of the processor is looked at: before them it may have built its step
START = 300.0  # seconds that these two may take at least: all ranks of a host import TensorFlow at once
BUSY = 0.2  # of a processor: whoever waits uses less, and whoever loops may have to share one


class Listener:
    """What a barrier task knows of its rank (task side).

    Args:
        timeout: seconds that a rank may take for one thing.
        stopped: tells whether its process is stopped, as by SIGSTOP.
        clock: gives seconds; tests have their own.
    """

    def __init__(
        self, timeout: float, stopped: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout, self._stopped, self._clock = timeout, stopped, clock
        self._heard = self._moved = clock()
        self._done = -1
        self._used: deque[tuple[float, float]] = deque()  # of late: when heard, seconds of processor until then
        self.phase = STARTING

    def hear(self, event: dict[str, Any]) -> None:
        """Take note of one of its events."""
        self._heard = self._clock()
        moves = event["event"] != "alive" or event["done"] != self._done
        if event["event"] == "alive":
            self.phase, self._done = event["phase"], event["done"]
            self._used.append((self._heard, event["processor"]))
            while len(self._used) > 2 and self._used[1][0] <= self._heard - RECENT:
                self._used.popleft()
        if moves:
            self._moved = self._heard

    @property
    def silent(self) -> bool:
        """Whether it does not even say that it lives."""
        return self._clock() - self._heard > SILENT

    @property
    def busy(self) -> bool:
        """Whether it computes, as far as it has told of late."""
        if not self._used:
            return False
        (before, used_before), (now, used) = self._used[0], self._used[-1]
        return used - used_before > BUSY * (now - before)

    @property
    def stalled(self) -> bool:
        """Whether it has taken too long, and is the one that hangs rather than one that waits for it."""
        patience = self._timeout
        if self.phase in (STARTING, JOINING):  # silent, too, when the import of a large library lets no thread run
            patience = max(START, patience) if not self.silent or not self._stopped() else patience
        elif not self.silent and not self.busy and self.phase.startswith(WAITING):
            patience += max(2 * BEAT, self._timeout / 4)
        return self._clock() - self._moved > patience
