"""The rank server of an executor: ``python -m cos_ml.rank.server``, of which ranks are forks (rank side).

It has imported what ranks import, and nothing else: no device is touched and no thread runs before a fork. A barrier
task (``cos_ml/job/rank_server.py``) sends one request per rank over a Unix socket, and keeps the connection: when it
closes, the rank is killed. The server ends with its executor, after a time without ranks, or when its folder is gone.
Its watcher, a fork that has imported nothing, kills it if it is stopped and can't end itself, and removes the folder.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import hmac
import importlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from cos_ml.rank.process import close_descriptors, run_rank, set_name

__all__ = ["EXTRA", "READY", "SECRET", "SOCKET", "WATCHER", "pack"]

SOCKET, SECRET, READY = "socket", "secret", "ready"  # files of its folder
HEADER = struct.Struct("!I32s")  # the length of a request, and its HMAC
MAX_REQUEST, MAX_DESCRIPTORS = 8 << 20, 2000  # bytes and descriptors of one request
MAX_PENDING, REQUEST_TIME = 64, 10.0  # connections without a whole request, and seconds that one may take
LOOK = 2.0  # seconds between two looks whether the folder is still there
EXTRA = ("petastorm.reader",)  # what some ranks need, imported when the first of them is requested
TF_DATA = "tensorflow.python.data.ops"
LATE = (  # what TensorFlow and zipfile import on first use, in every fit
    "encodings.cp437", f"{TF_DATA}.flat_map_op", f"{TF_DATA}.from_generator_op", f"{TF_DATA}.from_tensors_op",
)  # fmt: skip
WATCHER = "cos_ml-watcher"  # the name of the process that outlives the server
GRACE = 2.0  # seconds that a server may outlive its executor


def pack(secret: bytes, request: dict[str, Any]) -> bytes:
    """A request as it is sent; its HMAC proves that the sender can read the secret."""
    body = json.dumps(request).encode()
    return HEADER.pack(len(body), hmac.digest(secret, body, hashlib.sha256)) + body


@dataclass(eq=False)
class Connection:
    """The connection of one task: what it has sent so far, and then the rank that was started for it."""

    socket: socket.socket
    since: float
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    pid: int = 0
    pidfd: int = -1

    def request(self, secret: bytes) -> dict[str, Any] | None:
        """The request, once it is whole.

        Raises:
            ValueError: it is malformed, or the sender does not know the secret.
        """
        if len(self.data) < HEADER.size:
            return None
        length, code = HEADER.unpack_from(self.data)
        if length > MAX_REQUEST or len(self.descriptors) > MAX_DESCRIPTORS:
            raise ValueError("too large")
        body = self.data[HEADER.size :]
        if len(body) < length:
            return None
        if len(body) > length or not hmac.compare_digest(code, hmac.digest(secret, body, hashlib.sha256)):
            raise ValueError("not authenticated")
        request = json.loads(body)
        if len(request["descriptors"]) != len(self.descriptors):
            raise ValueError("descriptors are missing")
        return request  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connection and all descriptors that came with it."""
        close_descriptors(self.descriptors)
        self.descriptors = []
        self.socket.close()


