"""Progress of a fit: a bar, and a line per epoch or validation, on the driver's standard error (both sides).

The driver runs a server for the length of one fit. The barrier task of rank 0 connects, proves that it knows this fit's
secret, and sends lines of JSON. Where it can't reach the driver, nothing is shown and nothing fails.
"""

from __future__ import annotations

import contextlib
import hmac
import importlib.util
import json
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cos_ml.interfaces import resolve
from cos_ml.job.auth import BoundedServer, hmac_response, on_free_port

__all__ = ["Address", "Display", "ProgressServer", "Reporter", "epoch_line"]

MAX_LINE, CHALLENGE = 64 << 10, 32  # bytes
CONNECT_TIMEOUT = 5.0  # seconds
MAX_CONNECTIONS = 16  # the task of a retry may connect before the one of the attempt before is gone
MAX_CHARACTERS = 500  # of any text that is shown
MAX_METRICS = 100  # of an event


@dataclass(frozen=True)
class Address:
    """Where the driver listens, and the secret that a task must know."""

    host: str
    port: int
    secret: str = field(repr=False)


class ProgressServer:
    """Receives the events of one fit, each a dict of plain values, and passes them to ``show`` (driver side).

    It listens on any port, or on one of ``ports``.
    """

    def __init__(self, host: str, show: Callable[[dict[str, Any]], None], ports: Sequence[int] | None = None) -> None:
        secret = secrets.token_hex(16)  # 128 bits

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10  # seconds for the response to the challenge

            def handle(self) -> None:
                challenge = secrets.token_hex(CHALLENGE // 2).encode()
                self.wfile.write(challenge + b"\n")
                expected = hmac_response(secret, challenge)
                if not hmac.compare_digest(self.rfile.readline(len(expected) + 1).strip(), expected):
                    return
                self.connection.settimeout(None)
                while len(line := self.rfile.readline(MAX_LINE)) and line.endswith(b"\n"):
                    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # no rank sends such
                        show(json.loads(line))

        class Server(BoundedServer):
            max_connections = MAX_CONNECTIONS
            allow_reuse_address = True

        bound = next(iter(resolve(host)), host)
        self._server = on_free_port(lambda port: Server((bound, port), Handler), ports or [0])
        self._server.start()
        self.address = Address(host, self._server.server_address[1], secret)

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._server.close()


class Reporter:
    """Sends events to the driver for as long as it can be reached (barrier task side)."""

    def __init__(self, address: Address | None) -> None:
        self._socket: socket.socket | None = None
        if address is not None:
            try:
                self._socket = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT)
                challenge = self._socket.makefile("rb").readline(CHALLENGE + 1).strip()
                self._socket.sendall(hmac_response(address.secret, challenge) + b"\n")
            except OSError:
                self.close()

    def send(self, event: Mapping[str, Any]) -> None:
        """Send one event; a driver that is gone does not fail the fit."""
        if self._socket is not None:
            try:
                self._socket.sendall(json.dumps(event).encode() + b"\n")
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Display:
    """Shows the events of one fit on standard error (driver side).

    There is a line per epoch and validation, and a bar that counts rows in a terminal or a notebook. A log file gets
    the lines alone.
    """

    def __init__(self) -> None:
        self._interactive = sys.stderr.isatty() or _in_notebook()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._begun: set[int] = set()  # candidates

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event; one that can't be shown does not fail the fit."""
        with self._lock, contextlib.suppress(Exception):
            event = _sanitized(event)
            if event["event"] == "note":
                self._print(event["text"])
            if event["event"] == "begin":
                self._show_begin(event)
            if event["event"] in ("epoch", "validation"):
                self._print(epoch_line(event))
            if self._interactive and event["event"] in ("step", "epoch", "validation"):
                self._move_bar(event)

    def close(self) -> None:
        """Remove the bar; the lines stay."""
        with self._lock, contextlib.suppress(Exception):
            if self._bar is not None:
                self._bar.close()

    def _show_begin(self, event: Mapping[str, Any]) -> None:
        """Print where training begins, unless it is at the first epoch of a first attempt."""
        restarted = event["candidate"] in self._begun
        self._begun.add(event["candidate"])
        if event["epoch"] or event["step"]:
            step = f", step {event['step']}" if event["step"] else ""
            self._print(f"Resuming from the checkpoint after epoch {event['epoch']}{step}.")
        elif restarted:
            why = "no checkpoint was written yet" if event["kept"] else "Param checkpointDir is not set"
            self._print(f"The ranks were lost; training restarts from the first epoch: {why}.")

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def _move_bar(self, event: Mapping[str, Any]) -> None:
        total = round(event["total_steps"] / event["steps"] * event["rows"])
        if self._bar is None:
            self._bar = _tqdm()(total=total, unit=" rows", unit_scale=True, leave=False, dynamic_ncols=True)
        done = (event["epoch"] - 1 + event["step"] / event["steps"]) * event["rows"]
        if done < self._bar.n or total != self._bar.total:
            self._bar.reset(total)  # the next candidate of a grid
        loss = f"{event['logs'].get('loss', float('nan')):.4f}"
        self._bar.set_description(_epoch_name(event), refresh=False)
        self._bar.set_postfix({"step": _step_name(event), "loss": loss}, refresh=False)
        self._bar.update(max(0, int(done) - self._bar.n))
        self._bar.refresh()


def _in_notebook() -> bool:
    """Whether this process runs a notebook's cells, and has not merely imported what does."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _tqdm() -> Any:
    """The bar that suits where this runs; a notebook without ipywidgets gets that of a terminal, and no warning."""
    if importlib.util.find_spec("ipywidgets") is None:
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    return tqdm


def _sanitized(value: Any) -> Any:
    """An event with its texts shortened, and without characters that a terminal would take for commands."""
    if isinstance(value, str):
        return "".join(one if one.isprintable() else "?" for one in value[:MAX_CHARACTERS])
    if isinstance(value, Mapping):
        return {_sanitized(str(name)): _sanitized(one) for name, one in list(value.items())[:MAX_METRICS]}
    return value if isinstance(value, (bool, int, float)) else None


def epoch_line(event: Mapping[str, Any]) -> str:
    """The line that is printed for the event of an epoch, or of a validation within one."""
    metrics = " - ".join(f"{name}: {value:.4f}" for name, value in event["logs"].items())
    if event["event"] == "validation":
        return f"{_epoch_name(event)}, step {_step_name(event)} - {metrics}"
    return f"{_epoch_name(event)} - {metrics} - {event['rows_per_second']:,.0f} rows/s"


def _step_name(event: Mapping[str, Any]) -> str:
    rest = event["total_steps"] - (event["epoch"] - 1) * event["steps"]  # maxSteps may end the last epoch early
    return f"{event['step']}/{min(event['steps'], rest)}"


def _epoch_name(event: Mapping[str, Any]) -> str:
    width = len(str(event["epochs"]))
    in_grid = event.get("candidates", 1) > 1
    candidate = f"candidate {event['candidate']}/{event['candidates']}, " if in_grid else ""
    return f"{candidate}epoch {event['epoch']:{width}d}/{event['epochs']}"
