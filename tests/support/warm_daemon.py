"""A daemon of Spark's Python workers in which a rank is a fork, and not a new process that imports TensorFlow first.

A test's ranks then train 2.5 s earlier. Spark runs this module in place of ``pyspark.daemon`` (the setting
``spark.python.daemon.module``). It behaves like that one, unless ``RANKS`` in the environment of the workers is
"forked": see ``tests/support/sessions.py``. A fork runs the whole of ``cos_ml.rank`` with the environment, the
descriptors and the log that a new process would have; what it saves is the imports alone.
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
from pathlib import Path
from typing import Any

RANKS = "COS_ML_TEST_RANKS"


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


def gather_by_files() -> None:
    """Let the tasks of a stage's first attempt exchange messages by files: Spark looks once a second if all are there.

    A retry exchanges them as Spark does; it knows itself by what the first attempt has left.
    """
    infos, all_gather = BarrierTaskContext.getTaskInfos, BarrierTaskContext.allGather
    attempts: dict[int, bool] = {}  # by the task's unique number: whether it is of a first attempt

    def file_of(context: Any, task: int) -> Path:
        return Path(local_folder(), f"pyspark-gather-{os.getppid()}-{context.stageId()}-{task}")

    def get_task_infos(context: Any) -> list[Any]:
        with contextlib.suppress(FileExistsError):
            Path(f"{file_of(context, context.partitionId())}-started").touch(exist_ok=False)
            attempts[context.taskAttemptId()] = True
        return infos(context)

    def gather(context: Any, message: str = "") -> list[str]:
        if context.taskAttemptId() not in attempts:
            return all_gather(context, message)
        own = file_of(context, context.partitionId())
        Path(f"{own}-part").write_text(message)
        os.replace(f"{own}-part", own)
        files = [file_of(context, task) for task in range(len(infos(context)))]
        while not all(file.exists() for file in files):
            time.sleep(0.005)
        return [file.read_text() for file in files]

    BarrierTaskContext.getTaskInfos, BarrierTaskContext.allGather = get_task_infos, gather


if __name__ == "__main__":
    if os.environ.get(RANKS) == "forked":
        port = os.dup(1)  # where the daemon writes its port, and nothing else may be written
        os.dup2(2, 1)
        import_what_ranks_import()
        from pyspark import BarrierTaskContext

        from cos_ml.data.spool import local_folder
        from cos_ml.job import child

        child.start_process = ForkedRank
        gather_by_files()
        os.dup2(port, 1)
        os.close(port)
    from pyspark.daemon import manager

    manager()
