"""Where ranks meet: placement, Horovod's rendezvous server and the environment of a rank (barrier task side)."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from cos_ml.doors import BoundedServer, new_secret, same
from cos_ml.errors import RankError

__all__ = [
    "INTERFACE", "Place", "Rendezvous", "all_ready", "local_addresses", "own_address", "place", "rank_environment",
]  # fmt: skip

JOIN_TIMEOUT = "120"  # seconds until a rank whose peers don't come gives up
INTERFACE = "HOROVOD_GLOO_IFACE"
METHODS = (b"GET", b"PUT", b"DELETE")
LARGEST_VALUE = 1 << 20  # bytes: the addresses under which a rank expects each of the others
CALLS_OF_A_RANK = 4  # at a time
KEYS_OF_A_RANK = 16
LONGEST_LINE, MOST_LINES = 4096, 32  # of a request's headers
PATIENCE = 5.0  # seconds that a rank waits for one answer; it asks again
READY, YES, NO = "ready", b"1", b"0"  # the scope in which each task says whether its rank can join


@dataclass(frozen=True)
class Place:
    """A rank and its neighbours, in the words of MPI and Horovod.

    Attributes:
        rank, size: among all ranks.
        local_rank, local_size: among the ranks of this host.
        cross_rank, cross_size: among the ranks of the same local rank, one a host.
        host: as Spark names it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    host: str


def place(hosts: Sequence[str]) -> list[Place]:
    """The place of each barrier task.

    Ranks of one host are neighbours, whatever the order of the partition ids: hosts come in the order in which they
    first appear, and tasks of a host in the order of their partition ids. Several executors on a host count as one.

    Args:
        hosts: the host of each task, by partition id.

    Returns:
        list[Place]: by partition id.
    """
    by_host: dict[str, list[int]] = {}
    for task, host in enumerate(hosts):
        by_host.setdefault(host, []).append(task)
    places: dict[int, Place] = {}
    for host, tasks in by_host.items():
        for local_rank, task in enumerate(tasks):
            column = [other for other, its_tasks in by_host.items() if len(its_tasks) > local_rank]
            places[task] = Place(
                rank=len(places), size=len(hosts), local_rank=local_rank, local_size=len(tasks),
                cross_rank=column.index(host), cross_size=len(column), host=host,
            )  # fmt: skip
    return [places[task] for task in range(len(hosts))]


