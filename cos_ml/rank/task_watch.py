"""A rank's standard input: what its task sends, and whether that still runs (rank side).

A task that is stopped, as by SIGSTOP, holds its rank, the other ranks and the driver for ever: Spark waits for its
Python worker without a limit. Only its own rank can notice, to which it sends an empty line each second.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import threading
from typing import Any

from cos_ml.rank.heartbeat import INTERVAL, Heartbeat

__all__ = ["TaskWatch"]

GRACE = 5  # seconds that a task which was stopped has to go on


class TaskWatch:
    """Receives what the task sends, in a thread; this process ends when the task does.

    A task that is silent for too long is woken (SIGCONT), told so, and reports it as the error of the attempt. One that
    stays silent is killed, which Spark notices. Seconds are counted, not read from a clock: a host that sleeps, or is
    paused, is no silent task.

    Args:
        descriptor: standard input.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor, self._messages = descriptor, queue.SimpleQueue[bytes]()
        self._silent, self._limit, self._task = 0, 0, -1
        self._heartbeat: Heartbeat | None = None
        self._heard = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        message: dict[str, Any] = json.loads(self._messages.get())
        return message

    def begin(self, task: int, limit: float, heartbeat: Heartbeat) -> None:
        """Watch the process ``task``, which may be silent for ``limit`` seconds; ``heartbeat`` sends it events."""
        self._heartbeat, self._limit = heartbeat, max(1, round(limit / INTERVAL))
        with contextlib.suppress(OSError):  # it has just ended, which the thread notices
            self._task = os.pidfd_open(task)

    def finish(self) -> None:
        """Tell the task that the result is there, and wait for its answer: nobody else notices that it is stopped."""
        if self._heartbeat is not None:
            self._heard.clear()
            self._send("end")
            self._heard.wait()

    def _run(self) -> None:
        poll, unfinished = select.poll(), b""
        poll.register(self._descriptor, select.POLLIN)
        while True:
            if not poll.poll(INTERVAL * 1000):
                self._silent += 1
                self._check()
                continue
            data = os.read(self._descriptor, 64 << 10)
            if not data:
                os._exit(1)  # the task is gone; PR_SET_PDEATHSIG covers only a parent, on Linux
            *lines, unfinished = (unfinished + data).split(b"\n")
            for line in filter(None, lines):
                self._messages.put(line)
            self._hear()

    def _hear(self) -> None:
        if self._limit and self._silent >= self._limit:
            self._send("stopped", seconds=self._silent * INTERVAL)
        self._silent = 0
        self._heard.set()

    def _send(self, event: str, **more: float) -> None:
        assert self._heartbeat is not None
        with contextlib.suppress(OSError):  # the task is gone, or going
            self._heartbeat.send(event=event, **more)

    def _check(self) -> None:
        """Wake a task that is silent for too long, then kill it."""
        if self._task < 0 or self._silent < self._limit:
            return
        if self._silent == self._limit:
            print(f"The task gave no sign of life for {self._silent} s: it is continued (SIGCONT).", flush=True)
            self._signal(signal.SIGCONT)
        elif self._silent == self._limit + GRACE:
            print("It gives none still: it is killed, and this rank ends.", flush=True)
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            signal.pidfd_send_signal(self._task, number)
