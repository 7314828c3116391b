"""The child process of a barrier task, which is a rank (barrier task side)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any

import psutil
from pyspark import BarrierTaskContext

from cos_ml import gpus
from cos_ml.data import blobs
from cos_ml.data.parquet import Shard
from cos_ml.data.spool import Spool, local_folder
from cos_ml.errors import RankError
from cos_ml.job import progress, watchdog
from cos_ml.job.auth import redacted
from cos_ml.job.barrier import Job
from cos_ml.job.messages import Meeting, _message
from cos_ml.job.placement import Place
from cos_ml.job.temp_dir import Scratch
from cos_ml.rank import heartbeat
from cos_ml.spec import TrainSpec

__all__ = []

LOG_TAIL = 64 << 10  # bytes of a rank's output that are kept
STACK_SIGNAL = signal.SIGUSR1  # a rank then writes the stack of all its threads to its log
STACK_TIME = 1.0  # seconds that it has for that


class RankProcess:
    """The child process of one barrier task, which is killed when the task leaves the ``with`` block."""

    def __init__(self, job: Job, here: Place, spool: Spool | Shard) -> None:
        self.here, self.spool, self.stall_timeout = here, spool, job.specs[0].stall_timeout
        self.secret = ""
        self.results, self.networks, self.log = (tempfile.TemporaryFile(dir=local_folder()) for _ in range(3))
        self.scratch = Scratch(local_folder())  # what libraries leave
        blobs.write(self.networks, {str(index): archive for index, archive in enumerate(job.networks)})
        events, events_of_child = os.pipe()
        start = {
            "function": job.function, "specs": [spec.to_json() for spec in job.specs], "place": asdict(here),
            "partition": BarrierTaskContext.get().partitionId(),
            "spool": spool.descriptors(), "shards": job.shards and job.shards.to_plain(),
            "networks": self.networks.fileno(), "results": self.results.fileno(), "events": events_of_child,
        }  # fmt: skip
        inherited = [events_of_child, self.networks.fileno(), self.results.fileno()]
        inherited += [fd for part in spool.descriptors().values() for fd in part.values()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cos_ml.rank"],
            env=_child_environment(job.specs[0], here) | {"TMPDIR": self.scratch.path},
            pass_fds=inherited, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log,
            start_new_session=True,  # so that what it forks can be ended with it
        )  # fmt: skip
        self.scratch.ends(self.process.pid)
        os.close(events_of_child)
        self.events = os.fdopen(events, "rb")
        self.told = self._told()
        self._say(start)

    def ready(self) -> bool:
        """Wait until the rank can meet the others; False where it has failed, and has said how in its result.

        Raises:
            RankError: it died without a word, or does not get on.
        """
        self.listener = watchdog.Listener(self.stall_timeout, self._stopped)
        if any(event["event"] == "ready" for event in self.told):
            return True
        self.result([])
        return False

    def train(self, meeting: Meeting, reporter: progress.Reporter, notes: list[str]) -> dict[str, bytes]:
        """Let the rank begin, pass on what it reports, and return what it leaves.

        Raises:
            RankError: it died without a word, or does not get on; Spark then tries the whole stage again.
        """
        self.secret = meeting.secret
        self._say({"tasks": meeting.tasks, "environment": meeting.environment})
        self.listener = watchdog.Listener(self.stall_timeout, self._stopped)  # it has waited for the others until now
        for event in self.told:
            if event["event"] == "note":
                notes = [*notes, event["text"]]
            if event["event"] == "joined":
                meeting.close()  # all ranks are connected: nobody has to be answered any more
            else:
                reporter.send(event)
        return self.result(notes)

    def result(self, notes: list[str]) -> dict[str, bytes]:
        """What the rank has left at its end, with all notes as "notes".

        Raises:
            RankError: it died without a word.
        """
        code = self.process.wait()
        log = self._log()
        result = blobs.read(self.results)
        if code or not result:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            hint = " The host may be out of memory." if code == -signal.SIGKILL else ""
            raise RankError(_message(f"Rank {self.here.rank} on {self.here.host} {how}.{hint}", "", log))
        return result | {"log": log, "notes": json.dumps(notes).encode()}

    def _told(self) -> Iterator[dict[str, Any]]:
        """What the rank reports beside that it lives, until it ends.

        Raises:
            RankError: it does not get on.
        """
        unfinished, poll = b"", select.poll()
        poll.register(self.events, select.POLLIN)
        while True:
            if poll.poll(heartbeat.BEAT * 1000):
                data = os.read(self.events.fileno(), 64 << 10)
                if not data:
                    return
                *lines, unfinished = (unfinished + data).split(b"\n")
                for event in map(json.loads, lines):
                    self.listener.hear(event)
                    if event["event"] != "alive":
                        yield event
            elif self.process.poll() is not None and not poll.poll(0):  # what it has forked holds the other end
                return
            if self.listener.stalled:
                raise self._stalled()

    def _stopped(self) -> bool:
        return psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED

    def _stalled(self) -> RankError:
        """The error that says what this rank hangs at, with the stack of all its threads."""
        before = self._log_size()
        stopped = self._stopped()
        if not stopped:
            self.process.send_signal(STACK_SIGNAL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACK_TIME)  # it goes on; its log gets the stack
        stack = self._log(self._log_size() - before).decode(errors="replace")
        state = "The process is stopped (SIGSTOP)." if stopped else f"Its stack:\n{stack}"
        return RankError(
            f"Rank {self.here.rank} on {self.here.host} made no progress for {self.stall_timeout:g} s (Param "
            f"stallTimeout). It was at: {self.listener.phase}. {state}".strip()
        )

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already; its exit status says how

    def _log_size(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def _log(self, tail: int = LOG_TAIL) -> bytes:
        """The last bytes of what it printed; the offset in the file is the rank's, and stays."""
        size = self._log_size()
        return redacted(os.pread(self.log.fileno(), tail, max(0, size - tail)), self.secret)

    def __enter__(self) -> RankProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.scratch.close()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it did not live to read
            self.process.stdin.close()
        for file in (self.events, self.results, self.networks, self.log):
            file.close()
        self.spool.close()


def _child_environment(spec: TrainSpec, here: Place) -> dict[str, str]:
    """This worker's environment, with its import path and quiet TensorFlow; the task's own GPUs and no others."""
    environment = os.environ | spec.variables | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    environment.pop("OMP_NUM_THREADS", None)  # Spark sets it to spark.task.cpus for the Python worker
    assigned = BarrierTaskContext.get().resources().get("gpu")
    addresses = assigned.addresses if assigned else None
    return environment | gpus.environment(spec.use_gpu, addresses, here.local_rank, environment)
