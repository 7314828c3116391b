"""Whether the hosts of a fit's ranks reach each other, asked where ranks make no progress (barrier task side).

The first task of each host listens until it ends. It takes connections and ends them: that one comes is all there is to
know. Ranks have connections of their own by then, which say nothing where the network between two hosts is gone.
"""

from __future__ import annotations

import re
import socketserver
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import create_connection

from cos_ml.job.auth import BoundedServer, on_free_port

__all__ = ["PATIENCE", "Place", "listen", "lost_by", "message", "unreachable"]

Place = tuple[str, int]  # address and port
PATIENCE = 5.0  # seconds for which a host is tried: a link that is back in time is none that is lost
PAUSE = 0.2  # seconds between two tries
AT_ONCE = 64  # hosts that are tried
LOST = re.compile(r"Hosts lost each other: \S+ can't reach (.+?)\.(\s|$)")


def listen(address: str, ports: Sequence[int] | None) -> BoundedServer | None:
    """Listen on a port of these, or any; None where none is free, as what this server tells is no fit's need."""
    handler = socketserver.BaseRequestHandler  # does nothing
    try:
        server = on_free_port(lambda port: BoundedServer((address, port), handler), ports or [0])
    except OSError:
        return None
    server.start()
    return server


def unreachable(places: Mapping[str, Place], seconds: float = PATIENCE) -> list[str]:
    """The hosts, by name, that can't be connected to at their places."""
    with ThreadPoolExecutor(min(AT_ONCE, len(places)) or 1) as pool:
        found = pool.map(lambda place: _answers(place, seconds), places.values())
        return [host for host, answers in zip(places, found, strict=True) if not answers]


def _answers(place: Place, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            create_connection(place, left).close()
            return True
        except ConnectionRefusedError:  # the task there has ended, which the host has told
            return True
        except OSError:
            threading.Event().wait(PAUSE)
    return False


def message(host: str, lost: Sequence[str]) -> str:
    """What an error says of hosts that ``host`` can't reach; ``lost_by`` reads it."""
    return f"Hosts lost each other: {host} can't reach {', '.join(lost)}."


def lost_by(error: str) -> list[str]:
    """The hosts that could not be reached, by the text of an error; none where it is another one."""
    found = LOST.search(error)
    return found[1].split(", ") if found else []
