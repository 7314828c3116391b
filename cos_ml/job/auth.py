"""What all servers of a fit have in common: a bound on their callers, and an end (driver and barrier task side).

docs/security.md says what is protected, and against whom.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import socketserver
import threading
from typing import Any

__all__ = ["BoundedServer", "answer", "new_secret", "redacted", "same"]


def new_secret() -> str:
    """128 random bits for one fit, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def answer(secret: str, challenge: bytes) -> bytes:
    """What proves that a caller knows ``secret``, which itself is not sent: an HMAC (RFC 2104) of the challenge."""
    return hmac.new(secret.encode(), challenge, hashlib.sha256).hexdigest().encode()


def same(given: bytes, expected: bytes) -> bool:
    """Whether both are equal; takes as long whether they are or not."""
    return hmac.compare_digest(given, expected)


def redacted(text: bytes, secret: str) -> bytes:
    """``text`` without the secret, for logs."""
    return text.replace(secret.encode(), b"***") if secret else text


class BoundedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each caller, so many callers at a time, and none of them left when the server is closed.

    Attributes:
        most: connections at a time; whoever comes then is sent away.
    """

    most = 64
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self._callers: set[Any] = set()
        self._lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take one call, unless there are too many."""
        with self._lock:
            welcome = len(self._callers) < self.most
            if welcome:
                self._callers.add(request)
        if welcome:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """A call is over."""
        with self._lock:
            self._callers.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, and hang up on whoever still calls."""
        super().server_close()
        with self._lock:
            callers = list(self._callers)
        for caller in callers:
            with contextlib.suppress(OSError):  # it has hung up itself
                caller.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whoever can call can also fail."""
