"""Horovod's rendezvous server, bounded and behind a secret (barrier task side).

Imported where there are several ranks: numTrainWorkers=1 needs no Horovod.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from horovod.runner.common.util.hosts import SlotInfo
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

from cos_ml.job.auth import BoundedServer, same
from cos_ml.job.placement import RankInfo
from cos_ml.job.rendezvous import READY_SCOPE

__all__ = ["Server"]

METHODS = (b"GET", b"PUT", b"DELETE")
LARGEST_VALUE = 1 << 20  # bytes: the addresses under which a rank expects each of the others
CALLS_OF_A_RANK = 4  # at a time
KEYS_OF_A_RANK = 16
LONGEST_LINE, MOST_LINES = 4096, 32  # of a request's headers
PATIENCE = 5.0  # seconds that a rank waits for one answer; it asks again


class Handler(RendezvousHandler):  # type: ignore[misc]
    """One request of a rank, or of its task."""

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
        found = self._all_reports if scope == READY_SCOPE else partial(super()._get_value, scope, key)
        with self.server.put:
            self.server.put.wait_for(lambda: self.server.closed or found() is not None, PATIENCE)
        return found()

    def _all_reports(self) -> bytes | None:
        reports = self.server.cache.get(READY_SCOPE, {})
        return b"".join(reports.values()) if len(reports) == self.server.ranks else None

    def _put_value(self, scope: str, key: str, value: bytes) -> None:
        if sum(map(len, self.server.cache.values())) < self.server.most_keys:
            super()._put_value(scope, key, value)
        with self.server.put:
            self.server.put.notify_all()


class Server(BoundedServer, RendezvousHTTPServer):  # type: ignore[misc]
    """What ranks have put, for the others to get.

    Attributes:
        start: what every path begins with.
        put: notified of a new value, and of the end.
        closed: whether that has come.
    """

    request_queue_size = 1024  # connections that come before it serves wait
    allowed: frozenset[str] = frozenset()
    start = b""
    ranks = most_keys = 0
    closed = False

    def __init__(self, address: str) -> None:
        self.put = threading.Condition()
        super().__init__((address, 0), Handler, 0)

    def admit(self, ranks: Sequence[RankInfo], addresses: Iterable[str]) -> None:
        """Know the ranks at ``ranks``, in their order, which call from ``addresses``."""
        self.allowed = frozenset(addresses)
        self.ranks = len(ranks)
        self.most = 64 + CALLS_OF_A_RANK * self.ranks
        self.most_keys = KEYS_OF_A_RANK * self.ranks
        self.init(
            [
                SlotInfo(
                    hostname=one.host, rank=one.rank, local_rank=one.local_rank, cross_rank=one.cross_rank,
                    size=one.size, local_size=one.local_size, cross_size=one.cross_size,
                )
                for one in ranks
            ]
        )  # fmt: skip

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Hang up on whoever calls from elsewhere."""
        return client_address[0] in self.allowed

    def server_close(self) -> None:
        """Stop listening, and send whoever waits away."""
        super().server_close()
        with self.put:
            self.closed = True
            self.put.notify_all()
