"""The petastorm feed: ranks read their shards of a Parquet dataset, as often as there are epochs (both sides).

``plan`` runs on the driver and reads footers, ``ShardRows`` in the rank reads row groups through petastorm. Row group i
belongs to rank i modulo the number of ranks. Nothing is on the ranks' disks, and a few row groups are in memory.

For one seed the order is the same whenever rows are read: so a pass over the weight column alone tells in advance what
each step will weigh.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import keyword
import math
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, as_list_array, decode
from cos_ml.data.frames import small_batches
from cos_ml.data.spool import PARTS, raise_on_invalid, usable_rows
from cos_ml.errors import InvalidInputError, SetupError, from_spark
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Observation
    from pyspark.sql import types as T

__all__ = ["Shard", "Shards", "check_petastorm", "check_readable", "plan", "stored"]

FIRST = 16  # rows to see at first: those of an open side have the length of the first one that has any
READ = {pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
        pa.string(), pa.binary()}  # beside decimals, by petastorm  # fmt: skip
TEXT = 41  # bytes that Python takes for a string beside its own
FULL = os.strerror(errno.ENOSPC)  # Java has the words of the C library, too
VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")  # by fsspec, in this order
ROW_GROUP = 16 << 20  # bytes, of the datasets that are written here: a rank holds a few


@dataclass(frozen=True)
class Shards:
    """A Parquet dataset and which part of it each rank reads, as plain values.

    Attributes:
        files: their URLs, in the order in which row groups are counted.
        groups: row groups in all of them.
        filled: by partition: how many of its row groups have rows.
        names: the stored column of each field.
        rows: by partition, which is as many as there are ranks: part -> rows.
        digest: of the rows, or of the files.
        shapes, dtypes: of one row, by field.
        text_bytes: of a row's strings, all of them, in memory.
    """

    files: tuple[str, ...]
    groups: int
    filled: tuple[int, ...]
    names: dict[str, str]
    rows: tuple[dict[str, int], ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    text_bytes: int
    digest: str

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Shards:
        """What ``dataclasses.asdict`` made of shards, after a way through JSON."""
        return cls(**plain | {name: tuple(plain[name]) for name in ("files", "filled", "rows")})


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_petastorm() -> None:
    """Raises SetupError where petastorm can't be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what pyarrow has long marked as old
            import petastorm.reader  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"petastorm can't be imported here ({error}). Install it on the driver and the executors: "
            'pip install "cos-ml[petastorm]". petastorm 0.13 needs pyarrow below 15 and setuptools below 70, so '
            'PySpark 4.0 at most. feed="arrow" needs none of it.'
        ) from error


def check_readable(schema: T.StructType, spec: TrainSpec) -> None:
    """Raises InvalidInputError for stored columns that petastorm can't read, or not under their names."""
    from pyspark.sql import types as T

    for column in spec.stored:
        given = schema[column.name].dataType
        flat = not isinstance(given, T.ArrayType) or not isinstance(given.elementType, (T.ArrayType, T.StructType))
        if isinstance(given, (T.StructType, T.UserDefinedType)) or not flat:
            raise InvalidInputError(
                f"Column {column.name!r} is stored as {given.simpleString()}, and petastorm reads numbers, strings, "
                "bytes and flat arrays. Store arrays (pyspark.ml.functions.vector_to_array makes them of Vectors), or "
                "give the DataFrame to fit()."
            )
        if not column.name.isidentifier() or keyword.iskeyword(column.name) or column.name.startswith("_"):
            raise InvalidInputError(
                f"petastorm reads columns whose names are Python identifiers, and {column.name!r} is none: store it "
                "under another name, or give the DataFrame to fit()."
            )


