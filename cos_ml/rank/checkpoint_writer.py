"""Writes checkpoints beside the training, one after the other (rank 0)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore

__all__ = ["CheckpointWriter"]

CLOSING = 10.0  # seconds that the end of a failed training waits for its last checkpoint


class CheckpointWriter:
    """Writes checkpoints in a thread of its own. Those on a local disk are there when ``write`` returns.

    The training goes on while HDFS or an object store takes the bytes, but never past the next checkpoint. A write that
    does not return is given up with a note, as are those after it until it does: no thread can be ended.

    Args:
        store: where checkpoints are kept.
        limit: seconds that a write may take.
        note: reports a message to the user.
    """

    def __init__(self, store: CheckpointStore, limit: float, note: Callable[[str], None]) -> None:
        self._store, self.limit, self._note = store, limit, note
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._name, self._given_up = "", False

    def write(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, whose arrays must not change, once the one before is written."""
        if not self.finish():
            return
        self._name = f"The checkpoint after epoch {checkpoint.epoch}, step {checkpoint.step}"
        self._thread = threading.Thread(target=self._write, args=[checkpoint], daemon=True)
        self._thread.start()
        if self._store.local:
            self.finish()

    def finish(self) -> bool:
        """Wait until nothing is being written, and note what failed; False where a write was given up."""
        if self._thread is None:
            return True
        self._thread.join(0 if self._given_up else self.limit)
        if self._thread.is_alive():
            if not self._given_up:
                self._note(
                    f"{self._name} is not written after {self.limit:g} s (half of stallTimeout): checkpointDir does "
                    "not answer. The training goes on without further checkpoints until it does."
                )
            self._given_up = True
            return False
        error, self._thread, self._error, self._given_up = self._error, None, None, False
        if isinstance(error, Exception):  # each storage has its own; the training is worth more than a checkpoint
            self._note(f"{self._name} could not be written: {error!r}.")
        elif error is not None:
            raise error
        return True

    def close(self) -> None:
        """Let a checkpoint that is being written become whole, for a few seconds: the training has ended or failed."""
        if self._thread is not None and not self._given_up:
            self._thread.join(CLOSING)

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._store.write(checkpoint)
        except BaseException as error:
            self._error = error
