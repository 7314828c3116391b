"""A proxy before the S3 server, which fails as a test says: busy, away, read-only, or at a certain request."""

from __future__ import annotations

import http.client
import itertools
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOT_FORWARDED = ("connection", "transfer-encoding", "expect", "keep-alive")
ERRORS = {503: "SlowDown", 403: "AccessDenied"}
AWAY = 0  # no answer: the connection ends

Rule = Callable[[str, str], "int | None"]


def each(method: str, part: str, status: int, times: float = math.inf) -> Rule:
    """A rule that answers requests of a method, whose path contains ``part``, with a status, so many times."""
    seen = itertools.count()

    def rule(request: str, path: str) -> int | None:
        return status if request == method and part in path and next(seen) < times else None

    return rule


class Proxy(ThreadingHTTPServer):
    """Forwards requests.

    Args:
        port: the server's.

    Attributes:
        rules: functions of a request's method and path, which return None or the status of an error, or ``AWAY``.
        requests: the methods and paths so far.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.rules, self.requests = port, list[Rule](), list[tuple[str, str]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that are killed hang up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one(self) -> None:
        body = self._body()
        self.server.requests.append((self.command, self.path))
        found = (rule(self.command, self.path) for rule in self.server.rules)
        status = next((one for one in found if one is not None), None)
        if status == AWAY:
            self.close_connection = True
        elif status is not None:
            text = (
                f"<?xml version='1.0'?><Error><Code>{ERRORS[status]}</Code><Message>{ERRORS[status]}</Message></Error>"
            )
            self._answer(status, [("Content-Type", "application/xml")], text.encode())
        else:
            self._forward(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _forward(self, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_FORWARDED}
        headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = [one for one in answer.getheaders() if one[0].lower() not in NOT_FORWARDED]
        finally:
            connection.close()
        self._answer(answer.status, kept, data)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
