"""An authenticated connection between two barrier tasks (barrier task side).

Both ends prove that they know the job's secret before anything else is sent, and each message carries an HMAC: whoever
listens on a port or connects to one without the secret learns nothing and changes nothing. Nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from cos_ml.data import blobs
from cos_ml.interfaces import plain

__all__ = ["Link", "accept", "connect", "pack", "ports", "unpack"]

NONCE = PROOF = 32  # bytes
MAX_MESSAGE, MAX_UNPACKED = 256 << 20, 1 << 30  # bytes
PORTS = range(32768, 61000)  # Linux's own for connections, which firewalls between a cluster's hosts let pass
CANDIDATES = 8  # ports, of which others may be in use
KEEPALIVE = {  # a host that is gone is noticed in 2 minutes, and no firewall forgets a connection
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000,  # milliseconds
    }.items()
    if hasattr(socket, name)  # as on Linux
}  # fmt: skip


def ports(secret: str, allowed: Sequence[int] = PORTS) -> list[int]:
    """The ports of which task 0 listens on the first that is free; they follow from the secret."""
    digests = (_mac(secret.encode(), b"port %d" % number) for number in range(CANDIDATES))
    return [allowed[int.from_bytes(digest[:8], "big") % len(allowed)] for digest in digests]


def pack(items: Mapping[str, bytes]) -> bytes:
    """``items`` as the bytes of a message; the addresses of ranks resemble each other."""
    return zlib.compress(b"".join(blobs.dump(items)), 1)


def unpack(message: bytes) -> dict[str, bytes]:
    """The items of a message of ``pack``."""
    return blobs.load(zlib.decompressobj().decompress(message, MAX_UNPACKED))


class Link:
    """One end of a connection whose other end has proved that it knows the secret.

    Args:
        connection: the socket.
        key: the key of this connection.
        own, other: what messages of this end and of the other one are marked with.

    Attributes:
        local, peer: the addresses of this end and of the other one; they are the same within one host.
        port: the port of the other end.
    """

    def __init__(self, connection: socket.socket, key: bytes, own: bytes, other: bytes) -> None:
        self.local, (peer, self.port, *_) = plain(connection.getsockname()[0]), connection.getpeername()
        self.peer = plain(peer)
        self._connection, self._key, self._own, self._other = connection, key, own, other
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send a message of ``pack``; raises OSError."""
        with self._lock:
            mark = self._own + self._sent.to_bytes(8, "big")
            self._sent += 1
            header = len(message).to_bytes(8, "big") + _mac(self._key, mark + message)
            self._connection.sendall(header + message)

    def receive(self) -> dict[str, bytes]:
        """Wait for the next message; raises OSError if there is none, or it is not the other end's."""
        header = _read(self._connection, 8 + PROOF)
        length = int.from_bytes(header[:8], "big")
        if length > MAX_MESSAGE:
            raise ConnectionError(f"a message of {length:,} bytes")
        message = _read(self._connection, length)
        mark = self._other + self._received.to_bytes(8, "big")
        self._received += 1
        if not hmac.compare_digest(header[8:], _mac(self._key, mark + message)):
            raise ConnectionError("a message that the other end did not send")
        return unpack(message)

    def set_timeout(self, seconds: float | None) -> None:
        """How long ``receive`` and ``send`` may take."""
        self._connection.settimeout(seconds)

    def close(self) -> None:
        """End the connection; who waits in ``receive`` gets an error."""
        with contextlib.suppress(OSError):  # the other end has closed it
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def connect(address: str, port: int, secret: str, timeout: float) -> Link:
    """Connect to a task that listens; raises OSError where none does that knows the secret."""
    connection = socket.create_connection((address, port), timeout)
    try:
        nonce = secrets.token_bytes(NONCE)
        connection.sendall(nonce)
        answer = _read(connection, NONCE + PROOF)
        # With the address, or else who listens on another port could pass everything on to the right one, and read it.
        transcript = nonce + answer[:NONCE] + _endpoint(connection.getpeername())
        key = secret.encode()
        if not hmac.compare_digest(answer[NONCE:], _mac(key, b"server" + transcript)):
            raise ConnectionError("the other end does not know the secret")
        connection.sendall(_mac(key, b"client" + transcript))
        return Link(_prepared(connection), _mac(key, b"session" + transcript), b"client", b"server")
    except BaseException:
        connection.close()
        raise


def accept(connection: socket.socket, secret: str) -> Link:
    """The end of the task that listens; raises OSError where the other one does not know the secret."""
    nonce, key = secrets.token_bytes(NONCE), secret.encode()
    transcript = _read(connection, NONCE) + nonce + _endpoint(connection.getsockname())
    connection.sendall(nonce + _mac(key, b"server" + transcript))
    if not hmac.compare_digest(_read(connection, PROOF), _mac(key, b"client" + transcript)):
        raise ConnectionError("the other end does not know the secret")
    return Link(_prepared(connection), _mac(key, b"session" + transcript), b"server", b"client")


def _prepared(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a task may spool its rows for an hour
    for option, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


def _endpoint(address: Sequence[Any]) -> bytes:
    return f"{plain(address[0])}:{address[1]}".encode()


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, hashlib.sha256)


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise ConnectionError("the connection was closed")
        data += piece
    return bytes(data)
