"""The petastorm feed: every rank reads its shard of a Parquet dataset once per epoch (driver, task and rank side).

``plan`` reads the footers of the files on the driver; ``cos_ml.rank.shard_rows`` reads the rows. Row group i belongs to
rank i modulo the number of ranks. No rows are on the ranks' disks, and only a few row groups are in memory.

The order of the rows depends only on the seed, so a pass over a column alone tells how long its rows are in each step.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, decode, match_lengths, settle
from cos_ml.data.ragged import Ragged
from cos_ml.data.spool import PARTS, SCANNED, Spool, raise_on_invalid, row_keys, validates
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.spec import TrainSpec
from cos_ml.stores import open_filesystem

__all__ = ["IN_ROW_GROUP", "ShardSpool", "Shards", "check_petastorm", "decode_stored", "plan", "validation_mask"]

IN_ROW_GROUP = " (Rows are counted from 0 within a row group.)"  # at the end of messages
PREVIEW_ROWS = 16  # rows that decide which shape rows have, and in which type they are stored
READABLE = {pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
            pa.string(), pa.binary()}  # by petastorm, besides decimals  # fmt: skip
STRING_OVERHEAD = 41  # bytes that a Python string needs besides its characters
# What fsspec's file systems call the version of a file, by priority.
VERSIONS = (
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


@dataclass(frozen=True)
class Shards:
    """A Parquet dataset and the part of it that each rank reads, as plain values that survive JSON.

    Attributes:
        files: the URLs of the files, in the order in which row groups are counted.
        groups: the number of row groups in all files.
        filled: the number of row groups with rows, for each partition. There are as many partitions as ranks.
        names: the name of the stored column, by field.
        rows: the number of rows by part, for each partition.
        shapes: the shape of a row, by field.
        dtypes: the dtype of a row, by field.
        varying_bytes: the memory that a row needs on average in columns of strings and of rows that differ in length.
        digest: a hash of the rows, or of the files.
    """

    files: Sequence[str]
    groups: int
    filled: Sequence[int]
    names: dict[str, str]
    rows: Sequence[dict[str, int]]
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, str]
    varying_bytes: int
    digest: str


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_petastorm() -> None:
    """Raises SetupError if petastorm can't be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # petastorm uses deprecated parts of pyarrow
            import petastorm.reader  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"petastorm can't be imported ({error}). Install it on the driver and the executors: "
            'pip install "cos-ml[petastorm]". petastorm 0.13 needs pyarrow < 15 and setuptools < 70, and therefore '
            'PySpark <= 4.0. feed="arrow" does not need petastorm.'
        ) from error