@contextlib.contextmanager
def stored(
    rows: DataFrame, spec: TrainSpec, folder: str, keep: bool, ordered: bool | None
) -> Iterator[tuple[str, str | None]]:
    """The rows of a narrow DataFrame as a Parquet dataset, for the length of a ``with`` block.

    Args:
        narrow: what ``feeds.narrow`` returns.
        spec: its columns.
        folder: where to make the dataset, which has a name of its own there.
        keep: leave it there.
        ordered: whether the same rows in another order have another digest; None where nobody asks for one.

    Yields:
        tuple[str, str | None]: the URL of the dataset, and a digest of its rows.

    Raises:
        InvalidInputError: a row can't be used.
    """
    import fsspec

    url = f"{folder.rstrip('/')}/cos_ml-{uuid.uuid4().hex}"
    usable = rows.mapInArrow(partial(_usable, spec), rows.schema)
    usable, digest = _observed(usable, ordered) if ordered is not None else (usable, None)
    try:
        try:
            writer = usable.write.option("parquet.block.size", ROW_GROUP).option("parquet.enable.dictionary", "false")
            with small_batches(rows.sparkSession, spec):
                writer.parquet(url)
        except Exception as error:
            if FULL in str(error):
                raise InvalidInputError(
                    f"Param cacheDir: {folder} has no room for the rows ({FULL}). They lie there in full size: give "
                    "them a larger file system."
                ) from None
            raise from_spark(error) or error from None
        yield url, None if digest is None else str(digest.get["digest"])
    finally:
        filesystem, path = fsspec.core.url_to_fs(url)
        if not keep and filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def _observed(rows: DataFrame, ordered: bool) -> tuple[DataFrame, Observation]:
    """The same rows, and what will know their digest when they have been written."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    digest = Observation()
    place = [F.monotonically_increasing_id()] if ordered else []  # partition, and row within it
    keyed = rows.withColumn("key", F.xxhash64(*rows.columns, *place))
    # A sum would see that one row is there twice, and Spark's own would overflow.
    digests = F.concat_ws(" ", F.bit_xor("key"), F.sum(F.col("key").cast("decimal(20)")), F.count("*"))
    return keyed.observe(digest, digests.alias("digest")).drop("key"), digest


def _usable(spec: TrainSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """One task that stores rows: those that can be used, each in full size."""
    seen = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for batch in batches:
        arrays, kept, _ = usable_rows(batch, spec, seen)
        seen += batch.num_rows
        for column in spec.columns if kept.any() else ():
            shape = arrays[column.field].shape[1:]
            if shape != shapes.setdefault(column.field, shape):
                raise inconsistent_shapes(column, shape, shapes[column.field])
        columns = [
            _storable(arrays[name][kept], batch.column(name).type)
            if name in arrays
            else batch.column(name).filter(pa.array(kept))
            for name in batch.schema.names
        ]
        yield pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _storable(rows: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Decoded rows as the Arrow type that they came in."""
    if pa.types.is_binary(kind):
        return pa.array([row.tobytes() for row in rows], kind)
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    if rows.dtype == object:
        texts = [[text.decode() for text in row] for row in flat]
        return pa.array(texts if pa.types.is_list(kind) else [text[0] for text in texts], kind)
    return as_list_array(flat) if pa.types.is_list(kind) else pa.array(flat.reshape(-1), kind)


def plan(
    url: str, spec: TrainSpec, names: dict[str, str], ranks: int, digest: str | None = None, ordered: bool = False
) -> Shards:
    """What each rank shall read, from the footers of the files; of the rows only marks of validation and the first.

    Args:
        url: of a folder of Parquet files, or of one file.
        spec: the columns.
        names: the stored column of each of its fields.
        ranks: how many there are.
        digest: of the rows; without, they are the same as long as no file is written anew.
        ordered: whether the same rows in other row groups have another digest.

    Raises:
        InvalidInputError: there are no rows, or they do not fit the network.
    """
    import fsspec
    import pyarrow.parquet as pq

    if {"#", "?"} & set(url):
        raise InvalidInputError(f"petastorm reads no paths with # or ?, and this is {url}: expected another name.")
    filesystem, path = fsspec.core.url_to_fs(url)
    paths = _files(filesystem, path)
    if not paths:
        raise InvalidInputError(f"There are no Parquet files at {url}.")
    rows = [dict.fromkeys(PARTS, 0) for _ in range(ranks)]
    filled = [0] * ranks
    counts: list[int] = []  # rows of each row group
    facts: tuple[dict[str, Any], dict[str, Any]] | None = None
    texts = 0
    for one in paths:
        with filesystem.open(one) as opened:
            file = pq.ParquetFile(opened)
            _check_stored(file.schema_arrow, _read(names, spec.stored), one)
            for index in range(file.num_row_groups):
                count = file.metadata.row_group(index).num_rows
                marked = _marked(file, index, names["v"]) if spec.validation else 0
                rank = len(counts) % ranks
                counts.append(count)
                rows[rank]["train"] += count - marked
                rows[rank]["validation"] += marked
                filled[rank] += count > 0
                texts += _text_bytes(file.metadata.row_group(index), spec.columns, names)
                if facts is None and count:
                    first = next(file.iter_batches(FIRST, row_groups=[index], columns=[*_read(names, spec.columns)]))
                    facts = _facts(first, spec, names)
    if not sum(shard["train"] for shard in rows) or facts is None:
        raise InvalidInputError(f"There are no rows to train on at {url}.")
    files = tuple(_url(one, url, filesystem) for one in paths)
    if digest is None:
        digest = hashlib.sha256(json.dumps([_version(filesystem, one) for one in paths]).encode()).hexdigest()
    elif ordered:  # a writer short of memory makes smaller ones
        digest = f"{digest} {counts}"
    return Shards(files, len(counts), tuple(filled), names, tuple(rows), *facts, texts // sum(counts), digest)


def _version(filesystem: Any, path: str) -> list[str]:
    """What changes when a file is written anew, and not with its mode or owner: each file system has its own."""
    info = filesystem.info(path)
    written = next((str(info[name]) for name in VERSIONS if info.get(name)), None) or filesystem.ukey(path)
    return [path, str(info["size"]), written]


def _url(path: str, url: str, filesystem: Any) -> str:
    """Of a file that fsspec found at ``url``; of some file systems it does not say the host again."""
    scheme, host, *_ = urlsplit(url)
    return f"{scheme}://{host}{path}" if host and path.startswith("/") else filesystem.unstrip_protocol(path)


def _check_stored(schema: pa.Schema, names: Iterable[str], file: str) -> None:
    """Raises InvalidInputError for a column that a file does not have, or in a form that petastorm passes over."""
    for name in names:
        index = schema.get_field_index(name)
        if index < 0:
            raise InvalidInputError(
                f"The file {file} has no column {name!r}; it has {schema.names}. (What the name of a folder says, as "
                f"{name}=1, is not in the files: store it as a column.)"
            )
        kind = schema.field(index).type
        element = kind.value_type if pa.types.is_list(kind) else kind
        if element not in READ and not pa.types.is_decimal(element):
            raise InvalidInputError(
                f"Column {name!r} of the file {file} is stored as {kind}, which petastorm does not read: expected "
                "numbers, strings, bytes, or lists of them. Write it with Spark, or give the DataFrame to fit()."
            )


def _text_bytes(group: Any, columns: tuple[Column, ...], names: dict[str, str]) -> int:
    """What the strings of a row group take in memory, as Python's bytes, by its footer."""
    fields = {names[column.field] for column in columns if column.dtype == "string"}
    chunks = [group.column(index) for index in range(group.num_columns)]
    texts = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in fields]
    return sum(chunk.total_uncompressed_size + chunk.num_values * TEXT for chunk in texts)


