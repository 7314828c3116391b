"""Whether a rank still gets on with its work (rank and task side).

Each rank says once a second what it is at, and its barrier task listens. A step ends when all ranks have done it, so
when one hangs none gets on. The ones that may only wait for others, those that train and use no processor, are given a
little longer, so that one that is stopped, loops or hangs elsewhere is named. Of ranks that all wait, any may be.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import psutil

__all__ = ["BEAT", "JOINING", "WAITING", "Listener", "Pulse"]

BEAT = 1.0  # seconds between two signs of life
SILENT = 5.0  # seconds without one, after which a rank does not run at all
RECENT = 5.0  # seconds over which a rank's use of the processor is looked at: before them it may have built its step
STARTING, JOINING = "starting", "joining the other ranks"
START = 300.0  # seconds that these two may take at least: all ranks of a host import TensorFlow at once
WAITING = "training"  # what a rank is at when others may be the ones that keep it
BUSY = 0.2  # of a processor: whoever waits uses less, and whoever loops may have to share one


class Pulse:
    """Says what this rank is at, as lines of JSON to the barrier task (rank side).

    Args:
        file: the pipe to the task.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._lock = file, threading.Lock()
        self._phase, self._done = STARTING, 0
        self._waiting: Collection[int] = ()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def without(self, threads: Collection[int]) -> None:
        """Do not count the processor's time that these threads take, for they take it to wait for other ranks."""
        self._waiting = frozenset(threads)

    def report(self, **event: Any) -> None:
        """Send one event."""
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()

    def at(self, phase: str) -> None:
        """Say what this rank does from now on; also that it has got on."""
        self._phase = phase
        self._done += 1

    def close(self) -> None:
        """Say no more."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT):
            self.report(event="alive", phase=self._phase, done=self._done, processor=self._processor())

    def _processor(self) -> float:
        """Seconds of it that this process has used, without the threads that wait."""
        used = time.process_time()
        for thread in psutil.Process().threads() if self._waiting else ():
            if thread.id in self._waiting:
                used -= thread.user_time + thread.system_time
        return used


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
