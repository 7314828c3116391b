"""The feeds by Parquet files: every rank reads its shard of a dataset once per epoch (driver, task and rank side).

``cos_ml.data.parquet_plan`` reads the footers of the files on the driver; ``cos_ml.rank.shard_rows`` reads the rows, by
pyarrow or by petastorm. Row group i belongs to rank i modulo the number of ranks. Only a few row groups are in memory.

The order of the rows depends only on the seed, so a pass over a column alone tells how long its rows are in each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cos_ml.data.columns import Column, RowError, decode
from cos_ml.data.names import VECTOR_PARTS
from cos_ml.data.ragged import Ragged
from cos_ml.data.raw_columns import is_vector, stored_entries, stored_values
from cos_ml.data.spool import PARTS, Spool

__all__ = ["IN_ROW_GROUP", "ShardSpool", "Shards", "Stored", "column_names", "decode_stored", "marks_of", "numbers_of",
           "validation_mask", "values_of"]  # fmt: skip

IN_ROW_GROUP = " (Rows are counted from 0 within a row group.)"  # at the end of messages
# What a column is in the files: the name of a whole one, or else the paths of one or several within structs; "indices"
# and "values" within a Vector are those of its entries.
Stored = str | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Shards:
    """A Parquet dataset and the part of it that each rank reads, as plain values that survive JSON.

    Attributes:
        reader: "parquet", pyarrow by way of fsspec's file systems, or "petastorm".
        roots: the URLs that were given: of folders, or of files.
        files: for each file the index of its root, its path in the file system of that, and its number of row groups,
            in the order in which row groups are counted. For petastorm, a URL is in place of the path.
        filled: the number of row groups with rows, for each partition. There are as many partitions as ranks.
        names: what the stored column is, by field.
        rows: the number of rows by part, for each partition.
        shapes: the shape of a row, by field.
        dtypes: the dtype of a row, by field.
        varying_bytes: the memory that a row needs on average in columns of strings and of rows that differ in length.
        digest: a hash of the rows, or of the files.
        copied: whether ranks keep what they read on local disk, for later epochs.
    """

    reader: str
    roots: Sequence[str]
    files: Sequence[tuple[int, str, int]]
    filled: Sequence[int]
    names: dict[str, Stored]
    rows: Sequence[dict[str, int]]
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, str]
    varying_bytes: int
    digest: str
    copied: bool = False

    @property
    def groups(self) -> int:
        """The number of row groups in all files."""
        return sum(count for _, _, count in self.files)


class ShardSpool(Spool):
    """Takes the place of a Spool in tasks whose rank reads a shard: it has the facts of the shard, but no files."""

    def __init__(self, shards: Shards, partition: int) -> None:
        self.files, self.skipped = {part: {} for part in PARTS}, 0
        self.rows, self.digest = shards.rows[partition], dict.fromkeys(PARTS, shards.digest)
        self.shapes, self.dtypes = shards.shapes, shards.dtypes

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Read ``batches``, which have no rows, to their end."""
        for _ in batches:
            pass


def column_names(names: Iterable[Stored], folders: Mapping[str, Any]) -> list[str]:
    """What to ask pyarrow to read of a file: without the columns whose values are in the names of folders."""
    paths = [path for stored in names for path in ([[stored]] if isinstance(stored, str) else stored)]
    # Vectors are read whole: the entries of a dense one have no indices in the file.
    paths = [path[:-1] if len(path) > 1 and path[-1] in VECTOR_PARTS else path for path in paths]
    return list(dict.fromkeys(".".join(path) for path in paths if path[0] not in folders))


def values_of(
    rows: pa.RecordBatch | pa.Table, stored: Stored, column: Column, folders: Mapping[str, str | None]
) -> pa.Array:
    """The values of a column in rows of a file, in a form that ``decode_stored`` takes."""
    parts = []
    for name, *inner in [[stored]] if isinstance(stored, str) else stored:
        if name in folders:
            values = pa.repeat(pa.scalar(folders[name], pa.string()), rows.num_rows)
            values = values if column.dtype == "string" else numbers_of(values)
        else:
            values = rows.column(name)
        if isinstance(values, pa.ChunkedArray):  # combine_chunks copies, even if there is only one
            values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        for part in inner:
            is_entries = is_vector(values.type) and part in VECTOR_PARTS
            index = values.type.get_field_index(part)
            values = stored_entries(values, part) if is_entries else pc.struct_field(values, index)
        parts.append(values)
    return stored_values(parts, column)


def numbers_of(texts: pa.Array) -> pa.Array:
    """The values in folders' names as numbers, if all of them are, as Spark takes them."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return texts


def marks_of(rows: pa.RecordBatch | pa.Table, stored: Stored, folders: Mapping[str, str | None]) -> pa.Array:
    """The marks of rows of a file that are for validation."""
    return values_of(rows, stored, Column("v", "v", dtype="bool"), folders)


def validation_mask(values: pa.Array) -> np.ndarray:
    """bool [B]: which rows are for validation; null means no."""
    return values.cast(pa.bool_()).fill_null(False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def decode_stored(values: pa.Array, column: Column) -> tuple[np.ndarray | Ragged, list[RowError]]:
    """``decode`` for the types that files have: converts to the network's type of floating-point numbers first."""
    nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    kind = values.type.value_type if nested else values.type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if column.dtype in ("float32", "float64") and not is_binary:
        number = pa.from_numpy_dtype(np.dtype(column.dtype))
        as_list = pa.large_list if pa.types.is_large_list(values.type) else pa.list_
        values = values.cast(as_list(number) if nested else number, safe=False)
    return decode(values, column)
