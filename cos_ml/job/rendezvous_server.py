"""Horovod's rendezvous server, with limits and behind a secret (barrier task side).

The one place that uses Horovod's inside: its key-value server, how its handler gets and puts values, and SlotInfo. They
are those of Horovod 0.28.1. Imported only for several ranks: numTrainWorkers=1 needs no Horovod.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any

from cos_ml.errors import SetupError
from cos_ml.job.auth import BoundedServer
from cos_ml.job.exchange import kind_of
from cos_ml.job.placement import RankInfo

try:
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    _USED = (RendezvousHandler._get_value, RendezvousHandler._put_value, RendezvousHTTPServer.init)
except (ImportError, AttributeError) as error:
    raise SetupError(
        f"This Horovod has another rendezvous server than Horovod 0.28.1, which cos_ml uses: {error}. Install that "
        "version, here and in the executors' environment: cos-ml install-horovod"
    ) from error

__all__ = ["Rendezvous"]

PROCESS_SET = "_process_set_hash_"  # what Horovod appends to the name of a scope, before a number
METHODS = (b"GET", b"PUT", b"DELETE")
MAX_VALUE = 1 << 20  # bytes; values are the addresses at which a rank expects each of the others
CONNECTIONS_PER_RANK = 4
KEYS_PER_RANK = 16
MAX_LINE, MAX_LINES = 4096, 32  # bytes per header line, and header lines per request
WAIT = 5.0  # seconds that a request waits for a value; the rank then asks again


class Handler(RendezvousHandler):  # type: ignore[misc]
    """One request of a rank."""

    def parse_request(self) -> bool:
        """Check the secret before anything else is read; a request without it gets no response.

        Only Content-Length is read from the headers: joining many ranks spends most of its time in http.server's
        parser otherwise.
        """
        self.close_connection = True
        words = self.raw_requestline.split()
        path = words[1] if len(words) == 3 and words[0] in METHODS else b""
        prefix = self.server.path_prefix
        if not hmac.compare_digest(path[: len(prefix)], prefix):
            return False
        self.command, self.path = words[0].decode(), path[len(prefix) - 1 :].decode("latin-1")
        self.requestline = self.request_version = "HTTP/1.1"
        lines = list(itertools.islice(iter(partial(self.rfile.readline, MAX_LINE), b"\r\n"), MAX_LINES))
        fields = dict(line.decode("latin-1").rstrip().partition(":")[::2] for line in lines)
        self.headers: dict[str, str] = {name.title(): value.strip() for name, value in fields.items()}
        length = self.headers.get("Content-Length", "0")
        return len(lines) < MAX_LINES and length.isdecimal() and int(length) <= MAX_VALUE

    def _get_value(self, scope: str, key: str) -> bytes | None:
        """Wait for a value that another rank has still to put; ranks would poll every 10 ms otherwise."""
        get = partial(super()._get_value, scope, key)
        if get() is None:
            self.server.ask(scope, key)
        with self.server.changed:
            self.server.changed.wait_for(lambda: self.server.closed or get() is not None, WAIT)
        return get()

    def _put_value(self, scope: str, key: str, value: bytes) -> None:
        with self.server.changed:
            if sum(map(len, self.server.cache.values())) < self.server.max_keys:
                super()._put_value(scope, key, value)
                self.server.unsent.setdefault(scope, {})[key] = value
            self.server.changed.notify_all()


class Rendezvous(BoundedServer, RendezvousHTTPServer):  # type: ignore[misc]
    """Horovod's rendezvous server on one address of this host.

    Ranks find each other's addresses in it. Each task has one for its own rank: what a rank puts goes to the other
    tasks when it first asks for a value of theirs, and all of theirs arrive at once.

    It answers requests from the ranks' hosts that carry its secret. Horovod's client sends no headers of ours, so the
    secret is the first part of every path. The port is bound at once; requests are answered from ``serve`` on.

    Args:
        address: the address to listen on.
        exchange: exchanges values with the other tasks, as ``Channel.exchange``; None if all ranks use this server.

    Attributes:
        port: the port that it listens on.
        secret: the secret.
        path_prefix: what every path must begin with.
        changed: notified of each new value, and when the server is closed.
        closed: whether it is closed.
    """

    request_queue_size = 1024  # connections that arrive before requests are answered wait
    allowed: frozenset[str] = frozenset()
    max_keys = 0
    closed = False

    def __init__(self, address: str, exchange: Callable[..., Future[dict[str, bytes]]] | None = None) -> None:
        self.exchange, self.changed = exchange, threading.Condition()
        self.unsent: dict[str, dict[str, bytes]] = {}
        self.asked: set[tuple[str, str]] = set()
        super().__init__((address, 0), Handler, 0)
        self.port: int = self.server_address[1]
        self.secret = secrets.token_hex(16)  # 128 bits
        # Horovod requests http://ADDR:PORT/scope/key, and its ADDR ends with our secret.
        self.path_prefix = f"/{self.secret}:{self.port}/".encode()

    def serve(self, ranks: Iterable[RankInfo], addresses: Iterable[str]) -> None:
        """Start to answer ``ranks``, whose requests come from one of ``addresses``."""
        self.allowed, in_order = frozenset(addresses), sorted(ranks, key=lambda one: one.rank)
        self.max_connections = 64 + CONNECTIONS_PER_RANK * len(in_order)
        self.max_keys = KEYS_PER_RANK * len(in_order)
        self.init([SlotInfo(hostname=(values := asdict(one)).pop("host"), **values) for one in in_order])
        self.start()

    def ask(self, scope: str, key: str) -> None:
        """Ask the other tasks for the value and all of its kind, unless they have been asked."""
        if self.exchange is None:
            return
        size = self.scope_size.get(scope.split(PROCESS_SET)[0], 0)
        with self.changed:
            kind = scope, kind_of(key, size)
            if kind in self.asked:
                return
            self.asked.add(kind)
            own = self.unsent.pop(scope, {})
        self.exchange(scope, own, key, size).add_done_callback(partial(self._receive, scope))

    def _receive(self, scope: str, done: Future[dict[str, bytes]]) -> None:
        """Keep the values that have arrived; if the other tasks are lost, refuse further requests."""
        with self.changed:
            if done.exception() is None:
                with self.cache_lock:
                    self.cache.setdefault(scope, {}).update(done.result())
            else:
                self.closed = True
            self.changed.notify_all()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the request comes from an allowed address; its connection is closed otherwise."""
        return client_address[0] in self.allowed and not self.closed

    def close(self) -> None:
        """Stop answering, end the requests that wait, and free the port; a second call does nothing."""
        super().close()
        with self.changed:
            self.closed = True
            self.changed.notify_all()
