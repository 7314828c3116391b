"""The folder for a rank's temporary files, which is removed however its task ends (barrier task side)."""

from __future__ import annotations

import subprocess
import tempfile

__all__ = ["TempDir"]

# The shell's input ends when this process ends; a line before that names a process group.
REMOVE = 'read -r group; read -r _; [ -z "$group" ] || kill -s KILL -- "-$group" 2> /dev/null; rm -rf -- "$1"'


class TempDir:
    """A folder that only its owner can open.

    A Python worker that is killed, as Spark kills those of cancelled jobs, can't remove it. A shell therefore waits for
    the end of this process and removes it. It also kills what the rank has forked, which does not die with the rank.

    Args:
        parent: the folder in which it is created.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: str) -> None:
        self.path = tempfile.mkdtemp(prefix="cos_ml-rank-", dir=parent)
        self._remover = subprocess.Popen(
            ["sh", "-c", REMOVE, "sh", self.path], stdin=subprocess.PIPE, start_new_session=True
        )

    def kill_group(self, group: int) -> None:
        """Have the processes of this group killed before the folder is removed."""
        assert self._remover.stdin is not None
        self._remover.stdin.write(f"{group}\n".encode())
        self._remover.stdin.flush()

    def close(self) -> None:
        """Kill the processes of the group, and remove the folder."""
        self._remover.communicate()
