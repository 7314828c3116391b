"""Copies of row groups on a rank's local disk, for epochs after the first (rank side).

They lie in one file without a name, so nothing is left behind however the rank ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

__all__ = ["Copy", "RowCopies"]

FREE = 0.1  # of a file system stays free


class RowCopies:
    """Row groups as Arrow lays them out. Those for which there is no room are read from their files again.

    Args:
        folder: a folder on the local disk.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self.places: dict[int, list[tuple[int, int]]] = {}  # of the batches of each row group
        self.end, self.full, self.lock = 0, False, threading.Lock()

    def get(self, index: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch] | None:
        """The rows of a row group; None if there is no copy."""
        if index not in self.places:
            return None
        names = {column.split(".")[0] for column in columns} | set(columns)
        return (self._read(start, size, names) for start, size in self.places[index])

    def _read(self, start: int, size: int, names: set[str]) -> pa.RecordBatch:
        with pa.ipc.open_stream(os.pread(self.file.fileno(), size, start)) as stream:
            batch = stream.read_next_batch()
        kept = [name for name in batch.schema.names if name in names]
        return batch.select(kept) if kept else batch

    def begin(self, index: int) -> Copy | None:
        """Begin the copy of a row group; None if there is no room, or one exists."""
        return None if self.full or index in self.places else Copy(self, index)

    def write(self, data: pa.Buffer) -> tuple[int, int] | None:
        """Write a batch, and return where it is; None if there is no room for it."""
        with self.lock:
            disk = shutil.disk_usage(self.folder)
            if self.full or disk.free - data.size < disk.total * FREE:
                self.full = True
                return None
            start, self.end = self.end, self.end + data.size
        try:
            done = 0
            while done < data.size:
                done += os.pwrite(self.file.fileno(), memoryview(data)[done:], start + done)
        except OSError:  # another process took the room
            self.full = True
            return None
        return start, data.size


class Copy:
    """A copy that is being made; it counts once it is complete."""

    def __init__(self, copies: RowCopies, index: int) -> None:
        self.copies, self.index = copies, index
        self.places: list[tuple[int, int]] = []
        self.complete = True

    def add(self, batch: pa.RecordBatch) -> None:
        """Copy the next rows, if there is room for them and was for those before."""
        place = None
        if self.complete and not self.copies.full:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            place = self.copies.write(sink.getvalue())
        if place is None:
            self.complete = False
        else:
            self.places.append(place)

    def close(self) -> None:
        """There are no more rows: the copy counts if it has them all."""
        if self.complete:
            self.copies.places[self.index] = self.places
