"""A client of the API server, as far as tests need one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any


class Server:
    """The objects that the API server has in the namespace "default"."""

    def __init__(self, url: str) -> None:
        self.url = url

    def objects(self, kind: str) -> dict[str, Any]:
        """The objects of a kind, such as "pods", by name."""
        return {one["metadata"]["name"]: one for one in self._ask("GET", kind)["items"]}

    def delete_pod(self, name: str) -> None:
        self._ask("DELETE", f"pods/{name}")

    def tell(self, pod: str, status: dict[str, Any]) -> None:
        """Set a pod's status, unless it has been deleted."""
        try:
            self._ask("PATCH", f"pods/{pod}/status", {"status": status})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1/namespaces/default/{path}", data, method=method)
        request.add_header("Content-Type", "application/merge-patch+json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
