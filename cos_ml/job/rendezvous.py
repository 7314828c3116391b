"""Where ranks meet: placement, Horovod's rendezvous server and the environment of a rank (barrier task side)."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterable
from types import TracebackType

from cos_ml.errors import RankError
from cos_ml.job.auth import new_secret
from cos_ml.job.horovod_env import JOIN_TIMEOUT, _path_of
from cos_ml.job.placement import Place

__all__ = [
    "INTERFACE", "Place", "Rendezvous", "all_ready", "local_addresses", "own_address", "place", "rank_environment",
]  # fmt: skip

READY, YES, NO = "ready", b"1", b"0"  # the scope in which each task says whether its rank can join


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
