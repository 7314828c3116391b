"""Where ranks meet: placement, Horovod's rendezvous server and the environment of a rank (barrier task side)."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from cos_ml.errors import RankError
from cos_ml.job.auth import new_secret

__all__ = [
    "INTERFACE", "Place", "Rendezvous", "all_ready", "local_addresses", "own_address", "place", "rank_environment",
]  # fmt: skip

JOIN_TIMEOUT = "120"  # seconds until a rank whose peers don't come gives up
INTERFACE = "HOROVOD_GLOO_IFACE"
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
        from cos_ml.job.rendezvous_server import Server  # numTrainWorkers=1 needs no Horovod

        self._server = Server(address)
        self._thread: threading.Thread | None = None
        self.port: int = self._server.server_address[1]
        self.secret = new_secret()
        self._server.start = f"/{_path_of(self.secret, self.port)}/".encode()

    def serve(self, places: Iterable[Place], addresses: Iterable[str]) -> None:
        """Begin to answer the ranks at ``places``, when they call from one of ``addresses``."""
        self._server.admit(sorted(places, key=lambda here: here.rank), addresses)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; the second call does nothing."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

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
