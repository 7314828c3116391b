"""What tasks know of the rendezvous server of their fit, and how they use it (barrier task side)."""

from __future__ import annotations

import contextlib
import http.client

from cos_ml.errors import RankError

__all__ = ["JOIN_TIMEOUT", "READY_SCOPE", "all_ready", "secret_path"]

JOIN_TIMEOUT = "120"  # seconds that a rank waits for the others to join
READY_SCOPE, READY, NOT_READY = "ready", b"1", b"0"  # where each task reports whether its rank can join


def secret_path(secret: str, port: int) -> str:
    """The first part of every path of the rendezvous server."""
    return f"{secret}:{port}"  # Horovod requests http://ADDR:PORT/scope/key, and its ADDR ends with our secret


def all_ready(server: str, port: int, secret: str, rank: int, ready: bool) -> bool:
    """Report to the rendezvous server whether this task's rank is ready to join, and wait for all tasks' reports.

    Returns:
        bool: whether all ranks are ready.

    Raises:
        RankError: the server can't be reached.
    """

    def request(method: str, key: str, value: bytes | None = None) -> bytes | None:
        with contextlib.closing(http.client.HTTPConnection(server, port, timeout=float(JOIN_TIMEOUT))) as connection:
            connection.request(method, f"/{secret_path(secret, port)}/{READY_SCOPE}/{key}", value)
            response = connection.getresponse()
            return response.read() if response.status == http.HTTPStatus.OK else None

    try:
        request("PUT", str(rank), READY if ready else NOT_READY)
    except (OSError, http.client.HTTPException) as error:
        raise RankError(f"Rank {rank} can't reach the rendezvous server at {server}: {error}.") from None
    reports = None
    while reports is None:
        try:
            reports = request("GET", "all")
        except (OSError, http.client.HTTPException):
            return False  # task 0 has ended, as it does once it knows that not all are ready
    return NOT_READY not in reports