def _files(filesystem: Any, path: str) -> list[str]:
    """The Parquet files at ``path``, without Spark's and others' hidden ones, in one order everywhere."""
    if filesystem.isfile(path):
        return [path]
    start = len(path.rstrip("/")) + 1
    found = (one for one in filesystem.find(path) if not re.search(r"(^|/)[_.]", one[start:]))
    return sorted(one for one in found if one.endswith((".parquet", ".parq", ".pq")))


def _read(names: dict[str, str], columns: tuple[Column, ...]) -> list[str]:
    return [names[column.field] for column in columns]


def _marked(file: Any, group: int, name: str) -> int:
    marks = file.read_row_group(group, columns=[name]).column(0)
    return int(as_marks(marks).sum())


def as_marks(values: pa.ChunkedArray) -> np.ndarray:
    """Which rows validate; null is no."""
    return values.cast(pa.bool_()).fill_null(False).to_numpy()


def _facts(first: pa.RecordBatch, spec: TrainSpec, names: dict[str, str]) -> tuple[Any, Any]:
    """Shapes and dtypes of a row, from the first ones."""
    shapes, dtypes = {}, {}
    for column in spec.columns:
        values = first.column(first.schema.get_field_index(names[column.field]))
        array, row_errors = decode_stored(values, column)
        if row_errors:
            _raise_on_invalid(row_errors, spec.handle_invalid)
        shapes[column.field], dtypes[column.field] = array.shape[1:], array.dtype.str
    return shapes, dtypes


def decode_stored(values: pa.Array | pa.ChunkedArray, column: Column) -> tuple[np.ndarray, list[RowError]]:
    """Stored values as ``decode`` has those of a narrow DataFrame, in the network's number type."""
    nested = pa.types.is_list(values.type)
    kind = values.type.value_type if nested else values.type
    if column.dtype == "float32" and not pa.types.is_binary(kind):
        values = values.cast(pa.list_(pa.float32()) if nested else pa.float32(), safe=False)
    elif pa.types.is_decimal(kind):
        values = values.cast(pa.list_(pa.float64()) if nested else pa.float64(), safe=False)
    return decode(values, column)


def _raise_on_invalid(row_errors: list[RowError], handle_invalid: str) -> None:
    try:
        raise_on_invalid(row_errors, handle_invalid)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} (Rows are counted from 0 within a row group.)") from None


def inconsistent_shapes(column: Column, shape: tuple[int, ...], before: tuple[int, ...]) -> InvalidInputError:
    return InvalidInputError(
        f"Column {column.name!r} has rows of shape {shape} after rows of {before}: expected one shape."
    )


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Shard:
    """In the place of a Spool: what this task's rank will read by itself."""

    skipped = 0

    def __init__(self, shards: Shards, partition: int) -> None:
        self.rows, self.shapes, self.dtypes = shards.rows[partition], shards.shapes, shards.dtypes
        self.digest = shards.digest

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Nothing comes through Spark."""
        for _ in batches:
            pass

    def descriptors(self) -> dict[str, dict[str, int]]:
        """No files are inherited."""
        return {part: {} for part in PARTS}

    def close(self) -> None:
        """Nothing is held."""


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
