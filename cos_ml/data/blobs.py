"""Named bytes and arrays, in one file or cut into rows (both sides).

Files carry them between a task and its rank, between ranks, and to checkpoints. Rows carry bytes through Spark, in
pieces: a network of several hundred MB must fit neither one Arrow batch nor one Parquet page.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import pyarrow as pa

__all__ = ["PIECE", "SCHEMA", "dump", "grouped", "join", "load", "pieces", "read", "record_batches", "write"]

PIECE = 8 << 20  # bytes of one row
SCHEMA = "name string, part int, data binary"
Value = bytes | np.ndarray


# ── files: a line of JSON with (name, length, dtype or null for bytes, shape) of each item, then all their bytes ─────


def dump(items: Mapping[str, Value]) -> list[Any]:
    """The file of ``items``, as bytes-like pieces to write one after the other; contiguous arrays are not copied.

    Args:
        items: bytes, or arrays of numbers or of bytes objects.
    """
    data = [_bytes_of(value) if isinstance(value, np.ndarray) else value for value in items.values()]
    kinds = [(_dtype_name(v.dtype), v.shape) if isinstance(v, np.ndarray) else (None, None) for v in items.values()]
    header = [(name, len(piece), *kind) for name, piece, kind in zip(items, data, kinds, strict=True)]
    return [json.dumps(header).encode() + b"\n", *data]


def write(file: IO[bytes], items: Mapping[str, Value]) -> None:
    """Write ``items`` to an open file."""
    for piece in dump(items):
        file.write(piece)
    file.flush()


def load(data: bytes | memoryview) -> dict[str, Any]:
    """The items of a file in memory; arrays are read-only views of ``data``.

    Raises:
        ValueError: the data is incomplete, or ``dump`` did not write it.
    """
    view = memoryview(data)
    line = re.match(rb"[^\n]*\n?", view)[0]  # type: ignore[index]
    view = view[len(line) :]

    def take(length: int) -> memoryview:
        nonlocal view
        taken, view = view[:length], view[length:]
        return taken

    return _items(line, take)


def read(file: IO[bytes]) -> dict[str, Any]:
    """The items of an open file, read from its start; none if nothing was written.

    Raises:
        ValueError: the file is incomplete, or ``write`` did not write it.
    """
    file.seek(0)
    line = file.readline()
    return _items(line, file.read) if line else {}


def _items(line: bytes, take: Callable[[int], bytes | memoryview]) -> dict[str, Any]:
    """The items that the header ``line`` describes; ``take`` returns that many of the bytes that follow it."""
    items: dict[str, Any] = {}
    for name, length, dtype, shape in _header(line):
        data = take(length)
        if len(data) != length:
            raise ValueError(f"{name!r} has only {len(data):,} of {length:,} bytes")
        items[name] = bytes(data) if dtype is None else _array(data, dtype, shape)
    if take(1):
        raise ValueError("unexpected data after the last item")
    return items


def _header(line: bytes) -> list[Any]:
    try:
        entries = json.loads(line)
        valid = all(isinstance(name, str) and isinstance(length, int) and length >= 0 for name, length, _, _ in entries)
        if not valid or not line.endswith(b"]\n"):
            raise ValueError("not a line of names and lengths")
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a header, received {line[:40]!r}: {error}") from error
    return entries


def _dtype_name(dtype: np.dtype) -> str:
    return dtype.name if dtype.kind == "V" else dtype.str  # bfloat16's str is "<V2", which names another type


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # noqa: F401  # registers bfloat16 and others with NumPy

        return np.dtype(name)


def _bytes_of(array: np.ndarray) -> Any:
    flat = array.reshape(-1)
    if array.dtype != object:
        return np.ascontiguousarray(flat).view(np.uint8)
    return b"".join([np.array([len(item) for item in flat], "<i8").tobytes(), *flat])


def _array(data: bytes | memoryview, dtype: str, shape: Any) -> np.ndarray:
    try:
        if dtype != "|O":
            return np.frombuffer(data, _dtype(dtype)).reshape(shape)
        start = 8 * math.prod(shape)
        edges = [start, *(start + np.frombuffer(data[:start], "<i8").cumsum()).tolist()]
        if edges[-1] != len(data) or edges != sorted(edges):
            raise ValueError(f"its strings end at byte {edges[-1]:,}")
        array = np.empty(shape, object)
        array.reshape(-1)[:] = [bytes(data[begin:end]) for begin, end in itertools.pairwise(edges)]
        return array
    except (ImportError, SyntaxError, TypeError, ValueError) as error:  # NumPy parses names of types
        raise ValueError(f"{len(data):,} bytes are not an array of {dtype} and shape {shape}: {error}") from error


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pieces(items: Mapping[str, bytes], size: int = PIECE) -> Iterator[tuple[str, int, bytes]]:
    """Cut each of ``items`` into rows (name, part, data); an empty item is one empty row."""
    for name, data in items.items():
        for part, start in enumerate(range(0, max(len(data), 1), size)):
            yield name, part, bytes(data[start : start + size])


def grouped(rows: Iterable[Any], count: int = 4) -> Iterator[list[Any]]:
    """``rows`` in lists of ``count``."""
    rows = iter(rows)
    while group := list(itertools.islice(rows, count)):
        yield group


def join(rows: Iterable[Any]) -> dict[str, bytes]:
    """Put rows (name, part, data), in any order, together again.

    Raises:
        ValueError: a piece is missing.
    """
    parts: dict[str, dict[int, bytes]] = {}
    for name, part, data in rows:
        parts.setdefault(name, {})[part] = data
    for name, found in parts.items():
        if sorted(found) != list(range(len(found))):
            raise ValueError(f"{name!r} is incomplete: received pieces {sorted(found)}, expected all of them from 0")
    return {name: b"".join(found[part] for part in sorted(found)) for name, found in parts.items()}


def record_batches(items: Mapping[str, bytes]) -> Iterator[pa.RecordBatch]:
    """``items`` as Arrow batches of one row each, in the columns of ``SCHEMA``."""
    for name, part, data in pieces(items):
        columns = [pa.array([name]), pa.array([part], pa.int32()), pa.array([data], pa.binary())]
        yield pa.RecordBatch.from_arrays(columns, ["name", "part", "data"])
