"""Detects ranks that make no progress (barrier task side).

A step ends when all ranks have finished it, so one rank that hangs stops all. Ranks that train and use no processor may
only be waiting for it: they get a little longer, so that the rank that is stopped, loops or hangs elsewhere is named in
the error. Where all ranks wait, any of them may be.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from cos_ml.rank.heartbeat import INTERVAL, JOINING, STARTING, TRAINING

__all__ = ["Watchdog"]

SILENT = 5.0  # seconds without a heartbeat after which a rank does not run at all
RECENT = 5.0  # seconds over which processor use is measured: before them the rank may have traced its step
START = 300.0  # seconds that starting and joining may take at least: all ranks of a host import TensorFlow at once
BUSY = 0.2  # of a processor: a rank that waits uses less, and one that loops may have to share a processor


class Watchdog:
    """What a barrier task knows of its rank's progress.

    Args:
        timeout: seconds that one piece of work may take.
        is_stopped: returns whether the process is stopped, as by SIGSTOP.
        clock: returns seconds; tests replace it.

    Attributes:
        phase: the rank's phase in its last heartbeat.
    """

    def __init__(self, timeout: float, is_stopped: Callable[[], bool], clock: Callable[[], float] = time.monotonic):
        self._timeout, self._is_stopped, self._clock = timeout, is_stopped, clock
        self._heard = self._progressed = clock()
        self._done = -1
        self._used: deque[tuple[float, float]] = deque()  # recent heartbeats: time, processor seconds used until then
        self.phase = STARTING

    def record(self, event: dict[str, Any]) -> None:
        """Record one of the rank's events, heartbeats included."""
        self._heard = self._clock()
        progress = event["event"] != "alive" or event["done"] != self._done
        if event["event"] == "alive":
            self.phase, self._done = event["phase"], event["done"]
            self._used.append((self._heard, event["processor"]))
            while len(self._used) > 2 and self._used[1][0] <= self._heard - RECENT:
                self._used.popleft()
        if progress:
            self._progressed = self._heard

    @property
    def silent(self) -> bool:
        """Whether heartbeats have stopped."""
        return self._clock() - self._heard > SILENT

    @property
    def busy(self) -> bool:
        """Whether the rank computes, by its recent heartbeats."""
        if not self._used:
            return False
        (before, used_before), (now, used) = self._used[0], self._used[-1]
        return used - used_before > BUSY * (now - before)

    @property
    def waits(self) -> bool:
        """Whether the rank may only be waiting for others."""
        return not self.silent and not self.busy and self.phase.startswith(TRAINING)

    @property
    def stalled(self) -> bool:
        """Whether the rank has made no progress for too long, and is the one that hangs rather than waits."""
        patience = self._timeout
        if self.phase in (STARTING, JOINING):  # may be silent: the import of a large library lets no thread run
            patience = max(START, patience) if not self.silent or not self._is_stopped() else patience
        elif self.waits:
            patience += max(2 * INTERVAL, self._timeout / 4)
        return self._clock() - self._progressed > patience
