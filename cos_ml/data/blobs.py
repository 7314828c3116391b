"""Named bytes as ordered rows: what ranks send back and what saved models hold (both sides).

A network of several hundred MB must fit neither one Arrow batch nor one Parquet page, so bytes travel in pieces.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa

__all__ = ["PIECE", "SCHEMA", "grouped", "join", "pieces", "read", "record_batches", "write"]

PIECE = 8 << 20  # bytes of one row
SCHEMA = "name string, part int, data binary"


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
            raise ValueError(f"{name!r} has pieces {sorted(found)}, and should have every one from 0")
    return {name: b"".join(found[part] for part in sorted(found)) for name, found in parts.items()}


def record_batches(items: Mapping[str, bytes]) -> Iterator[pa.RecordBatch]:
    """``items`` as Arrow batches of one row each, in the columns of ``SCHEMA``."""
    for name, part, data in pieces(items):
        columns = [pa.array([name]), pa.array([part], pa.int32()), pa.array([data], pa.binary())]
        yield pa.RecordBatch.from_arrays(columns, ["name", "part", "data"])


def write(file: IO[bytes], items: Mapping[str, bytes]) -> None:
    """Write ``items`` to an open file: a line of JSON with names and lengths, then the bytes."""
    file.write(json.dumps([[name, len(data)] for name, data in items.items()]).encode() + b"\n")
    for data in items.values():
        file.write(data)
    file.flush()


def read(file: IO[bytes]) -> dict[str, bytes]:
    """Read what ``write`` wrote, from the file's start; nothing written, nothing read."""
    file.seek(0)
    header = file.readline()
    return {name: file.read(length) for name, length in json.loads(header or "[]")}
