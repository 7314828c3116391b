"""Encodes Caffe's Datum, a protobuf message, and decodes whole batches of them (executor side).

Neither Caffe nor the protobuf package is needed. Each field is decoded for all records at once, as arrays: decoding
record by record takes several times as long as reading the records from the database. If all records have the
same layout up to the end of their image, as images of one size have, only what follows the image is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["BadDatum", "Datums", "decode", "encode"]

CHANNELS, HEIGHT, WIDTH, DATA, LABEL, FLOAT_DATA, ENCODED = range(1, 8)  # field numbers
NUMBERS = (CHANNELS, HEIGHT, WIDTH, LABEL, ENCODED)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FLOAT_TAG = FLOAT_DATA << 3 | FIXED32
MOST_BYTES = 10  # of one varint


class BadDatum(ValueError):
    """A record is not a Datum.

    Attributes:
        row: the index of the record in the batch.
        what: what is wrong with the record.
    """

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"record {row} {what}")
        self.row = row
        self.what = what


class Piece(NamedTuple):
    """Some floats of one record."""

    row: int
    values: np.ndarray


@dataclass(frozen=True)
class Datums:
    """The fields of n records; missing numbers are 0, as in Caffe.

    Attributes:
        channels, height, width, label: int32 [n].
        encoded: bool [n].
        data: n binary values, null for records without ``data``.
        floats: pieces of ``float_data``; the pieces of a record are in order.
    """

    channels: np.ndarray
    height: np.ndarray
    width: np.ndarray
    label: np.ndarray
    encoded: np.ndarray
    data: pa.Array
    floats: list[Piece]


def decode(records: Sequence[bytes]) -> Datums:
    """Decode serialized Datums, with raw or encoded images. Unknown fields are skipped.

    Raises:
        BadDatum: a record is truncated, or is not a Datum.
    """
    values = pa.array(records, pa.binary())
    head = _common_head(records, values)
    if head is not None:
        rest = _fields(pc.binary_slice(values, head.stop, max(map(len, records))), head.numbers)
        if (rest.size < 0).all():
            return _datums(rest, pc.binary_slice(values, head.start, head.stop))
    whole = _fields(values, {})
    flat = whole.flat.data
    ends = zip(whole.start.tolist(), whole.size.tolist(), strict=True)
    return _datums(whole, pa.array([flat[at : at + size] if size >= 0 else None for at, size in ends], pa.binary()))


class _Head(NamedTuple):
    """The common start of records.

    Attributes:
        numbers: the values of number fields, by field.
        start, stop: the position of ``data``.
    """

    numbers: dict[int, int]
    start: int
    stop: int


def _common_head(records: Sequence[bytes], values: pa.Array) -> _Head | None:
    """The bytes before ``data`` and its size, if they are the same in all records; else None."""
    if not records:
        return None
    first = records[0]
    numbers: dict[int, int] = {}
    at = 0
    try:
        while first[at] != DATA << 3 | BYTES:
            if first[at] & 7 != VARINT or first[at] >> 3 not in NUMBERS:
                return None
            field = first[at] >> 3
            numbers[field], at = _read_varint(first, at + 1)
        size, start = _read_varint(first, at + 1)
    except IndexError:  # it is truncated
        return None
    if (
        not 0 <= size <= min(map(len, records)) - start
        or not pc.all(pc.starts_with(values, pattern=first[:start])).as_py()
    ):
        return None
    return _Head(numbers, start, start + size)


def _read_varint(record: bytes, at: int) -> tuple[int, int]:
    """The signed 64-bit number at ``at``, and the position after it."""
    value = 0
    for shift in range(0, 7 * MOST_BYTES, 7):
        value |= (record[at] & 127) << shift
        at += 1
        if record[at - 1] < 128:
            value &= (1 << 64) - 1
            return value - (value >> 63 << 64), at
    raise IndexError


@dataclass(frozen=True)
class _Fields:
    """The fields of n records: numbers and floats as in Datums, and the position of each ``data`` in ``flat``."""

    numbers: dict[int, np.ndarray]
    flat: np.ndarray
    start: np.ndarray
    size: np.ndarray
    floats: list[Piece]


def _datums(fields: _Fields, data: pa.Array) -> Datums:
    channels, height, width, label = (fields.numbers[field].astype(np.int32) for field in NUMBERS[:-1])
    return Datums(channels, height, width, label, fields.numbers[ENCODED] != 0, data, fields.floats)


def _fields(records: pa.Array, before: dict[int, int]) -> _Fields:
    """Decode all fields of records; ``before`` has the numbers that precede them, the same for all records.

    Raises:
        BadDatum: a record is truncated, or is not a Datum.
    """
    cursor = _Cursor(records)
    numbers = {field: np.full(len(records), before.get(field, 0), np.int64) for field in NUMBERS}
    start, size = np.zeros(len(records), np.int64), np.full(len(records), -1, np.int64)
    floats: list[Piece] = []
    while len(rows := cursor.unread()):  # each iteration reads one field of every record that has one left
        tags = cursor.varints(rows)
        for tag in _distinct(tags):
            mine = rows[tags == tag]
            field, wire = tag >> 3, tag & 7
            if field in numbers and wire == VARINT:
                numbers[field][mine] = cursor.varints(mine)
            elif field == DATA and wire == BYTES:
                start[mine], size[mine] = cursor.lengths(mine)
            elif field == FLOAT_DATA and wire == FIXED32:
                floats += [Piece(row, cursor.float_run(row)) for row in mine.tolist()]
            elif field == FLOAT_DATA and wire == BYTES:
                at, length = cursor.lengths(mine)
                floats += [
                    cursor.packed(*each) for each in zip(mine.tolist(), at.tolist(), length.tolist(), strict=True)
                ]
            elif 1 <= field <= ENCODED:
                raise BadDatum(int(mine[0]), f"has field {field} with protobuf's wire type {wire}, unlike a Datum")
            else:
                cursor.skip(mine, field, wire)
    return _Fields(numbers, cursor.flat, start, size, floats)


def encode(
    channels: int,
    height: int,
    width: int,
    data: bytes | None,
    label: int,
    float_data: np.ndarray | None,
    encoded: bool,
) -> bytes:
    """Serialize one Datum as Caffe does: fields in order, ``float_data`` not packed."""
    sizes = ((CHANNELS, channels), (HEIGHT, height), (WIDTH, width))
    parts = [bytes([field << 3]) + _varint(value) for field, value in sizes]
    if data is not None:
        parts += [bytes([DATA << 3 | BYTES]), _varint(len(data)), data]
    parts += [bytes([LABEL << 3]), _varint(label)]
    if float_data is not None:
        tagged = np.empty((len(float_data), 5), np.uint8)
        tagged[:, 0] = FLOAT_TAG
        tagged[:, 1:] = np.asarray(float_data, "<f4").reshape(-1, 1).view(np.uint8)
        parts.append(tagged.tobytes())
    return b"".join([*parts, bytes([ENCODED << 3, bool(encoded)])])


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number is written as its 64-bit complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _distinct(tags: np.ndarray) -> list[int]:
    """The distinct values in ``tags``; almost always only one."""
    return [int(tags[0])] if (tags == tags[0]).all() else np.unique(tags).tolist()


class _Cursor:
    """A position in each of n records, which are stored end to end in ``flat``."""

    def __init__(self, records: pa.Array) -> None:
        _, offsets, flat = records.buffers()
        bounds = np.frombuffer(offsets or bytes(4), np.int32)[records.offset :][: len(records) + 1].astype(np.int64)
        self.flat = np.frombuffer(flat or b"", np.uint8)
        self.ends = bounds[1:]
        self.at = bounds[:-1].copy()

    def unread(self) -> np.ndarray:
        """The indices of the records that have bytes left."""
        return np.flatnonzero(self.at < self.ends)

    def varints(self, rows: np.ndarray) -> np.ndarray:
        """int64 [len(rows)]: read a varint in each of ``rows``."""
        values = np.zeros(len(rows), np.int64)
        where: slice | np.ndarray = slice(None)
        for shift in range(0, 7 * MOST_BYTES, 7):
            at = self.at[rows]
            self._move(rows, 1)
            byte = self.flat[at]
            values[where] |= (byte & np.uint8(127)).astype(np.int64) << shift
            more = np.flatnonzero(byte > 127)
            if not len(more):
                return values
            rows, where = rows[more], more if isinstance(where, slice) else where[more]
        raise BadDatum(int(rows[0]), "contains a number that does not end")

    def lengths(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Skip a field of bytes in each of ``rows``; returns their starts and sizes."""
        sizes = self.varints(rows)
        start = self.at[rows]
        self._move(rows, sizes)
        return start, sizes

    def skip(self, rows: np.ndarray, field: int, wire: int) -> None:
        """Skip a field that a Datum does not have."""
        if field == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise BadDatum(int(rows[0]), f"has field {field} with protobuf's wire type {wire}, unlike a Datum")
        if wire == VARINT:
            self.varints(rows)
        elif wire == BYTES:
            self.lengths(rows)
        else:
            self._move(rows, 8 if wire == FIXED64 else 4)

    def float_run(self, row: int) -> np.ndarray:
        """All floats that follow in ``row``, each after a tag; the first tag has been read."""
        first, end = int(self.at[row]) - 1, int(self.ends[row])
        others = np.flatnonzero(self.flat[first:end:5] != FLOAT_TAG)
        count = int(others[0]) if len(others) else -((first - end) // 5)
        self._move(np.array([row]), 5 * count - 1)
        return self.flat[first : first + 5 * count].reshape(count, 5)[:, 1:].copy().view("<f4").reshape(-1)

    def packed(self, row: int, start: int, size: int) -> Piece:
        """Packed floats, without tags."""
        if size % 4:
            raise BadDatum(row, f"has {size} bytes of float_data, expected a multiple of 4")
        return Piece(row, self.flat[start : start + size].view("<f4"))

    def _move(self, rows: np.ndarray, by: int | np.ndarray) -> None:
        at = self.at[rows] + by
        beyond = np.flatnonzero((at > self.ends[rows]) | (at < self.at[rows]))
        if len(beyond):
            raise BadDatum(int(rows[beyond[0]]), "is truncated or not a Datum")
        self.at[rows] = at
