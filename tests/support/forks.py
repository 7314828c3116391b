"""Ranks that are forks of a process that has imported what ranks import: they train 2.5 s sooner than new processes.

A fork runs the whole of ``cos_ml.rank`` with the environment, the descriptors and the log that a new process would
have; what it saves is the imports alone. The process that forks must not have started TensorFlow's runtime.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any


class ForkedRank:
    """What ``cos_ml.job.child`` needs of ``subprocess.Popen``, for a fork of this process that is a rank."""

    def __init__(self, environment: dict[str, str], descriptors: Sequence[int], log: Any) -> None:
        commands, ours = os.pipe()
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            run_rank(environment, descriptors, commands, log.fileno())
        os.close(commands)
        self.stdin = os.fdopen(ours, "wb")

    def poll(self) -> int | None:
        """The exit status, where it has ended: negative for a signal."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns the exit status."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self._reap(0 if until is None else os.WNOHANG)) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked rank", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kill it and all that it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def server_memory(self) -> dict[int, int]:
        """There is no rank server."""
        return {}

    def close(self) -> None:
        """Close its standard input."""
        self.stdin.close()

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run_rank(environment: dict[str, str], descriptors: Sequence[int], commands: int, log: int) -> None:
    """Become a rank, in a fork: never returns."""
    try:
        gc.freeze()  # the worker's objects stay: their descriptors are this process's no more
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for target, descriptor in enumerate((commands, log, log)):
            os.dup2(descriptor, target)
        close_all_but({0, 1, 2, *descriptors})
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
        sys.stdout, sys.stderr = (os.fdopen(target, "w", 1, closefd=False) for target in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        from cos_ml.rank.__main__ import main

        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # main() ends with another status


def close_all_but(kept: set[int]) -> None:
    """Close this process's other descriptors, as a new process does."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)
    for descriptor in kept:
        os.set_inheritable(descriptor, True)


def import_what_ranks_import() -> None:
    """Import it into the daemon; it touches no device and starts no thread."""
    from cos_ml.network.keras_import import import_keras
    from cos_ml.rank.__main__ import UNUSED

    import_keras(without=UNUSED)
    import horovod.tensorflow  # noqa: F401

    import cos_ml.rank.train  # noqa: F401

    with contextlib.suppress(ImportError):  # of the other stack
        import petastorm.reader  # noqa: F401
    gc.freeze()
