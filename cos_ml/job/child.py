"""The child process of a barrier task, which is a rank (barrier task side)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from cos_ml import gpus
from cos_ml.data import blobs
from cos_ml.data.spool import Spool, local_folder
from cos_ml.errors import RankError
from cos_ml.job import reach
from cos_ml.job.messages import CANCELLED, Job, with_log_tail
from cos_ml.job.peers import PeerInfo
from cos_ml.job.placement import RankInfo
from cos_ml.job.progress import Reporter
from cos_ml.job.rank_server import server_memory, start_forked
from cos_ml.job.temp_dir import TempDir
from cos_ml.job.watchdog import Watchdog
from cos_ml.python_worker import current_task
from cos_ml.rank.heartbeat import INTERVAL
from cos_ml.spec import TrainSpec

__all__ = ["ChildProcess"]

LOG_BYTES = 64 << 10  # of the end of a rank's output, which are returned
SPARK_JAR = re.compile(r"/spark-core_[^/]*\.jar$")  # which PySpark puts on the path, and no Python is in
STACK_SIGNAL = signal.SIGUSR1  # on which a rank writes the stacks of its threads to its log
STACK_TIME = 1.0  # seconds that it may take for them


class ChildProcess:
    """The rank of one barrier task, from its start until ``close`` kills it; its ``spool`` is closed with it."""

    def __init__(self, job: Job, rank_info: RankInfo, spool: Spool) -> None:
        self.rank_info, self.spool, self.stall_timeout = rank_info, spool, job.specs[0].stall_timeout
        self.secret = self.joining = ""
        self.peers: PeerInfo | None = None
        self.results, self.networks, self.log = (tempfile.TemporaryFile(dir=local_folder()) for _ in range(3))
        self.temp_dir = TempDir(local_folder())
        blobs.write(self.networks, {str(index): archive for index, archive in enumerate(job.networks)})
        events, child_events = os.pipe()
        start = {
            "function": job.function, "specs": [spec.dumps() for spec in job.specs], "rank_info": asdict(rank_info),
            "partition": current_task().partitionId(), "task": os.getpid(), "stall_timeout": self.stall_timeout,
            "spool": spool.descriptors(), "shards": job.shards and asdict(job.shards),
            "networks": self.networks.fileno(), "results": self.results.fileno(), "events": child_events,
        }  # fmt: skip
        descriptors = [child_events, self.networks.fileno(), self.results.fileno()]
        descriptors += [fd for part in spool.descriptors().values() for fd in part.values()]
        environment = _environment(job.specs[0], rank_info) | {"TMPDIR": self.temp_dir.path}
        extra = ["petastorm.reader"] if job.shards and job.shards.reader == "petastorm" else []
        forked = start_forked(environment, descriptors, self.log, job.idle_timeout, extra)
        self.process: Any = forked or start_process(environment, descriptors, self.log)
        self.guarded = False
        self._guard()
        os.close(child_events)
        self.pipe = os.fdopen(events, "rb")
        self.events = self._read_events()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._send(json.dumps(start))
        self._beating = threading.Thread(target=self._beat, name="cos_ml sign of life", daemon=True)
        self._beating.start()

    def ready(self) -> bool:
        """Wait until the rank can join the others; returns False if it has failed with a result.

        Raises:
            RankError: it died without a result, or makes no progress.
        """
        self.watchdog = Watchdog(self.stall_timeout, self._is_stopped)
        if any(event["event"] == "ready" for event in self.events):
            return True
        self.result([])
        return False

    def train(self, peers: PeerInfo, reporter: Reporter, notes: list[str]) -> dict[str, bytes]:
        """Let the rank begin, report its events, and return its result.

        Raises:
            RankError: it died without a result, or makes no progress; Spark then retries the whole stage.
        """
        self.peers, self.secret, self.joining = peers, peers.secret, peers.joining_hint()
        self._send(json.dumps({"tasks": peers.tasks, "environment": peers.environment}))
        self.watchdog = Watchdog(self.stall_timeout, self._is_stopped)  # its wait for the others does not count
        for event in self.events:
            if event["event"] == "note":
                notes = [*notes, event["text"]]
            if event["event"] == "joined":
                peers.close()  # all ranks are connected: the rendezvous server is done
                self.joining = ""
            else:
                reporter.send(event)
        return self.result(notes)

    def result(self, notes: list[str]) -> dict[str, bytes]:
        """Wait for the rank's end; returns its result, its log, and all notes.

        Raises:
            RankError: it died without a result.
        """
        code = self.process.wait()
        log = self._read_log()
        result = {} if code else blobs.read(self.results)  # a rank that was killed may have written a part
        if not result:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            # Where Gloo can't connect, Horovod aborts.
            hints = {signal.SIGKILL: " The host may be out of memory.", signal.SIGABRT: self.joining}
            hint = hints.get(-code, "")
            hint += self._lost_hosts() if hint and code == -signal.SIGABRT else ""
            raise RankError(with_log_tail(f"Rank {self.rank_info.rank} on {self.rank_info.host} {how}.{hint}", log))
        if CANCELLED in result.get("traceback", b"").decode() and (lost := self._lost_hosts()):
            raise RankError(f"Rank {self.rank_info.rank} on {self.rank_info.host} lost its connections.{lost}")
        server = server_memory(self.process.server)
        return result | {"log": log, "notes": json.dumps(notes).encode(), "server": json.dumps(server).encode()}

    def close(self) -> None:
        """Kill the rank and all that it has forked, and remove its files."""
        self.process.kill_group()
        self.temp_dir.close()
        self.process.wait()
        self._keep_log()
        self._over.set()
        self._beating.join()
        with contextlib.suppress(BrokenPipeError):  # it ended before it had read everything
            self.process.close()
        for file in (self.pipe, self.results, self.networks, self.log):
            file.close()
        self.spool.close()

    def _keep_log(self) -> None:
        """Copy the rank's output to where YARN keeps the logs of this executor's container, if it is in one."""
        folder = os.environ.get("LOG_DIRS", "").split(",")[0]
        if folder and "CONTAINER_ID" in os.environ and self._log_size():
            name = f"rank-{self.rank_info.rank}-task-{current_task().taskAttemptId()}.log"
            with contextlib.suppress(OSError):
                Path(folder, name).write_bytes(self._read_log(self._log_size()))

    def _guard(self) -> None:
        """Tell the shell that removes the folder which process is the rank, once that is known."""
        if not self.guarded and self.process.pid:
            self.temp_dir.kill_group(self.process.pid)
            self.guarded = True

    def _read_events(self) -> Iterator[dict[str, Any]]:
        """Yield the rank's events except heartbeats until it ends; raises RankError if it makes no progress."""
        unfinished, poll = b"", select.poll()
        poll.register(self.pipe, select.POLLIN)
        while True:
            arrived = poll.poll(INTERVAL * 1000)
            ended = self.process.poll() is not None
            self._guard()
            if arrived:
                data = os.read(self.pipe.fileno(), 64 << 10)
                if not data:
                    return
                *lines, unfinished = (unfinished + data).split(b"\n")
                for event in map(json.loads, lines):
                    self.watchdog.record(event)
                    if event["event"] == "stopped":
                        raise self._was_stopped(event["seconds"])
                    if event["event"] == "end":
                        self._send()  # what the rank waits for
                    elif event["event"] != "alive":
                        yield event
            elif ended and not poll.poll(0):  # a process that it forked has the pipe open
                return
            if self.watchdog.stalled:
                raise self._stalled()

    def _was_stopped(self, seconds: float) -> RankError:
        """The error where this process was silent, and its rank has let it continue."""
        return RankError(
            f"The task of rank {self.rank_info.rank} on {self.rank_info.host} gave no sign of life for {seconds:g} s "
            "(Param stallTimeout): its Python worker was stopped, as by SIGSTOP, or its host did not let it run."
        )

    def _is_stopped(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            return bool(self.process.pid and psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)
        return False

    def _stalled(self) -> RankError:
        """The error of a rank that makes no progress, with the stacks of its threads."""
        before = self._log_size()
        lost, stopped = self._lost_hosts(), self._is_stopped()
        if not stopped:
            self.process.send_signal(STACK_SIGNAL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACK_TIME)  # until its log has the stacks
        stacks = self._read_log(self._log_size() - before).decode(errors="replace")
        state = "The process is stopped (SIGSTOP)." if stopped else f"Its stacks:\n{stacks}"
        return RankError(
            f"Rank {self.rank_info.rank} on {self.rank_info.host} made no progress for {self.stall_timeout:g} s (Param "
            f"stallTimeout).{lost} Its phase: {self.watchdog.phase}. {state}".strip()
        )

    def _lost_hosts(self) -> str:
        """What to say if this host can't reach another one of the ranks; "" if it can."""
        if self.peers is None or not (places := self.peers.places):
            return ""
        lost = self.peers.lost_hosts()
        if not lost and len(places) > 1 and self.watchdog.waits:  # others may have lost each other: theirs says more
            self._over.wait(2 * reach.PATIENCE)
        return f" {lost}" if lost else ""

    def _send(self, line: str = "") -> None:
        with contextlib.suppress(BrokenPipeError), self._lock:  # it has died; its exit status says how
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def _beat(self) -> None:
        """Let the rank know each second that this process runs: an empty line."""
        while not self._over.wait(INTERVAL):
            self._send()

    def _log_size(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def _read_log(self, tail: int = LOG_BYTES) -> bytes:
        """The end of the rank's output; the file's offset is shared with the rank, and stays."""
        size = self._log_size()
        text = os.pread(self.log.fileno(), tail, max(0, size - tail))
        return text.replace(self.secret.encode(), b"***") if self.secret else text


class NewProcess(subprocess.Popen):
    """A rank that is a new process, and the leader of a session of its own."""

    server = 0  # the process of a rank server: it has none

    def kill_group(self) -> None:
        """Kill the rank and all that it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close its standard input."""
        assert self.stdin is not None
        self.stdin.close()


def start_process(environment: dict[str, str], descriptors: Sequence[int], log: Any) -> NewProcess:
    """Start a rank, which inherits ``descriptors`` and writes to ``log``, as a new process."""
    return NewProcess(
        [sys.executable, "-m", "cos_ml.rank"],
        env=environment, pass_fds=descriptors, stdin=subprocess.PIPE, stdout=log, stderr=log,
        start_new_session=True,  # so that whatever it forks can be killed with it
    )  # fmt: skip


def _environment(spec: TrainSpec, rank_info: RankInfo) -> dict[str, str]:
    """This worker's environment with its import path, the fit's variables, and the task's GPU."""
    paths = [path for path in sys.path if path and not SPARK_JAR.search(path)]
    environment = os.environ | spec.variables | {"PYTHONPATH": os.pathsep.join(paths)}
    # As import_keras sets them: workers ask for the same rank server, whether they have imported Keras or not.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"} | environment
    environment.pop("OMP_NUM_THREADS", None)  # Spark sets it to spark.task.cpus for the Python worker
    assigned = current_task().resources().get("gpu")
    addresses = assigned.addresses if assigned else None
    return environment | gpus.environment(spec.use_gpu, addresses, rank_info.local_rank, environment)