class Server:
    """Forks a rank per request, in one thread.

    Args:
        folder: its own, with its socket.
        listener: the socket, which listens already.
        watched: pidfds of the processes with which it ends.
        idle_timeout: seconds without a rank after which it ends.
        imported: whether this process has imported what ranks import; otherwise each rank executes a new Python, which
            reports the error of the import.
    """

    def __init__(
        self, folder: str, listener: socket.socket, watched: list[int], idle_timeout: float, imported: bool = True
    ) -> None:
        self.folder, self.listener, self.idle_timeout, self.imported = folder, listener, idle_timeout, imported
        self.pid, self.used = os.getpid(), time.monotonic()
        self.connections: set[Connection] = set()
        self.selector = selectors.PollSelector()
        with open(os.path.join(folder, SECRET), "rb") as file:
            self.secret = file.read()
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        for descriptor in watched:
            self.selector.register(descriptor, selectors.EVENT_READ)  # with nothing to call: serve() returns

    def serve(self) -> None:
        """Serve until the executor ends, the folder is removed, or no rank was requested for ``idle_timeout``."""
        try:
            while self._wanted():
                for key, _ in self.selector.select(min(LOOK, self.idle_timeout)):
                    if key.data is None:
                        return
                    key.data()
                for connection in [one for one in self.connections if not one.pid]:
                    if time.monotonic() - connection.since > REQUEST_TIME:
                        self._close(connection)
        finally:
            if os.getpid() == self.pid:  # this is no fork
                for connection in self.connections:
                    kill_group(connection.pid)

    def _wanted(self) -> bool:
        if self.connections:
            return True
        return os.path.exists(os.path.join(self.folder, SOCKET)) and time.monotonic() - self.used < self.idle_timeout

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it has given up
            accepted, _ = self.listener.accept()
            _, user, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            pending = sum(not one.pid for one in self.connections)
            if user != os.getuid() or pending >= MAX_PENDING:
                accepted.close()
                return
            accepted.setblocking(False)
            connection = Connection(accepted, time.monotonic())
            self.connections.add(connection)
            self.selector.register(accepted, selectors.EVENT_READ, lambda: self._receive(connection))

    def _receive(self, connection: Connection) -> None:
        """Take what a task has sent; start its rank, or kill it if the task has gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(connection.socket, 1 << 20, 253)
            connection.descriptors += descriptors
            if not data or connection.pid:  # nobody sends anything after a request
                self._close(connection)
                return
            connection.data += data
            if (request := connection.request(self.secret)) is not None:
                self._start(connection, request)
        except BlockingIOError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._close(connection)

    def _start(self, connection: Connection, request: dict[str, Any]) -> None:
        for name in set(request["extra"]) & set(EXTRA):
            with contextlib.suppress(Exception):  # the rank imports it again, and reports the error
                importlib.import_module(name)
        gc.freeze()
        if is_closed(connection.socket):  # while this process imported
            self._close(connection)
            return
        connection.pid = os.fork()
        if not connection.pid:
            run_rank(request, connection.descriptors, self.pid, self.imported)
        close_descriptors(connection.descriptors)
        connection.descriptors, connection.data = [], bytearray()
        try:
            connection.pidfd = os.pidfd_open(connection.pid)
        except OSError:  # too many open files
            os.kill(connection.pid, signal.SIGKILL)
            os.waitpid(connection.pid, 0)
            connection.pid = 0
            raise
        self.selector.register(connection.pidfd, selectors.EVENT_READ, lambda: self._ended(connection))
        started = json.dumps({"pid": connection.pid, "server": self.pid}).encode() + b"\n"
        with contextlib.suppress(OSError):  # the task has ended, which the next look tells
            socket.send_fds(connection.socket, [started], [connection.pidfd])

    def _ended(self, connection: Connection) -> None:
        """Report the end of a rank, and kill what it has forked."""
        kill_group(connection.pid)  # before its number is free for others
        code = os.waitstatus_to_exitcode(os.waitpid(connection.pid, 0)[1])
        connection.pid = 0
        with contextlib.suppress(OSError):
            connection.socket.send(json.dumps({"code": code}).encode() + b"\n")
        self.selector.unregister(connection.pidfd)
        os.close(connection.pidfd)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        """End a connection; a rank is killed first, and the connection stays until it has ended."""
        with contextlib.suppress(KeyError, ValueError):  # it was done when the rank was killed
            self.selector.unregister(connection.socket)
        if connection.pid:
            kill_group(connection.pid)
        else:
            connection.close()
            self.connections.discard(connection)
            self.used = time.monotonic()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end of a connection is closed."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def kill_group(leader: int) -> None:
    """Kill a rank and all that it has forked."""
    if leader:
        with contextlib.suppress(ProcessLookupError):  # it has just been forked, and has no group yet
            os.killpg(leader, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)


def import_what_ranks_import() -> bool:
    """Import what every rank imports; returns whether that succeeded."""
    from cos_ml.network.keras_import import import_keras
    from cos_ml.rank.__main__ import UNUSED

    try:
        import_keras(without=UNUSED)
        with contextlib.suppress(ImportError):
            import horovod.tensorflow  # noqa: F401
        import cos_ml.rank.train  # noqa: F401
    except BaseException:
        return False
    for name in LATE:
        with contextlib.suppress(ImportError):  # another version: then ranks import what they need
            importlib.import_module(name)
    os.waitpid(os.fork() or os._exit(0), 0)  # ends the threads of OpenBLAS until they are needed
    gc.collect()
    gc.freeze()
    return True


def start_watcher(folder: str, listener: socket.socket, watched: list[int]) -> None:
    """Fork a process that outlives this one: it kills it if it outlives those ``watched``, and removes ``folder``."""
    server = os.pidfd_open(os.getpid())
    if not os.fork():
        try:
            os.setsid()
            set_name(WATCHER)
            listener.close()  # or else nobody would notice that the server has ended
            watch(server, watched)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    os.close(server)


def watch(server: int, watched: list[int]) -> None:
    """Wait until a server has ended; kill it if it outlives one of the processes ``watched``: all pidfds."""
    poll = select.poll()
    for descriptor in (server, *watched):
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    for descriptor in watched:
        poll.unregister(descriptor)
    if not poll.poll(GRACE * 1000):
        signal.pidfd_send_signal(server, signal.SIGKILL)
        poll.poll()


def main() -> None:
    """Import, and serve."""
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    listener = socket.socket(fileno=options["listener"])
    for descriptor in (options["listener"], *options["watched"]):
        os.set_inheritable(descriptor, False)
    try:
        start_watcher(folder, listener, options["watched"])
        imported = import_what_ranks_import()
        with open(os.path.join(folder, f".{READY}"), "x") as file:
            file.write(str(os.getpid()))
        os.rename(file.name, os.path.join(folder, READY))
        Server(folder, listener, options["watched"], options["idle_timeout"], imported).serve()
    except FileNotFoundError:
        pass  # the folder is gone, so nobody wants it
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
