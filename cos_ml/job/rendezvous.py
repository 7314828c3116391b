"""Horovod's rendezvous server, which only the ranks of one fit can use (barrier task side)."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cos_ml.job.auth import new_secret
from cos_ml.job.horovod_env import secret_path
from cos_ml.job.placement import RankInfo

__all__ = ["NOT_READY", "READY", "READY_SCOPE", "Rendezvous"]

READY_SCOPE, READY, NOT_READY = "ready", b"1", b"0"  # where each task reports whether its rank can join


class Rendezvous:
    """Horovod's rendezvous server on one address of this host, for the ranks of one fit.

    It answers callers from the ranks' hosts that know a secret of this fit. Horovod's client sends no headers of ours,
    so the secret is the first part of every path. The port is bound at once, so that the other tasks can be told of
    it; requests are answered once the ranks are known.

    Args:
        address: the address to listen on.

    Attributes:
        port: the port.
        secret: the secret.
    """

    def __init__(self, address: str) -> None:
        from cos_ml.job.rendezvous_server import Server  # a single rank needs no Horovod

        self._server = Server(address)
        self._thread: threading.Thread | None = None
        self.port: int = self._server.server_address[1]
        self.secret = new_secret()
        self._server.start = f"/{secret_path(self.secret, self.port)}/".encode()

    def serve(self, ranks: Iterable[RankInfo], addresses: Iterable[str]) -> None:
        """Start to answer ``ranks``, which call from one of ``addresses``."""
        self._server.admit(sorted(ranks, key=lambda one: one.rank), addresses)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port; a second call does nothing."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
