"""What tasks have sent for one exchange, and which of it is wanted (barrier task side)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entries", "Exchange", "kind_of"]

Entries = dict[str, bytes]


@dataclass
class Exchange:
    """What tasks have sent for one exchange, and who waits for an answer: partition, size, key, and how to send it."""

    entries: Entries = field(default_factory=dict)
    given: set[int] = field(default_factory=set)
    waiting: list[tuple[int, int, str, Callable[[bytes], Any]]] = field(default_factory=list)

    def found(self, size: int, key: str) -> Entries | None:
        """The entries whose keys resemble ``key`` once there are ``size``; if that is 0, once it is among them."""
        alike = {name: value for name, value in self.entries.items() if _group(name) == _group(key)}
        return alike if (len(alike) >= size if size else key in alike) else None


def _group(key: str) -> str:
    return key.rstrip("0123456789")  # Gloo's keys are "3" and "rank_3"


def kind_of(key: str, size: int) -> str:
    """Which entries of an exchange are wanted: what the requests for them, and their answers, have in common."""
    return _group(key) if size else key
