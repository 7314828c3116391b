"""How the barrier tasks of a job exchange what each has: by way of task 0 (barrier task side).

Each task has one connection to task 0. In an exchange each sends one message, and gets one answer when all have sent
theirs. Task 0 alone decides whether all could reach it: if some have not connected in time, it tells those that have to
use Spark's allGather, which a task that can't connect uses as well. Then task 0 listens on all its addresses, unless
the user has named an interface, and the others try those that allGather has brought.

When Spark retries a stage, the secret stays the same, and a task of the attempt before may live on for some seconds.
The later one of two tasks has the larger number (taskAttemptId), and takes the other's place.
"""

from __future__ import annotations

import abc
import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from cos_ml.data import blobs
from cos_ml.errors import RankError
from cos_ml.interfaces import REMEDY, by_interface, is_loopback, local_addresses, plain, resolve
from cos_ml.job import link
from cos_ml.job.auth import BoundedServer, on_free_port
from cos_ml.job.exchange import Entries, Exchange, kind_of
from cos_ml.job.link import Link, pack

__all__ = ["EVERYWHERE", "HANDSHAKE", "Channel", "Client", "FallBack", "Server", "listen"]

HANDSHAKE, HELLO = "handshake", "hello"  # the first exchange, and how a task introduces itself
ADDRESS = "address"  # the exchange by which tasks on task 0's host learn its address
PATIENCE = 3.0  # seconds that task 0 waits for the next connection before it decides on allGather
SEARCH_TIME = 5.0  # seconds for which the others try to connect
RECONNECT_TIME = 20.0  # and to the address that allGather has brought
CONNECT_TIME = 1.0  # seconds for one try
EVERYWHERE = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
PAUSE = 0.02  # seconds between two tries
LOST = "The connection to {} was lost."
ALL_GATHER, AGAIN = b"allGather", b"again"  # answers of task 0 that hold no entries


class FallBack(Exception):
    """The tasks have to use Spark's allGather: some can't reach task 0."""


class Again(Exception):
    """It was task 0 of an earlier attempt: the one of this attempt has still to be found."""


def _resolve(message: Entries, future: Future[Entries]) -> None:
    """Resolve a future with the answer to its request."""
    error = message.get("error")
    if error is None:
        future.set_result(blobs.load(message["entries"]))
    elif error == ALL_GATHER:
        future.set_exception(FallBack())
    elif error == AGAIN:
        future.set_exception(Again())
    else:
        future.set_exception(RankError(error.decode()))


class Channel(abc.ABC):
    """The connections between a job's tasks, as task 0 (``Server``) and the others (``Client``) use them.

    Attributes:
        size: the number of tasks.
    """

    size: int

    @abc.abstractmethod
    def handshake(self, facts: bytes) -> list[bytes]:
        """Exchange the facts of all tasks; returns them by partition.

        Raises:
            FallBack: some tasks can't reach task 0.
            RankError: the connection to a task was lost.
        """

    @abc.abstractmethod
    def exchange(
        self, name: str, entries: Mapping[str, bytes], key: str = "", size: int | None = None
    ) -> Future[Entries]:
        """Send ``entries`` for the exchange ``name``, and get those of all tasks.

        Args:
            name: the exchange.
            entries: what this task adds to it.
            key: the entries that are wanted are those whose keys differ from it in their number at most.
            size: how many there are, as many as tasks by default; with 0 the one of ``key`` is enough.

        Returns:
            Future: the entries; or RankError where a task is gone that has not sent its own.
        """

    @abc.abstractmethod
    def own_address(self) -> str:
        """The address of this host by which it is connected to another one, if there is one.

        Raises:
            RankError: there is no connection.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End all connections."""


# ── task 0 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Handler(socketserver.BaseRequestHandler):
    """The connection of one task."""

    server: Server

    def handle(self) -> None:
        self.request.settimeout(CONNECT_TIME)
        with contextlib.suppress(OSError, ValueError, KeyError):
            own = link.accept(self.request, self.server.secret)
            hello = own.receive()
            partition = int(hello["partition"])
            if not self.server.join(partition, int(hello["task"]), own):
                return
            own.set_timeout(None)
            try:
                while True:
                    self.server.take(partition, own.receive(), own.send)
            finally:
                self.server.leave(partition, own)


