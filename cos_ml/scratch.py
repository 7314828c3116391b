"""A rank's folder for temporary files, which does not outlive its task, however that ends (task side)."""

from __future__ import annotations

import subprocess
import tempfile

__all__ = ["Scratch"]

REMOVE = 'read _; rm -rf -- "$1"'  # its input ends when this process does


class Scratch:
    """A folder that only its owner can look into.

    A Python worker that is killed, as Spark does with those of cancelled jobs, can't remove it: a shell waits for the
    end of this process, and does.

    Args:
        parent: where it is made.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: str) -> None:
        self.path = tempfile.mkdtemp(prefix="cos_ml-rank-", dir=parent)
        self._remover = subprocess.Popen(
            ["sh", "-c", REMOVE, "sh", self.path], stdin=subprocess.PIPE, start_new_session=True
        )

    def close(self) -> None:
        """Remove the folder."""
        self._remover.communicate()
