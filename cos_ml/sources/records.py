"""Converts the records of databases and SequenceFiles to columns and back (executor side).

A record is a key and a value, both bytes; its columns are those of the format "lmdb".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cos_ml.errors import InvalidInputError
from cos_ml.sources import datum

__all__ = ["DATUMS", "DATUM_SCHEMA", "RAW_SCHEMA", "RECORDS", "datum_columns", "keys_as_strings", "to_records"]

DATUM_SCHEMA = (
    "id string, label int, channels int, height int, width int, encoded boolean, data binary, float_data array<float>"
)
RAW_SCHEMA = "key binary, value binary"
DATUMS = pa.schema(
    [
        ("id", pa.string()),
        *((name, pa.int32()) for name in ("label", "channels", "height", "width")),
        ("encoded", pa.bool_()),
        ("data", pa.binary()),
        ("float_data", pa.list_(pa.float32())),
    ]
)  # DATUM_SCHEMA as an Arrow schema
RECORDS = pa.schema([("key", pa.binary()), ("value", pa.binary())])


def datum_columns(names: Sequence[str], keys: Sequence[bytes], values: Sequence[bytes], source: str) -> list[pa.Array]:
    """The columns ``names`` of the format "lmdb", for a batch of records.

    Raises:
        InvalidInputError: a value is not a Datum; the message names its key and the ``source``.
    """
    try:
        found = datum.decode(values)
    except datum.BadDatum as bad:
        raise InvalidInputError(
            f"{source}: the value of key {keys[bad.row]!r} {bad.what}. To read values that are not Caffe's Datums, set "
            'the option values="raw".'
        ) from bad
    return [_datum_column(name, keys, found) for name in names]


def _datum_column(name: str, keys: Sequence[bytes], found: datum.Datums) -> pa.Array:
    if name == "id":
        return keys_as_strings(keys)
    if name == "data":
        return found.data
    if name == "float_data":
        return _lists(found.floats, len(found.label))
    return pa.array(getattr(found, name))


def keys_as_strings(keys: Sequence[bytes]) -> pa.Array:
    """Keys as strings, with bytes that are not UTF-8 as ``\\xNN``."""
    try:
        return pa.array(keys, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([str(key, "utf-8", "backslashreplace") for key in keys])


def _lists(pieces: list[datum.Piece], count: int) -> pa.Array:
    """An Arrow array of ``count`` lists of floats, null for rows without a piece."""
    if not pieces:
        return pa.nulls(count, pa.list_(pa.float32()))
    sizes = np.zeros(count, np.int64)
    has_piece = np.zeros(count, bool)
    for row, values in pieces:
        sizes[row] += len(values)
        has_piece[row] = True
    ordered = [values for _, values in sorted(pieces, key=lambda piece: piece.row)]
    offsets = pa.array(np.append(0, np.cumsum(sizes)), pa.int32(), mask=np.append(~has_piece, False))
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(ordered)))


def to_records(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Convert columns ``key`` and ``value``, or the columns of the format "lmdb", to records.

    Numbers of a Datum that are null, or have no column, become 0.

    Raises:
        InvalidInputError: a row has no key, or neither data nor float_data.
    """
    raw = "key" in columns
    key, value = (columns["key"], columns["value"]) if raw else (columns["id"], _datums(columns))
    if key.null_count or value.null_count:
        raise InvalidInputError(f"A row's {'key or value' if raw else 'id'} is null")
    return pa.RecordBatch.from_arrays([key.cast(pa.binary()), value], schema=RECORDS)


def _datums(columns: Mapping[str, pa.Array]) -> pa.Array:
    rows = len(columns["id"])
    names = ("channels", "height", "width", "data", "label", "float_data", "encoded")
    fields = [columns[name].to_pylist() if name in columns else [None] * rows for name in names]
    values = []
    for row, (channels, height, width, data, label, floats, encoded) in enumerate(zip(*fields, strict=True)):
        if data is None and floats is None:
            raise InvalidInputError(f"The row with id {columns['id'][row].as_py()!r} has neither data nor float_data")
        sizes = (channels or 0, height or 0, width or 0)
        values.append(datum.encode(*sizes, data, label or 0, floats, bool(encoded)))
    return pa.array(values, pa.binary())