class Rendezvous:
    """Horovod's rendezvous server on one address of this host, answering only its own ranks.

    They call from the ranks' hosts, and know a secret that is made for this one meeting. Horovod's client sends no
    headers of ours, so the secret stands at the begin of every path. The server is bound at once, so that its port can
    be told to the others, and serves when they are known.

    Attributes:
        port: where it listens.
        secret: what every path begins with.
    """

    def __init__(self, address: str) -> None:
        # Imported here: numTrainWorkers=1 needs no Horovod.
        from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

        class Handler(RendezvousHandler):  # type: ignore[misc]
            def parse_request(self) -> bool:
                """Look at the first line before anything else is read; hang up on strangers without a word.

                Of the headers only the length counts, so they are not parsed as http.server would: most of the join of
                many ranks is spent here.
                """
                self.close_connection = True
                words = self.raw_requestline.split()
                path = words[1] if len(words) == 3 and words[0] in METHODS else b""
                start = self.server.start
                if not same(path[: len(start)], start):
                    return False
                self.command, self.path = words[0].decode(), path[len(start) - 1 :].decode("latin-1")
                self.requestline = self.request_version = "HTTP/1.1"
                lines = list(itertools.islice(iter(partial(self.rfile.readline, LONGEST_LINE), b"\r\n"), MOST_LINES))
                fields = dict(line.decode("latin-1").rstrip().partition(":")[::2] for line in lines)
                self.headers: dict[str, str] = {name.title(): value.strip() for name, value in fields.items()}
                length = self.headers.get("Content-Length", "0")
                return len(lines) < MOST_LINES and length.isdecimal() and int(length) <= LARGEST_VALUE

            def _get_value(self, scope: str, key: str) -> bytes | None:
                """Wait for what another rank has still to put: else ranks would ask again every 10 ms."""
                found = self._all_said if scope == READY else partial(super()._get_value, scope, key)
                with self.server.put:
                    self.server.put.wait_for(lambda: self.server.closed or found() is not None, PATIENCE)
                return found()

            def _all_said(self) -> bytes | None:
                said = self.server.cache.get(READY, {})
                return b"".join(said.values()) if len(said) == self.server.ranks else None

            def _put_value(self, scope: str, key: str, value: bytes) -> None:
                if sum(map(len, self.server.cache.values())) < self.server.most_keys:
                    super()._put_value(scope, key, value)
                with self.server.put:
                    self.server.put.notify_all()

        class Server(BoundedServer, RendezvousHTTPServer):  # type: ignore[misc]
            request_queue_size = 1024  # connections that come before it serves wait
            allowed: frozenset[str] = frozenset()
            start = b""
            ranks = most_keys = 0
            closed = False

            def __init__(self, *args: Any) -> None:
                self.put = threading.Condition()  # of a new value, or of the end
                super().__init__(*args)

            def verify_request(self, request: Any, client_address: Any) -> bool:
                return client_address[0] in self.allowed

        self._server = Server((address, 0), Handler, 0)
        self._thread: threading.Thread | None = None
        self.port: int = self._server.server_address[1]
        self.secret = new_secret()
        self._server.start = f"/{_path_of(self.secret, self.port)}/".encode()

    def serve(self, places: Iterable[Place], addresses: Iterable[str]) -> None:
        """Begin to answer the ranks at ``places``, when they call from one of ``addresses``."""
        from horovod.runner.common.util.hosts import SlotInfo

        places = sorted(places, key=lambda here: here.rank)
        self._server.allowed = frozenset(addresses)
        self._server.ranks = len(places)
        self._server.most = 64 + CALLS_OF_A_RANK * len(places)
        self._server.most_keys = KEYS_OF_A_RANK * len(places)
        self._server.init(
            [
                SlotInfo(
                    hostname=here.host, rank=here.rank, local_rank=here.local_rank, cross_rank=here.cross_rank,
                    size=here.size, local_size=here.local_size, cross_size=here.cross_size,
                )
                for here in places
            ]
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; the second call does nothing."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        with self._server.put:
            self._server.closed = True
            self._server.put.notify_all()

    def __enter__(self) -> Rendezvous:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def all_ready(server: str, port: int, secret: str, rank: int, ready: bool) -> bool:
    """Say whether this task's rank can join the others, and wait until all have said it.

    Args:
        server: the address of the rendezvous server, which task 0 runs.
        port: of the rendezvous server.
        secret: that it wants to see.
        rank: of this task.
        ready: whether its rank can join.

    Returns:
        bool: whether all can.

    Raises:
        RankError: the server is not reached.
    """

    def ask(method: str, key: str, value: bytes | None = None) -> bytes | None:
        with contextlib.closing(http.client.HTTPConnection(server, port, timeout=float(JOIN_TIMEOUT))) as connection:
            connection.request(method, f"/{_path_of(secret, port)}/{READY}/{key}", value)
            response = connection.getresponse()
            return response.read() if response.status == http.HTTPStatus.OK else None

    try:
        ask("PUT", str(rank), YES if ready else NO)
    except (OSError, http.client.HTTPException) as error:
        raise RankError(f"Rank {rank} does not reach the rendezvous server at {server}: {error}.") from None
    said = None
    while said is None:
        try:
            said = ask("GET", "all")
        except (OSError, http.client.HTTPException):
            return False  # task 0 has ended, as it does when it knows that not all are ready
    return NO not in said


def own_address(hosts: Sequence[str], task: int, interface: str | None = None) -> str:
    """The address at which the others reach the rank of ``task``: the loopback where all ranks are one host's.

    Args:
        hosts: the host of each task, by partition id.
        task: which one this is.
        interface: the network interface to use; None for that of the address under which Spark knows the host.

    Raises:
        RankError: this host has no such interface, or knows itself and the others as the loopback only.
    """
    if interface is not None:
        addresses = local_addresses()
        found = next((address for address, name in addresses.items() if name == interface), None)
        if found is None:
            raise RankError(
                f"The host {hosts[task]} has no network interface {interface!r} with an IPv4 address (Param "
                f"horovodOptions, networkInterface). It has {sorted(set(addresses.values()))}."
            )
        return found
    if len(set(hosts)) == 1:
        return "127.0.0.1"
    own = socket.gethostbyname(hosts[task])
    if not own.startswith("127."):
        return own
    # Debian gives a host's own name the address 127.0.1.1: take the one from which the others are reached.
    for other in map(socket.gethostbyname, set(hosts) - {hosts[task]}):
        if not other.startswith("127."):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
                unconnected.connect((other, 9))  # sends nothing
                return unconnected.getsockname()[0]
    raise RankError(
        f"On {hosts[task]} the names of the hosts {sorted(set(hosts))} lead to the loopback, where ranks of others are "
        'not found. Name their network interface: horovodOptions={"networkInterface": "eth0"}; or set SPARK_LOCAL_IP.'
    )


def local_addresses() -> dict[str, str]:
    """The IPv4 addresses of this host, each with its network interface's name."""
    import psutil

    return {
        entry.address: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }


def _path_of(secret: str, port: int) -> str:
    return f"{secret}:{port}"  # Horovod writes http://ADDR:PORT/scope/key


def rank_environment(here: Place, own: str, server: str, port: int, secret: str) -> dict[str, str]:
    """The environment in which ``hvd.init()`` finds its peers, to be added to its own.

    Args:
        here: the rank's place.
        own: its address, whose network interface it uses.
        server: the address of the rendezvous server, which task 0 runs.
        port: of the rendezvous server.
        secret: that it wants to see.
    """
    interface = local_addresses().get(own)
    return {
        "HOROVOD_RANK": str(here.rank),
        "HOROVOD_SIZE": str(here.size),
        "HOROVOD_LOCAL_RANK": str(here.local_rank),
        "HOROVOD_LOCAL_SIZE": str(here.local_size),
        "HOROVOD_CROSS_RANK": str(here.cross_rank),
        "HOROVOD_CROSS_SIZE": str(here.cross_size),
        "HOROVOD_HOSTNAME": here.host,
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{server}:{port}/{secret}",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
        "HOROVOD_GLOO_TIMEOUT_SECONDS": JOIN_TIMEOUT,
    } | ({INTERFACE: interface} if interface else {})
