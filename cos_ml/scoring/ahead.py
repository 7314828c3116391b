"""Prepares the next rows of a task while the network computes (scoring task side)."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """A generator whose next item a thread prepares: it waits for Spark's rows and decodes them.

    The caller decides when that begins, so at most one item is ahead, and no item depends on which thread is faster.
    ``close`` ends the thread, which may be preparing an item that nobody needs.

    Args:
        items: the generator; ``start`` sends it a value.
    """

    def __init__(self, items: Generator[T, Any, None]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, "cos_ml rows")
        self._next: Future[T] | None = None

    def start(self, value: Any = None) -> None:
        """Begin preparing the next item."""
        self._next = self._thread.submit(self._items.send, value)

    def result(self) -> T | None:
        """The item that has been started; None after the last one."""
        if self._next is None:
            raise RuntimeError("no item has been started")
        started, self._next = self._next, None  # which would keep the rows
        try:
            return started.result()
        except StopIteration:
            return None

    def close(self) -> None:
        """Do without the items that are left; waits for none."""
        self._thread.shutdown(wait=False, cancel_futures=True)
