"""Ranks from the rank server of an executor, which is started where there is none (barrier task and driver side).

The server's side is ``cos_ml/rank/server.py``. If anything fails here, the rank starts as a new process instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

import cos_ml
from cos_ml.data.spool import local_folder
from cos_ml.job.settings import duration
from cos_ml.rank.server import READY, SECRET, SOCKET, pack

__all__ = ["ForkedRank", "idle_timeout", "server_memory", "start_forked"]

IDLE_TIMEOUT = "spark.cosml.rankServer.idleTimeout"

ANSWER_TIME = 5.0  # seconds in which a server that has imported everything answers
IMPORT_TIME = 120.0  # seconds after which a server that has not is given up
MESSAGE_DESCRIPTORS = 250  # the kernel passes at most 253 at a time
KEPT = 2  # servers of an executor, for different environments
# What TensorFlow, Keras and the libraries that they load read from the environment on import. Everything else is set in
# the fork, as is that in which ranks of one server may differ.
READ_ON_IMPORT = ("TF_", "XLA_", "KERAS_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_",
                  "LD_", "MALLOC_", "JE_", "ARROW_", "CUDA_", "NVIDIA_", "PYTHON", "HDF5_")  # fmt: skip
SET_IN_FORK = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HDF5_PLUGIN_PATH", "PYTHON_WORKER_FACTORY_SECRET")


class ForkedRank:
    """What ``cos_ml.job.child`` needs of ``subprocess.Popen``, for a rank that is a fork of the rank server.

    Args:
        connection: the connection to the server, on which the request has been sent.
        stdin: the pipe to the rank.

    Attributes:
        pid: the rank's process; 0 until the server has forked it.
        server: the server's process; 0 until then.
        returncode: the exit status as Popen has it; None while it runs.
    """

    def __init__(self, connection: socket.socket, stdin: Any) -> None:
        self.stdin, self.pid, self.server = stdin, 0, 0
        self.returncode: int | None = None
        self._connection, self._pidfd, self._unfinished = connection, -1, b""

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        while self.returncode is None and _readable([self._connection.fileno()], 0):
            self._receive()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns the exit status."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if until is None else max(0.0, until - time.monotonic())
            found = _readable([self._connection.fileno(), self._pidfd], left)
            if found == [self._pidfd] and not _readable([self._connection.fileno()], ANSWER_TIME):
                self._lost()  # the server is stopped
            elif not found:
                raise subprocess.TimeoutExpired("a rank", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def started(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds until the server has forked the rank; returns whether it has."""
        if not self.pid and self.returncode is None and _readable([self._connection.fileno()], timeout):
            self._receive()
        return bool(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.poll() is None and self.pid:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """Kill the rank and all that it has forked, which the server does as well when the connection closes."""
        if self.poll() is not None:
            return
        if not self.pid:  # the server has not forked it yet, and will not
            self._lost()
            return
        with contextlib.suppress(ProcessLookupError):  # it has just been forked, and has no group yet
            os.killpg(self.pid, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close its standard input and the connection; the server kills the rank if it still runs."""
        self.stdin.close()
        self._connection.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _receive(self) -> None:
        """Take what the server reports: that the rank has started, and how it has ended."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._connection, 4096, 1)
        except OSError:
            data, descriptors = b"", []
        self._pidfd = descriptors[0] if descriptors else self._pidfd
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        for message in map(json.loads, lines):
            self.pid, self.server = message.get("pid", self.pid), message.get("server", self.server)
            self.returncode = message.get("code", self.returncode)
        if not data and self.returncode is None:
            self._lost()

    def _lost(self) -> None:
        """The server is gone, and so is the rank; what that has forked is killed here."""
        self._connection.close()
        self.returncode = -signal.SIGKILL
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _readable([self._pidfd], ANSWER_TIME)  # until it has ended


def idle_timeout(settings: Any) -> float:
    """Seconds without ranks after which a rank server ends, as Spark's settings say; 0 for no server.

    Raises:
        InvalidInputError: the setting is no duration.
    """
    return duration(settings, IDLE_TIMEOUT, "10min")


def server_memory(server: int) -> dict[int, int]:
    """The process of a rank server, and the bytes of memory that it holds, with its share of what others use too."""
    with contextlib.suppress(psutil.Error, OSError):
        return {server: psutil.Process(server).memory_full_info().pss} if server else {}
    return {}  # it has ended


def start_forked(
    environment: dict[str, str], descriptors: Sequence[int], log: Any, idle_timeout: float, extra: Sequence[str] = ()
) -> ForkedRank | None:
    """Start a rank as a fork of this executor's rank server; returns None where that is impossible.

    While the server still imports, the rank's ``pid`` is not known yet.

    Args:
        environment: the rank's environment.
        descriptors: what it inherits.
        log: the file to which it writes.
        idle_timeout: seconds without ranks after which a server that is started here ends; 0 for no server.
        extra: what the rank will import and others will not, of ``cos_ml.rank.server.EXTRA``.
    """
    if sys.platform != "linux" or not idle_timeout:
        return None
    try:
        connection, folder = _server(environment, idle_timeout)
        with contextlib.closing(connection), contextlib.ExitStack() as undo:
            ready = (folder / READY).exists()
            if ready:  # if it does not answer, the next rank starts another one
                undo.callback(_end_server, folder)
            rank = _request(connection, folder, environment, [log.fileno(), *descriptors], extra)
            undo.callback(rank.close)
            if rank.poll() is None and (not ready or rank.started(ANSWER_TIME)):
                undo.pop_all()
                return rank
    except (OSError, psutil.Error, subprocess.SubprocessError):
        pass
    return None


def _request(
    connection: socket.socket, folder: Path, environment: dict[str, str], descriptors: list[int], extra: Sequence[str]
) -> ForkedRank:
    """Ask the server for a rank."""
    theirs, ours = os.pipe()
    numbers, passed = [0, 1, *descriptors[1:]], [theirs, *descriptors]
    with contextlib.closing(os.fdopen(theirs, "rb")), contextlib.ExitStack() as undo:
        stdin = undo.enter_context(os.fdopen(ours, "wb"))
        request = {"environment": environment, "descriptors": numbers, "extra": list(extra)}
        data = pack((folder / SECRET).read_bytes(), request)
        for start in range(0, len(passed), MESSAGE_DESCRIPTORS):  # each with a byte
            last = start + MESSAGE_DESCRIPTORS >= len(passed)
            sent = socket.send_fds(
                connection, [data if last else data[:1]], passed[start : start + MESSAGE_DESCRIPTORS]
            )
            data = data[sent:]
        connection.sendall(data)
        undo.pop_all()
    return ForkedRank(connection.dup(), stdin)


def _server(environment: dict[str, str], idle_timeout: float) -> tuple[socket.socket, Path]:
    """A connection to the server for this environment, which is started where there is none; and its folder."""
    parent, prefix = local_folder(), f"cos_ml-server-{_key(environment)}-"
    if found := _connect(parent, prefix):
        return found
    with _locked(parent):  # tasks of one executor start at the same time
        if found := _connect(parent, prefix):
            return found
        _limit_servers(parent)
        _start_server(tempfile.mkdtemp(prefix=prefix, dir=parent), environment, idle_timeout)
        if found := _connect(parent, prefix):
            return found
    raise OSError("the rank server did not start")


def _key(environment: dict[str, str]) -> str:
    """What distinguishes servers: the executor, the interpreter, its packages, and what these read on import."""
    executor = psutil.Process(os.getppid())
    package = Path(cos_ml.__file__).parent
    files = [file for part in ("", "network", "data", "rank") for file in (package / part).glob("*.py")]
    changed = max(file.stat().st_mtime_ns for file in files)
    found = [importlib.util.find_spec(name) for name in ("keras", "tensorflow")]
    installed = [(one.origin, os.stat(one.origin).st_mtime_ns) for one in found if one and one.origin]
    read = {name: value for name, value in environment.items()
            if name.startswith(READ_ON_IMPORT) and name not in SET_IN_FORK}  # fmt: skip
    parts = [executor.pid, executor.create_time(), sys.executable, os.getcwd(), str(package), changed, installed, read]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _connect(parent: str, prefix: str) -> tuple[socket.socket, Path] | None:
    """A connection to a server that listens in a folder of this user's, and that folder."""
    for folder in sorted(Path(parent).glob(f"{prefix}*")):
        connection = socket.socket(socket.AF_UNIX)
        try:
            found = folder.lstat()
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
                raise PermissionError(folder)
            if _now(parent) - found.st_ctime > IMPORT_TIME and not (folder / READY).exists():
                raise TimeoutError(folder)
            connection.settimeout(ANSWER_TIME)
            with _short(folder) as short:
                connection.connect(f"{short}/{SOCKET}")
        except OSError:  # it has ended, and its folder is being removed
            connection.close()
        else:
            return connection, folder
    return None


def _now(parent: str) -> float:
    """The time by the clock of the file system, which may be on another host."""
    with tempfile.TemporaryFile(dir=parent) as file:
        return os.fstat(file.fileno()).st_ctime


def _start_server(folder: str, environment: dict[str, str], idle_timeout: float) -> None:
    """Start a server in a session of its own; it listens at once, and answers when it has imported everything."""
    with open(os.open(f"{folder}/{SECRET}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(16))
    own = {name: value for name, value in environment.items() if not name.startswith(("HOROVOD_", "NCCL_"))}
    # pyarrow would start a thread, and no GPU is the server's.
    own |= {"TMPDIR": folder, "JE_ARROW_MALLOC_CONF": "background_thread:false", "CUDA_VISIBLE_DEVICES": "-1"}
    with contextlib.ExitStack() as opened, socket.socket(socket.AF_UNIX) as listener:
        with _short(Path(folder)) as short:
            listener.bind(f"{short}/{SOCKET}")
        listener.listen(128)
        executor = _executor()
        watched = [opened.enter_context(os.fdopen(number, "rb", 0)).fileno() for number in executor.values()]
        log = opened.enter_context(open(f"{folder}/log", "wb"))
        options = {"listener": listener.fileno(), "watched": watched, "idle_timeout": idle_timeout}
        options["executor"] = list(executor)  # for a person who looks for its processes
        command = [sys.executable, "-m", "cos_ml.rank.server", folder, json.dumps(options)]
        subprocess.run(  # a shell that ends at once, so that the server is nobody's child
            ["sh", "-c", '"$@" &', "sh", *command], env=own, pass_fds=[listener.fileno(), *watched],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, check=True,
        )  # fmt: skip


def _executor() -> dict[int, int]:
    """The executor's processes and their pidfds: this worker's parent, which is PySpark's daemon or the JVM, and the
    JVM above the daemon."""
    parent = os.getppid()
    found = {parent: os.pidfd_open(parent)}
    above = psutil.Process(parent).parent()
    if above and "java" in above.name():
        found[above.pid] = os.pidfd_open(above.pid)
    if os.getppid() != parent:
        raise ProcessLookupError("the executor has ended")
    return found


def _end_server(folder: Path) -> None:
    """End a server that does not answer: at once if it is stopped; one that is only slow, with its last rank."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((folder / READY).read_text()))
        if str(folder) in process.cmdline() and process.status() == psutil.STATUS_STOPPED:
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _limit_servers(parent: str) -> None:
    """Remove the folders of servers that no longer listen, and the oldest ones, whose servers end with their last rank.

    Called with the lock of ``parent``, so that no other process is just about to listen.
    """
    found = {}
    for folder in Path(parent).glob("cos_ml-server-*"):
        with contextlib.suppress(FileNotFoundError):  # its server has just ended
            found[folder] = folder.lstat().st_mtime if _listens(folder) else -1.0
    folders = sorted(found, key=lambda folder: found[folder])
    for folder in folders[: max(sum(since < 0 for since in found.values()), len(folders) - KEPT + 1)]:
        shutil.rmtree(folder, ignore_errors=True)


def _listens(folder: Path) -> bool:
    """Whether a server listens in a folder; none does where all its processes were killed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            with _short(folder) as short:
                connection.connect(f"{short}/{SOCKET}")
        except BlockingIOError:  # it is busy
            return True
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the lock of a folder.

    Raises:
        TimeoutError: another process holds it for long.
    """
    with _opened(folder) as descriptor:
        until = time.monotonic() + ANSWER_TIME
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(folder) from None
                time.sleep(0.01)  # flock itself has no time limit
        yield


@contextlib.contextmanager
def _opened(folder: str | Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A short name of a folder: those of sockets have at most 107 bytes."""
    with _opened(folder) as descriptor:
        yield f"/proc/self/fd/{descriptor}"


def _readable(descriptors: Sequence[int], timeout: float | None) -> list[int]:
    """Those of the descriptors that can be read, or were closed by the other end."""
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if timeout is None else timeout * 1000)]