def plan(
    url: str, spec: TrainSpec, names: dict[str, str], ranks: int, digest: str | None = None, ordered: bool = False
) -> Shards:
    """Divide the row groups among the ranks. Reads the files' footers, their validation column and the first rows.

    Args:
        url: a folder of Parquet files, or one file.
        spec: the columns.
        names: the name of the stored column for each of the spec's fields.
        ranks: the number of ranks.
        digest: a hash of the rows; None to hash the sizes and times of the files instead.
        ordered: whether the digest depends on how the rows are divided into row groups.

    Raises:
        InvalidInputError: there are no rows, or they do not fit the network.
    """
    import pyarrow.parquet as pq

    if {"#", "?"} & set(url):
        raise InvalidInputError(f"petastorm can't read paths with # or ?, received {url}. Rename the path.")
    filesystem, root = open_filesystem(url)
    paths = _parquet_files(filesystem, root)
    if not paths:
        raise InvalidInputError(f"There are no Parquet files at {url}.")
    groups: list[tuple[int, int, int]] = []
    layout = None
    for path in paths:
        with filesystem.open(path) as opened:
            file = pq.ParquetFile(opened)
            _check_stored(file.schema_arrow, [names[column.field] for column in spec.stored], path)
            for index in range(file.num_row_groups):
                groups.append(_count(file, index, spec, names))
                if layout is None and groups[-1][0]:
                    layout = _row_layout(file, index, spec, names)
    counts = np.array(groups, np.int64).reshape(-1, 3)  # of each row group: rows, validation rows, varying bytes
    sums = [counts[rank::ranks].sum(axis=0).tolist() for rank in range(ranks)]
    rows = tuple({"train": total - validation, "validation": validation} for total, validation, _ in sums)
    if layout is None or not any(part["train"] for part in rows):
        raise InvalidInputError(f"There are no rows to train on at {url}.")
    if digest is None:
        digest = hashlib.sha256(json.dumps([_version(filesystem, path) for path in paths]).encode()).hexdigest()
    elif ordered:  # Spark's writer makes smaller row groups when it is short of memory
        digest = f"{digest} {counts[:, 0].tolist()}"
    filled = tuple(int((counts[rank::ranks, 0] > 0).sum()) for rank in range(ranks))
    varying_bytes = int(counts[:, 2].sum() // counts[:, 0].sum())
    files = tuple(_file_url(path, url, filesystem) for path in paths)
    return Shards(files, len(groups), filled, names, rows, *layout, varying_bytes, digest)


def _count(file: Any, index: int, spec: TrainSpec, names: dict[str, str]) -> tuple[int, int, int]:
    """The rows and the validation rows of a row group, and the memory that its strings and varying rows need."""
    metadata = file.metadata.row_group(index)
    validation = 0
    if spec.validation_fraction and "v" not in names:
        validation = _count_hashed(file, index, spec, names)
    elif spec.validation or spec.validation_fraction:
        marks = file.read_row_group(index, columns=[names["v"]]).column(0)
        validation = int(validation_mask(marks).sum())
        if spec.validation and marks.null_count:
            row = int(marks.is_null().to_numpy().argmax())
            raise_on_invalid([RowError(row, spec.validation.name, "is null")], spec.handle_invalid, IN_ROW_GROUP)
    varying = {names[one.field]: one.dtype for one in spec.columns if one.dtype == "string" or one.may_vary}
    size = 0
    for chunk in map(metadata.column, range(metadata.num_columns)):
        dtype = varying.get(chunk.path_in_schema.split(".")[0])
        if dtype is not None and chunk.physical_type == "BYTE_ARRAY":
            overhead = STRING_OVERHEAD if dtype == "string" else 0
            size += chunk.total_uncompressed_size + chunk.num_values * overhead
        elif dtype is not None:
            size += chunk.num_values * np.dtype(dtype).itemsize
    return metadata.num_rows, validation, size


def _count_hashed(file: Any, index: int, spec: TrainSpec, names: dict[str, str]) -> int:
    """The number of rows of a row group that validationFraction selects: this reads all of them."""
    found = 0
    stored = [names[column.field] for column in spec.columns]
    for batch in file.iter_batches(SCANNED, row_groups=[index], columns=stored):
        arrays = {}
        for column in spec.columns:
            values = batch.column(names[column.field])
            arrays[column.field], row_errors = decode_stored(values, settle(values, column))
            if row_errors:
                raise_on_invalid(row_errors, spec.handle_invalid, IN_ROW_GROUP)
        if row_errors := match_lengths(arrays, spec.columns):
            raise_on_invalid(row_errors, spec.handle_invalid, IN_ROW_GROUP)
        found += int(validates(row_keys(arrays), spec).sum())
    return found


def _row_layout(file: Any, index: int, spec: TrainSpec, names: dict[str, str]) -> tuple[Any, Any]:
    """The shape and the dtype of a row, by field, from the first rows of a row group."""
    stored = [names[column.field] for column in spec.columns]
    preview = next(file.iter_batches(PREVIEW_ROWS, row_groups=[index], columns=stored))
    shapes, dtypes = {}, {}
    for column in spec.columns:
        array, row_errors = decode_stored(preview.column(names[column.field]), column)
        if row_errors:
            raise_on_invalid(row_errors, spec.handle_invalid, IN_ROW_GROUP)
        shapes[column.field], dtypes[column.field] = array.shape[1:], array.dtype.str
    return shapes, dtypes


def _parquet_files(filesystem: Any, root: str) -> list[str]:
    """The sorted Parquet files at ``root``, without hidden ones such as Spark's temporary files."""
    if filesystem.isfile(root):
        return [root]
    start = len(root.rstrip("/")) + 1
    visible = (path for path in filesystem.find(root) if not re.search(r"(^|/)[_.]", path[start:]))
    return sorted(path for path in visible if path.endswith((".parquet", ".parq", ".pq")))


def _version(filesystem: Any, path: str) -> list[str]:
    """What changes when a file is rewritten, but not with its mode or owner; file systems name it differently."""
    info = filesystem.info(path)
    written = next((str(info[name]) for name in VERSIONS if info.get(name)), None) or filesystem.ukey(path)
    return [path, str(info["size"]), written]


def _file_url(path: str, url: str, filesystem: Any) -> str:
    """The URL of a file that fsspec found at ``url``; fsspec drops the host for some file systems."""
    scheme, host, *_ = urlsplit(url)
    return f"{scheme}://{host}{path}" if host and path.startswith("/") else filesystem.unstrip_protocol(path)


def _check_stored(schema: pa.Schema, names: Iterable[str], path: str) -> None:
    """Raises InvalidInputError for a column that a file lacks, or whose name or type petastorm can't read."""
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise InvalidInputError(
                f"petastorm reads only columns whose names are public Python identifiers, received {name!r}. Store the "
                "column under another name, or pass the DataFrame to fit()."
            )
        index = schema.get_field_index(name)
        if index < 0:
            raise InvalidInputError(
                f"The file {path} has no column {name!r}; it has {schema.names}. (The value in a folder's name, such "
                f"as {name}=1, is not in the files: store it as a column.)"
            )
        kind = schema.field(index).type
        element = kind.value_type if pa.types.is_list(kind) else kind
        if element not in READABLE and not pa.types.is_decimal(element):
            raise InvalidInputError(
                f"Column {name!r} of the file {path} is stored as {kind}, which petastorm does not read: expected "
                "numbers, strings, bytes, or flat lists of them. Store it so with Spark "
                "(pyspark.ml.functions.vector_to_array converts Vectors), or pass the DataFrame to fit()."
            )


# ── driver and rank ───────────────────────────────────────────────────────────────────────────────────────────────────


def validation_mask(values: pa.ChunkedArray) -> np.ndarray:
    """bool [B]: which rows are for validation; null means no."""
    return values.cast(pa.bool_()).fill_null(False).to_numpy()


def decode_stored(values: pa.Array | pa.ChunkedArray, column: Column) -> tuple[np.ndarray | Ragged, list[RowError]]:
    """``decode`` for the types that files have: converts to the network's type of floating-point numbers first."""
    nested = pa.types.is_list(values.type)
    kind = values.type.value_type if nested else values.type
    if column.dtype in ("float32", "float64") and not pa.types.is_binary(kind):
        number = pa.from_numpy_dtype(np.dtype(column.dtype))
        values = values.cast(pa.list_(number) if nested else number, safe=False)
    return decode(values, column)


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


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
