"""A rank's folder for temporary files, which does not outlive it, however it ends (task side)."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path

__all__ = ["Scratch"]

PREFIX = "cos_ml-rank-"
LOCK = ".lock"


class Scratch:
    """A folder that only its owner can look into, locked for as long as this process lives.

    A Python worker that is killed can't remove its own: the next one on this executor does, which sees that nobody
    holds the lock.

    Args:
        parent: where it is made.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: str) -> None:
        for left in Path(parent).glob(f"{PREFIX}*"):
            _remove_left(left)
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        self._lock = open(Path(self.path, LOCK), "wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_left(folder: Path) -> None:
    with contextlib.suppress(OSError), open(folder / LOCK, "rb+") as lock:  # someone holds it, or removes it too
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