class Server(BoundedServer, Channel):
    """Task 0's side; ``listen`` makes it.

    Args:
        address: the address and the port to listen on.
        secret: the job's.
        hosts: Spark's names of all tasks' hosts.
        task: the number of this task.
    """

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], secret: str, hosts: list[str], task: int) -> None:
        self.secret, self.task, self.size, self.hosts = secret, task, len(hosts), hosts
        self.max_connections = 64 + 2 * self.size
        self.allowed: set[str] = set()
        self.links: dict[int, tuple[int, Link]] = {}
        self.gone: set[int] = set()
        self.exchanges: dict[str, Exchange] = {}
        self.decision: bytes | None = None  # b"" once all have met
        self.closed = False
        self.changed = threading.Condition()
        self.last_arrival = time.monotonic()
        super().__init__(address, Handler)
        self.port: int = self.server_address[1]
        self.start()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection comes from a host of this job; it is closed otherwise."""
        address = plain(client_address[0])
        if address in self.allowed:
            return True
        if not self.allowed:
            self.allowed |= set(local_addresses())
            for host in set(self.hosts) if len(set(self.hosts)) > 1 else ():
                self.allowed |= set(resolve(host))  # of those that are not known, allGather will bring the addresses
        return address in self.allowed

    def handshake(self, facts: bytes) -> list[bytes]:
        """See ``Channel``."""
        future = self.exchange(HANDSHAKE, {"0": facts}, "0")
        with self.changed:
            while not future.done() and self.decision is None:
                missing = len(self.links) < self.size - 1
                wait = self.last_arrival + PATIENCE - time.monotonic() if missing else None
                if wait is not None and wait <= 0:
                    self.decision = ALL_GATHER
                    break
                self.changed.wait(wait)
        self._settle(HANDSHAKE)
        try:
            found = future.result()
        except Again:
            raise RankError("A later attempt of this stage has begun.") from None
        return [found[str(partition)] for partition in range(self.size)]

    def exchange(
        self, name: str, entries: Mapping[str, bytes], key: str = "", size: int | None = None
    ) -> Future[Entries]:
        """See ``Channel``."""
        future: Future[Entries] = Future()
        future.add_done_callback(lambda done: self._notify())
        size = self.size if size is None else size
        self._take(0, name, entries, size, key, lambda answer: _resolve(link.unpack(answer), future))
        return future

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def join(self, partition: int, task: int, own: Link) -> bool:
        """Let a task take its place, unless a later one has it, and tell it so; returns whether it may."""
        with self.changed:
            if not partition:  # task 0 of a later attempt
                self.closed = self.closed or task > self.task
                accepted = False
            else:
                before = self.links.get(partition, (-1, own))
                accepted = not self.closed and task >= before[0] and (before[0] < 0 or self.decision != b"")
            if accepted:
                if before[0] >= 0:
                    before[1].close()
                self.links[partition] = (task, own)
                self.gone.discard(partition)
                self.last_arrival = time.monotonic()
            self.changed.notify_all()
        if accepted:
            own.send(pack({"name": HELLO.encode(), "task": str(self.task).encode()}))
        elif self.closed:
            self._settle(*self.exchanges)
        return accepted

    def leave(self, partition: int, own: Link) -> None:
        """The connection of a task has ended."""
        with self.changed:
            if self.links.get(partition, (0, None))[1] is not own:
                return  # a later one has taken its place
            del self.links[partition]
            first = self.exchanges.get(HANDSHAKE, Exchange())
            if self.decision is not None or partition in first.given:
                self.gone.add(partition)
            self.changed.notify_all()
        self._settle(*self.exchanges)

    def take(self, partition: int, message: Entries, send: Callable[[bytes], Any]) -> None:
        """Take the request of a task, whose answer ``send`` sends."""
        name, key, size = message["name"].decode(), message["key"].decode(), int(message["size"])
        self._take(partition, name, blobs.load(message["entries"]), size, key, send)

    def _take(
        self, partition: int, name: str, entries: Mapping[str, bytes], size: int, key: str, send: Callable[[bytes], Any]
    ) -> None:
        with self.changed:
            exchange = self.exchanges.setdefault(name, Exchange())
            exchange.entries.update(entries)
            exchange.given.add(partition)
            exchange.waiting.append((partition, size, key, send))
        self._settle(name)

    def _settle(self, *names: str) -> None:
        """Answer the requests whose entries are complete or never will be; this task's own comes last."""
        with self.changed:
            answers = [answer for name in names for answer in self._answers(name, self.exchanges[name])]
            self.changed.notify_all()
        for _, answer, send in sorted(answers, key=lambda one: -one[0]):
            with contextlib.suppress(OSError):  # it has gone, which its thread notices
                send(answer)

    def _answers(self, name: str, exchange: Exchange) -> list[tuple[int, bytes, Callable[[bytes], Any]]]:
        answers, packed = [], {}
        waiting, exchange.waiting = exchange.waiting, []
        error = self._error(name, exchange)
        for partition, size, key, send in waiting:
            kind = kind_of(key, size)
            if (kind, size) not in packed:
                found = exchange.found(size, key) if error is None else None
                content = {"error": error} if error is not None else found and {"entries": b"".join(blobs.dump(found))}
                about = {"name": name.encode(), "kind": kind.encode()}
                packed[kind, size] = pack(about | content) if content else b""
            if packed[kind, size]:
                answers.append((partition, packed[kind, size], send))
            else:
                exchange.waiting.append((partition, size, key, send))
        if name == HANDSHAKE and answers and error is None:
            self.decision = b""
        return answers

    def _error(self, name: str, exchange: Exchange) -> bytes | None:
        """Why an exchange can't be completed, or None."""
        met = self.decision == b""
        if name == HANDSHAKE and self.decision == ALL_GATHER:
            return ALL_GATHER
        if self.closed:
            return AGAIN if name == HANDSHAKE and not met else b"Task 0 of this attempt has ended."
        lost = self.gone & exchange.given if name == HANDSHAKE else self.gone - exchange.given
        if not lost or (name == HANDSHAKE and met):
            return None
        return LOST.format(f"the task of partition {min(lost)} on {self.hosts[min(lost)]}").encode()

    def own_address(self) -> str:
        """See ``Channel``; waits for a task of another host, as they connect only now where allGather was used."""
        with self.changed:
            found = self.changed.wait_for(self._reached_at, RECONNECT_TIME)
        if found is None:
            raise RankError(
                f"No task of another host has reached that of rank 0 on {self.hosts[0]}, which listens on port "
                f"{self.port} of {by_interface(local_addresses())}. {REMEDY}"
            )
        self.exchange(ADDRESS, {"0": found.encode()}, "0", 0)
        return found

    def _reached_at(self) -> str | None:
        """Where a task of another host has connected; once all have and none is of another one, any task."""
        ends = [found for _, found in self.links.values()]
        other = next((found.local for found in ends if found.local != found.peer), None)
        return other or (ends[0].local if len(ends) == self.size - 1 else None)

    def close(self) -> None:
        """Stop listening, and end all connections; requests that wait get an error."""
        super().close()
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self._settle(*self.exchanges)


