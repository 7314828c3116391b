"""Arrays that lie in files, given by their descriptors (rank side)."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["RowsOnDisk", "Strings", "map_array", "map_offsets", "map_strings"]


class Strings:
    """Memory-mapped strings; indexing them by rows gives an array [rows, ...] of bytes objects."""

    dtype = np.dtype(object)

    def __init__(self, values: pa.LargeBinaryArray, shape: tuple[int, ...]) -> None:
        self.values, self.shape = values, shape

    def reshape(self, *shape: int) -> Strings:
        """The same strings, in another shape."""
        return Strings(self.values, shape)

    def __getitem__(self, rows: Any) -> np.ndarray:
        indices = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows.astype(np.int64)
        width = math.prod(self.shape[1:])
        places = (indices.reshape(-1, 1) * width + np.arange(width)).reshape(-1)
        strings = self.values.take(pa.array(places)).to_numpy(zero_copy_only=False)
        return strings.reshape(len(indices), *self.shape[1:])  # type: ignore[no-any-return]


class RowsOnDisk:
    """Rows of a file that are read on demand, so that they occupy the page cache but not this process's memory.

    A memory map would grow to the size of the file: Linux maps up to megabytes around each row that is read.

    Args:
        descriptor: the descriptor of the open file.
        shape: the shape of all rows, [count, ...].
        dtype: the dtype of the rows.
    """

    def __init__(self, descriptor: int, shape: tuple[int, ...], dtype: str) -> None:
        self.descriptor, self.shape, self.dtype = descriptor, shape, np.dtype(dtype)
        self.width = self.dtype.itemsize * math.prod(shape[1:])

    def reshape(self, *shape: int) -> RowsOnDisk:
        """The same rows, in another shape."""
        return RowsOnDisk(self.descriptor, shape, self.dtype.str)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.shape[0])
            found = np.empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
            self._read(found.reshape(-1).view(np.uint8).data, start)
            return found
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        data = found.reshape(-1).view(np.uint8).data
        for place, row in enumerate(rows.tolist()):
            self._read(data[place * self.width : (place + 1) * self.width], row)
        return found

    def _read(self, into: memoryview, row: int) -> None:
        at = row * self.width
        while into:
            count = os.preadv(self.descriptor, [into], at)
            if not count:
                raise OSError(f"the spool ends before row {row}")
            into, at = into[count:], at + count


def map_array(descriptor: int, count: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """``count`` rows of ``shape`` as a memory map, which takes over the descriptor."""
    with os.fdopen(descriptor, "rb") as file:
        if not count or 0 in shape:
            return np.empty((count, *shape), dtype)
        return np.asarray(np.memmap(file, dtype, "r", shape=(count, *shape)))


def map_offsets(descriptor: int) -> np.ndarray:
    """int64 [count + 1]: the offsets in a file, which is empty if they are those of nothing."""
    count = os.fstat(descriptor).st_size // 8
    offsets = map_array(descriptor, count, (), "<i8")
    return offsets if count else np.zeros(1, np.int64)


def map_strings(data: int, offsets: int, shape: tuple[int, ...] | None) -> Strings:
    """The strings of two files, given by their descriptors; ``shape`` is [count] if it is None."""
    ends = map_offsets(offsets)
    shape = (len(ends) - 1,) if shape is None else shape
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(map_array(data, os.fstat(data).st_size, (), "|u1"))]
    return Strings(pa.Array.from_buffers(pa.large_binary(), math.prod(shape), buffers), shape)
