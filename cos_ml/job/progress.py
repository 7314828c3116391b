"""A bar and a line per epoch for the person at the driver, while the fit runs (both sides).

The driver listens for the length of one fit; the barrier task of rank 0 calls it, proves that it knows a secret made
for this fit, and sends lines of JSON. Where the driver can't be reached nothing is shown, and nothing fails.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cos_ml.job.auth import BoundedServer, answer, new_secret, same

__all__ = ["Address", "Display", "ProgressServer", "Reporter", "epoch_line"]

LONGEST_LINE = 64 << 10  # bytes
CONNECT_TIMEOUT = 5.0  # seconds
CHALLENGE = 32  # characters
MOST_CALLERS = 16  # a retry's task may call while the one before it is not gone yet
LONGEST_TEXT = 500  # characters of anything that is shown
MOST_VALUES = 100  # metrics of an event


@dataclass(frozen=True)
class Address:
    """Where the driver listens, and the secret that a caller has to know."""

    host: str
    port: int
    secret: str = field(repr=False)


class ProgressServer:
    """Receives the events of one fit, each a dict of plain values, and hands them to ``show`` (driver side)."""

    def __init__(self, host: str, show: Callable[[dict[str, Any]], None]) -> None:
        secret = new_secret()

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10  # seconds for the answer

            def handle(self) -> None:
                challenge = secrets.token_hex(CHALLENGE // 2).encode()
                self.wfile.write(challenge + b"\n")
                expected = answer(secret, challenge)
                if not same(self.rfile.readline(len(expected) + 1).strip(), expected):
                    return
                self.connection.settimeout(None)
                while len(line := self.rfile.readline(LONGEST_LINE)) and line.endswith(b"\n"):
                    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # no rank sends such
                        show(json.loads(line))

        class Server(BoundedServer):
            most = MOST_CALLERS

        self._server = Server((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.address = Address(host, self._server.server_address[1], secret)

    def close(self) -> None:
        """Stop listening, and hang up on whoever still calls."""
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
                challenge = self._socket.makefile("rb").readline(CHALLENGE + 1).strip()
                self._socket.sendall(answer(address.secret, challenge) + b"\n")
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


class Display:
    """Shows the events of one fit on standard error: a line per epoch, and a bar where a person watches (driver side).

    The bar counts rows, in a terminal or a notebook; in a log file there are the lines alone.
    """

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._lock = threading.Lock()
        self._bar: Any = None
        self._begun: set[int] = set()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event; what can't be shown is none of the fit's business."""
        with self._lock, contextlib.suppress(Exception):
            event = _harmless(event)
            if event["event"] == "note":
                self._print(event["text"])
            if event["event"] == "begin":
                self._begin(event)
            if event["event"] == "epoch":
                self._print(epoch_line(event))
            if self._watched and event["event"] in ("step", "epoch"):
                self._move(event)

    def close(self) -> None:
        """Take the bar away; the lines stay."""
        with self._lock, contextlib.suppress(Exception):
            if self._bar is not None:
                self._bar.close()

    def _begin(self, event: Mapping[str, Any]) -> None:
        """Say where the ranks begin, unless it is where everybody expects it."""
        again = event["candidate"] in self._begun
        self._begun.add(event["candidate"])
        if event["epoch"] or event["step"]:
            step = f", step {event['step']}" if event["step"] else ""
            self._print(f"The training goes on after epoch {event['epoch']}{step}, from the checkpoint.")
        elif again:
            why = "no checkpoint was written yet" if event["kept"] else "Param checkpointDir is not set"
            self._print(f"The ranks were lost, and start over from the first epoch: {why}.")

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def _move(self, event: Mapping[str, Any]) -> None:
        total = event["epochs"] * event["rows"]
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, unit=" rows", unit_scale=True, leave=False, dynamic_ncols=True)
        done = (event["epoch"] - 1 + event["step"] / event["steps"]) * event["rows"]
        if done < self._bar.n or total != self._bar.total:
            self._bar.reset(total)  # the next candidate of a grid
        self._bar.set_description(_where(event), refresh=False)
        self._bar.set_postfix(
            {"step": f"{event['step']}/{event['steps']}", "loss": f"{event['logs'].get('loss', float('nan')):.4f}"},
            refresh=False,
        )
        self._bar.update(max(0, int(done) - self._bar.n))
        self._bar.refresh()


def _harmless(value: Any) -> Any:
    """An event with short texts, and no characters that a terminal would take for commands."""
    if isinstance(value, str):
        return "".join(one if one.isprintable() else "?" for one in value[:LONGEST_TEXT])
    if isinstance(value, Mapping):
        return {_harmless(str(name)): _harmless(one) for name, one in list(value.items())[:MOST_VALUES]}
    return value if isinstance(value, (bool, int, float)) else None


def epoch_line(event: Mapping[str, Any]) -> str:
    """An epoch's event as the line that a person reads."""
    metrics = " - ".join(f"{name}: {value:.4f}" for name, value in event["logs"].items())
    return f"{_where(event)} - {metrics} - {event['rows_per_second']:,.0f} rows/s"


def _where(event: Mapping[str, Any]) -> str:
    width = len(str(event["epochs"]))
    of_a_grid = event.get("candidates", 1) > 1
    candidate = f"candidate {event['candidate']}/{event['candidates']}, " if of_a_grid else ""
    return f"{candidate}epoch {event['epoch']:{width}d}/{event['epochs']}"
