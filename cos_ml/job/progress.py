"""The channel of progress: how events of a fit reach the driver, and the bar that shows them (both sides).

The driver runs a server for the length of one fit. The barrier task of rank 0 connects, proves that it knows this fit's
secret, and sends lines of JSON. Where it can't reach the driver, listeners learn of no epochs and nothing fails.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cos_ml.interfaces import resolve
from cos_ml.job.auth import BoundedServer, hmac_response, on_free_port
from cos_ml.listeners import Fit, FitListener, Progress, TrainBegin
from cos_ml.terminal import tell

__all__ = ["Address", "Display", "ProgressServer", "Reporter", "epoch_line", "validation_line"]

MAX_LINE, CHALLENGE = 64 << 10, 32  # bytes
CONNECT_TIMEOUT = 5.0  # seconds
MAX_CONNECTIONS = 16  # the task of a retry may connect before the one of the attempt before is gone
MAX_CHARACTERS = 500  # of any text that is shown
MAX_METRICS = 100  # of a line


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


class Display(FitListener):
    """Shows one fit on standard error (driver side).

    There is a line per epoch and validation, and a bar that counts rows in a terminal or a notebook. A log file gets
    the lines alone.
    """

    def __init__(self) -> None:
        self._interactive = _is_terminal() or _in_notebook()
        self._bar: Any = None
        self._begun: set[int] = set()  # candidates

    def on_note(self, fit: Fit, text: str) -> None:
        """Show the note."""
        self._print(_printable(text))

    def on_train_begin(self, fit: Fit, begin: TrainBegin) -> None:
        """Print where training begins, unless it is at the first epoch of a first attempt."""
        restarted = begin.candidate in self._begun
        self._begun.add(begin.candidate)
        if begin.epoch or begin.step:
            step = f", step {begin.step}" if begin.step else ""
            self._print(f"Resuming from the checkpoint after epoch {begin.epoch}{step}.")
        elif restarted:
            why = "no checkpoint was written yet" if begin.kept else "Param checkpointDir is not set"
            self._print(f"The ranks were lost; training restarts from the first epoch: {why}.")

    def on_step(self, fit: Fit, progress: Progress) -> None:
        """Move the bar."""
        self._move_bar(progress)

    def on_validation_end(self, fit: Fit, progress: Progress) -> None:
        """Print its line."""
        self._print(validation_line(progress))
        self._move_bar(progress)

    def on_epoch_end(self, fit: Fit, progress: Progress) -> None:
        """Print its line."""
        self._print(epoch_line(progress))
        self._move_bar(progress)

    def on_fit_end(self, fit: Fit, models: Any, error: BaseException | None) -> None:
        """Remove the bar; the lines stay."""
        with contextlib.suppress(Exception):  # the terminal may be closed
            if self._bar is not None:
                self._bar.close()

    def _print(self, line: str) -> None:
        if self._bar is None:
            tell(line)
        else:
            with contextlib.suppress(Exception):
                self._bar.write(line, file=sys.stderr)

    def _move_bar(self, progress: Progress) -> None:
        if self._interactive:
            with contextlib.suppress(Exception):
                self._moved(progress)

    def _moved(self, progress: Progress) -> None:
        total = round(progress.total_steps / progress.steps * progress.rows)
        if self._bar is None:
            self._bar = _tqdm()(total=total, unit=" rows", unit_scale=True, leave=False, dynamic_ncols=True)
        done = progress.steps_so_far / progress.steps * progress.rows
        if done < self._bar.n or total != self._bar.total:
            self._bar.reset(total)  # the next candidate of a grid
        loss = f"{progress.metrics.get('loss', float('nan')):.4f}"
        self._bar.set_description(_epoch_name(progress), refresh=False)
        self._bar.set_postfix({"step": _step_name(progress), "loss": loss}, refresh=False)
        self._bar.update(max(0, int(done) - self._bar.n))
        self._bar.refresh()


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, as for a program without a console, or it is closed
        return False


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


def _printable(text: str) -> str:
    """A text, shortened, and without characters that a terminal would take for commands."""
    return "".join(one if one.isprintable() else "?" for one in str(text)[:MAX_CHARACTERS])


def epoch_line(progress: Progress) -> str:
    """The line that is printed at the end of an epoch."""
    return f"{_epoch_name(progress)} - {_metrics(progress)} - {progress.rows_per_second:,.0f} rows/s"


def validation_line(progress: Progress) -> str:
    """The line that is printed after a validation within an epoch."""
    return f"{_epoch_name(progress)}, step {_step_name(progress)} - {_metrics(progress)}"


def _metrics(progress: Progress) -> str:
    shown = list(progress.metrics.items())[:MAX_METRICS]
    return " - ".join(f"{_printable(name)}: {value:.4f}" for name, value in shown)


def _step_name(progress: Progress) -> str:
    rest = progress.total_steps - (progress.epoch - 1) * progress.steps  # maxSteps may end the last epoch early
    return f"{progress.step}/{min(progress.steps, rest)}"


def _epoch_name(progress: Progress) -> str:
    width = len(str(progress.epochs))
    candidate = f"candidate {progress.candidate + 1}/{progress.candidates}, " if progress.candidates > 1 else ""
    return f"{candidate}epoch {progress.epoch:{width}d}/{progress.epochs}"
