"""Named bytes and arrays, in one file or cut into rows (both sides).

Files carry them between a task and its rank, between ranks, and to checkpoints. Rows carry bytes through Spark, in
pieces: a network of several hundred MB must fit neither one Arrow batch nor one Parquet page.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
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
    header, data = [], []
    for name, value in items.items():
        if isinstance(value, np.ndarray):
            data.append(_bytes_of(value))
            kind: tuple[Any, Any] = (_dtype_name(value.dtype), value.shape)
        else:
            data.append(value)
            kind = (None, None)
        header.append((name, len(data[-1]), *kind))
    return [json.dumps(header).encode() + b"\n", *data]


def write(file: IO[bytes], items: Mapping[str, Value]) -> None:
    """Write ``items`` to an open file."""
    for piece in dump(items):
        file.write(piece)
    file.flush()


def load(data: bytes | memoryview) -> dict[str, Any]:
    """The items of a file in memory; arrays are read-only views of ``data``.

    Raises:
        ValueError: the data is not what ``dump`` made, or is incomplete.
    """
    view = memoryview(data)
    found = re.match(rb"[^\n]*\n?", view)
    assert found is not None
    start = found.end()
    items: dict[str, Any] = {}
    for name, length, *kind in _header(found[0]):
        items[name] = _value(view[start : start + length], length, *kind)
        start += length
    if start != len(view):
        raise ValueError(f"expected {start:,} bytes, received {len(view):,}")
    return items


def read(file: IO[bytes]) -> dict[str, Any]:
    """The items of an open file, read from its start; none where nothing has been written.

    Raises:
        ValueError: the file is not what ``write`` wrote, or is incomplete.
    """
    file.seek(0)
    header = file.readline()
    if not header:
        return {}
    items = {name: _value(file.read(length), length, *kind) for name, length, *kind in _header(header)}
    if file.read(1):
        raise ValueError("the file goes on after its last item")
    return items


def _header(line: bytes) -> list[tuple[str, int, str | None, Any]]:
    try:
        if not (line.startswith(b"[") and line.endswith(b"]\n")):
            raise ValueError("not a line with a list")
        entries = [(name, length, dtype, shape) for name, length, dtype, shape in json.loads(line)]
        if not all(isinstance(name, str) and isinstance(length, int) and length >= 0 for name, length, *_ in entries):
            raise ValueError("names or lengths are none")
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a header with names and lengths, received {line[:40]!r}: {error}") from error
    return entries


def _dtype_name(dtype: np.dtype) -> str:
    """The name by which NumPy finds ``dtype`` again: bfloat16 is "<V2" by its own account."""
    return dtype.name if dtype.kind == "V" else dtype.str


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # noqa: F401  # makes bfloat16 and its like known to NumPy

        return np.dtype(name)


def _bytes_of(array: np.ndarray) -> Any:
    flat = array.reshape(-1)
    if array.dtype != object:
        return np.ascontiguousarray(flat).view(np.uint8)
    lengths = np.array([len(item) for item in flat], "<i8")
    return b"".join([lengths.tobytes(), *flat])


def _value(data: bytes | memoryview, length: int, dtype: str | None, shape: Any) -> Any:
    if len(data) != length:
        raise ValueError(f"an item has {len(data):,} of its {length:,} bytes")
    if dtype is None:
        return bytes(data)
    try:
        if dtype != "|O":
            return np.frombuffer(data, _dtype(dtype)).reshape(shape)
        start = 8 * math.prod(shape)
        edges = [start, *(start + np.frombuffer(data[:start], "<i8").cumsum()).tolist()]
        if edges[-1] != length or edges != sorted(edges):
            raise ValueError(f"its strings end at byte {edges[-1]:,}")
        array = np.empty(shape, object)
        array.reshape(-1)[:] = [bytes(data[begin:end]) for begin, end in itertools.pairwise(edges)]
        return array
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"an array of {dtype} and shape {shape} can't be made of {length:,} bytes: {error}") from error


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
