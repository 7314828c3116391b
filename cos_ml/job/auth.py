"""What the servers of a fit share: proof of a secret, a limit on connections, an orderly end (both sides).

docs/security.md says what is protected, and against whom.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cos_ml.interfaces import family_of

__all__ = ["BoundedServer", "hmac_response", "on_free_port"]

S = TypeVar("S")


def on_free_port(make: Callable[[int], S], ports: Iterable[int]) -> S:
    """What ``make`` returns for the first of these ports that is free; raises OSError if none is."""
    problem = OSError("no port to listen on")
    for port in ports:
        try:
            return make(port)
        except OSError as error:
            problem = error
    raise problem


def hmac_response(secret: str, challenge: bytes) -> bytes:
    """The response that proves knowledge of ``secret`` without sending it: an HMAC (RFC 2104) of the challenge."""
    return hmac.new(secret.encode(), challenge, hashlib.sha256).hexdigest().encode()


class BoundedServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A TCP server with a thread per connection, a limit on connections, and none left open after it is closed.

    Attributes:
        max_connections: how many connections may be open at a time; more are closed at once.
    """

    thread: threading.Thread | None = None
    max_connections = 64
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], *args: Any) -> None:
        self._connections: set[Any] = set()
        self._lock = threading.Lock()
        self.address_family = family_of(address[0])
        super().__init__(address, *args)

    def server_bind(self) -> None:
        """Bind to the address; "::" is every one of IPv4, too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def start(self) -> None:
        """Answer connections in a thread until ``close``."""
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop answering, close all connections, and free the port; a second call does nothing."""
        if self.thread is not None:
            self.shutdown()
            self.thread.join()
            self.thread = None
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle one connection, unless too many are open."""
        with self._lock:
            accepted = len(self._connections) < self.max_connections
            if accepted:
                self._connections.add(request)
        if accepted:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Close one connection."""
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, and close all connections."""
        super().server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # the other end has closed it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: anyone who can connect can cause errors."""
