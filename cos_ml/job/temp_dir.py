"""A rank's folder for temporary files, which does not outlive its task, however that ends (task side)."""

from __future__ import annotations

import subprocess
import tempfile

__all__ = ["TempDir"]

# Its input ends when this process does; before that it may be told a process group.
REMOVE = 'read -r group; read -r _; [ -z "$group" ] || kill -s KILL -- "-$group" 2> /dev/null; rm -rf -- "$1"'


class TempDir:
    """A folder that only its owner can look into.

    A Python worker that is killed, as Spark does with those of cancelled jobs, can't remove it: a shell waits for the
    end of this process, and does. It also ends what the rank has forked, which does not die with it.

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

    def kill_group(self, group: int) -> None:
        """End the processes of this group before the folder goes."""
        assert self._remover.stdin is not None
        self._remover.stdin.write(f"{group}\n".encode())
        self._remover.stdin.flush()

    def close(self) -> None:
        """End the processes of the group, and remove the folder."""
        self._remover.communicate()