def listen(
    address: str, secret: str, hosts: list[str], task: int, direct: bool = True, ports: Sequence[int] | None = None
) -> Server:
    """Let task 0 listen on the first of the secret's ports that is free.

    If none is, or the others do not know its address, any port will do: the tasks then use allGather. All are of
    ``ports``, unless that is None.

    Raises:
        RankError: none of ``ports`` is free.
    """
    for port in link.ports(secret, ports or link.PORTS) if direct else ():
        try:
            return Server((address, port), secret, hosts, task)
        except OSError:  # in use, perhaps by an earlier attempt's task, which then has to end
            with contextlib.suppress(OSError, ValueError):
                _introduce(address, port, secret, 0, task).close()
    try:
        server = on_free_port(lambda port: Server((address, port), secret, hosts, task), ports or [0])
    except OSError as error:
        raise RankError(f"Task 0 on {hosts[0]} can't listen on {address}: {error}. {REMEDY}") from None
    server.decision = ALL_GATHER
    return server


# ── the other tasks ───────────────────────────────────────────────────────────────────────────────────────────────────


class Client(Channel):
    """The side of every other task; it begins to look for task 0 at once, in a thread.

    Args:
        address: task 0's, or None where it is not known.
        secret: the job's.
        size: the number of tasks.
        partition, task: this task, and its number.
        ports: those that task 0 may listen on; None for any.
    """

    def __init__(
        self, address: str | None, secret: str, size: int, partition: int, task: int, ports: Sequence[int] | None = None
    ) -> None:
        self.secret, self.size, self.partition, self.task = secret, size, partition, task
        self.places = [(address, port) for port in link.ports(secret, ports or link.PORTS)] if address else []
        self.pending: dict[tuple[bytes, bytes], Future[Entries]] = {}
        self.changed = threading.Condition()
        self.closed = False
        self._start(SEARCH_TIME)

    def _start(self, seconds: float) -> None:
        self.link: Link | None = None
        self.searching = True
        self.thread = threading.Thread(target=self._run, args=(seconds,), daemon=True)
        self.thread.start()

    def _run(self, seconds: float) -> None:
        """Look for task 0 for a while; then receive its answers until the connection ends."""
        found, until = None, time.monotonic() + seconds
        while self.places and not found and not self.closed and time.monotonic() < until:
            found = self._try()
            if not found:
                with self.changed:
                    self.changed.wait_for(lambda: self.closed, PAUSE)
        with self.changed:
            self.link, self.searching = found, False
            if self.closed and found:
                found.close()
            self.changed.notify_all()
        with contextlib.suppress(OSError, ValueError, KeyError):
            while found:
                message = found.receive()
                with self.changed:
                    future = self.pending.pop((message["name"], message["kind"]), None)
                if future:
                    _resolve(message, future)
        with self.changed:
            lost, self.pending, self.link = self.pending, {}, None
        for future in lost.values():
            future.set_exception(RankError(LOST.format("the task of partition 0")))

    def _try(self) -> Link | None:
        for address, port in self.places:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return _introduce(address, port, self.secret, self.partition, self.task)
        return None

    def handshake(self, facts: bytes) -> list[bytes]:
        """See ``Channel``."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: not self.searching)
                if self.link is None:
                    raise FallBack
            try:
                found = self.exchange(HANDSHAKE, {str(self.partition): facts}, "0").result()
                return [found[str(partition)] for partition in range(self.size)]
            except Again:
                self._stop()
                self._start(SEARCH_TIME)

    def open(self, host: str, addresses: Sequence[str], port: int) -> None:
        """Connect to task 0 where allGather says that it is, unless this task is connected to that port already.

        Raises:
            RankError: it can't be reached.
        """
        if self.link is None or self.link.port != port:
            self._stop()
            self.places = [(address, port) for address in addresses]
            self._start(RECONNECT_TIME)
            with self.changed:
                self.changed.wait_for(lambda: not self.searching)
        if self.link is None:
            raise RankError(
                f"The task of partition {self.partition}, on a host with {by_interface(local_addresses())}, can't "
                f"reach that of rank 0 on {host} at {', '.join(addresses)}, port {port}. {REMEDY}"
            )

    def own_address(self) -> str:
        """See ``Channel``."""
        with self.changed:
            found = self.link
        if found is None:
            raise RankError(LOST.format("the task of partition 0"))
        if found.local != found.peer or is_loopback(found.local):
            return found.local
        # On the host of task 0 any of its addresses will do for this connection: other hosts may not reach that one.
        return self.exchange(ADDRESS, {}, "0", 0).result()["0"].decode()

    def exchange(
        self, name: str, entries: Mapping[str, bytes], key: str = "", size: int | None = None
    ) -> Future[Entries]:
        """See ``Channel``."""
        future: Future[Entries] = Future()
        size = self.size if size is None else size
        about = {"name": name.encode(), "key": key.encode(), "size": str(size).encode()}
        place = about["name"], kind_of(key, size).encode()
        with self.changed:
            found, self.pending[place] = self.link, future
        try:
            if not found:
                raise OSError
            found.send(pack(about | {"entries": b"".join(blobs.dump(entries))}))
        except OSError:
            with self.changed:
                waits = self.pending.pop(place, None)
            if waits:
                waits.set_exception(RankError(LOST.format("the task of partition 0")))
        return future

    def close(self) -> None:
        """End the connection."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self._stop()

    def _stop(self) -> None:
        with self.changed:
            found, self.places = self.link, [] if self.closed else self.places
        if found:
            found.close()
        self.thread.join()


def _introduce(address: str, port: int, secret: str, partition: int, task: int) -> Link:
    """Connect to task 0 and take a place; raises OSError where it has none for this task."""
    found = link.connect(address, port, secret, CONNECT_TIME)
    try:
        found.send(pack({"partition": str(partition).encode(), "task": str(task).encode()}))
        found.receive()
        found.set_timeout(None)
    except BaseException:
        found.close()
        raise
    return found
