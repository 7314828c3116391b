"""Whether a rank still gets on with its work (rank and task side).

Each rank says once a second what it is at, and its barrier task listens. A step ends when all ranks have done it, so
when one hangs none gets on. The ones that may only wait for others, those that train and use no processor, are given a
little longer, so that one that is stopped, loops or hangs elsewhere is named. Of ranks that all wait, any may be.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection
from typing import Any

import psutil

__all__ = ["BEAT", "JOINING", "WAITING", "Listener", "Pulse"]

BEAT = 1.0  # seconds between two signs of life
STARTING, JOINING = "starting", "joining the other ranks"
WAITING = "training"  # what a rank is at when others may be the ones that keep it


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
