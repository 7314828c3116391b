"""A line per epoch for the person at the driver, while the fit runs (both sides).

The driver listens for the length of one fit; the barrier task of rank 0 calls it, proves with a secret made for this
fit that it is its own, and sends lines of JSON. Where the driver can't be reached nothing is shown, and nothing fails.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["Address", "Listener", "Reporter", "epoch_line"]

LONGEST_LINE = 64 << 10  # bytes
CONNECT_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Address:
    """Where the driver listens, and the secret that it expects first."""

    host: str
    port: int
    secret: str


class Listener:
    """Receives the events of one fit, each a dict of plain values, and hands them to ``show`` (driver side)."""

    def __init__(self, host: str, show: Callable[[dict[str, Any]], None]) -> None:
        secret = secrets.token_hex(16)

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10  # seconds for the secret

            def handle(self) -> None:
                if not hmac.compare_digest(self.rfile.readline(len(secret) + 1).strip(), secret.encode()):
                    return
                self.connection.settimeout(None)
                while len(line := self.rfile.readline(LONGEST_LINE)) and line.endswith(b"\n"):
                    show(json.loads(line))

        self._server = socketserver.ThreadingTCPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.address = Address(host, self._server.server_address[1], secret)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Reporter:
    """Sends events to the driver, as long as it can be reached (barrier task side)."""

    def __init__(self, address: Address | None) -> None:
        self._socket: socket.socket | None = None
        if address is not None:
            try:
                self._socket = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT)
                self._socket.sendall(address.secret.encode() + b"\n")
            except OSError:
                self._socket = None

    def send(self, event: Mapping[str, Any]) -> None:
        """Send one event; a driver that is gone is none of the fit's business."""
        if self._socket is not None:
            try:
                self._socket.sendall(json.dumps(event).encode() + b"\n")
            except OSError:
                self.close()

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def epoch_line(event: Mapping[str, Any]) -> str:
    """An epoch's event as the line that a person reads."""
    width = len(str(event["epochs"]))
    metrics = " - ".join(f"{name}: {value:.4f}" for name, value in event["logs"].items())
    return f"epoch {event['epoch']:{width}d}/{event['epochs']} - {metrics} - {event['rows_per_second']:,.0f} rows/s"


def show_epoch(event: Mapping[str, Any]) -> None:
    """Print an epoch's event to standard error, where Keras's users and Spark's look for progress."""
    print(epoch_line(event), file=sys.stderr, flush=True)
