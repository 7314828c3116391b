"""The heartbeat of a rank: its phase, its progress and the processor time it uses, once a second (rank side).

The barrier task's side is ``cos_ml/job/watchdog.py``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection
from typing import Any

import psutil

__all__ = ["INTERVAL", "JOINING", "STARTING", "TRAINING", "Heartbeat"]

INTERVAL = 1.0  # seconds between two heartbeats
STARTING, JOINING = "starting", "joining the other ranks"
TRAINING = "training"  # the phase in which a rank may only be waiting for others


class Heartbeat:
    """Sends heartbeats and events as lines of JSON to the barrier task.

    Args:
        file: the pipe to the task.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._lock = file, threading.Lock()
        self._phase, self._done = STARTING, 0
        self._excluded: Collection[int] = ()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def exclude_threads(self, threads: Collection[int]) -> None:
        """Do not count the processor time of these threads, which use it to wait for other ranks."""
        self._excluded = frozenset(threads)

    def send(self, **event: Any) -> None:
        """Send one event."""
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()

    def enter(self, phase: str) -> None:
        """Enter a phase, or make progress in it."""
        self._phase = phase
        self._done += 1

    def close(self) -> None:
        """Stop the heartbeats."""
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.send(event="alive", phase=self._phase, done=self._done, processor=self._processor())

    def _processor(self) -> float:
        """Seconds of processor time that this process has used, without the excluded threads."""
        used = time.process_time()
        for thread in psutil.Process().threads() if self._excluded else ():
            if thread.id in self._excluded:
                used -= thread.user_time + thread.system_time
        return used
