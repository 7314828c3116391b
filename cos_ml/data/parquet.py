"""The feeds by Parquet files: every rank reads its shard of a dataset once per epoch (driver, task and rank side).

``plan`` reads the footers of the files on the driver; ``cos_ml.rank.shard_rows`` reads the rows, by pyarrow or by
petastorm. Row group i belongs to rank i modulo the number of ranks. Only a few row groups are in memory.

The order of the rows depends only on the seed, so a pass over a column alone tells how long its rows are in each step.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cos_ml.data.columns import Column, RowError, decode, match_lengths, renumber, settle
from cos_ml.data.file_tasks import call_at_files
from cos_ml.data.names import VECTOR_PARTS
from cos_ml.data.parquet_files import DataFile, find_files, opened, url_of, version_of
from cos_ml.data.ragged import Ragged
from cos_ml.data.raw_columns import is_readable, is_vector, plain, stored_entries, stored_values
from cos_ml.data.spool import PARTS, SCANNED, Spool, raise_on_invalid, row_keys, validates
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.paths import for_spark, literal, local_path
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = ["IN_ROW_GROUP", "ShardSpool", "Shards", "Stored", "check_petastorm", "column_names", "decode_stored",
           "marks_of", "plan", "stored_frame", "validation_mask", "values_of"]  # fmt: skip

IN_ROW_GROUP = " (Rows are counted from 0 within a row group.)"  # at the end of messages
PREVIEW_ROWS = 16  # rows that decide which shape rows have, and in which type they are stored
FOOTERS = 16  # files that are opened at the same time
PETASTORM_READS = {pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
                   pa.string(), pa.binary()}  # besides decimals  # fmt: skip
STRING_OVERHEAD = 41  # bytes that a Python string needs besides its characters
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


# ── driver ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_petastorm(urls: Sequence[str]) -> None:
    """Raises InvalidInputError for URLs that petastorm can't read, and SetupError if it can't be imported."""
    _check_petastorm_urls(urls)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # petastorm uses deprecated parts of pyarrow
            import petastorm.reader  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"petastorm can't be imported ({error}). Install it on the driver and the executors: "
            'pip install "cos-ml[petastorm]". petastorm 0.13 needs pyarrow < 15 and setuptools < 70, and therefore '
            'PySpark <= 4.0. feed="parquet" reads the same files without petastorm.'
        ) from error


def _schema(files: Sequence[DataFile]) -> pa.Schema:
    """The columns of a dataset by its first file, in types that Spark knows, and those of the names of its folders."""
    first = files[0]
    with opened(first) as stored:
        schema = stored.schema_arrow
    fields = {field.name: plain(field.type, spark=True) for field in schema}
    for name in first.folders:
        texts = pa.array(list({file.folders.get(name) for file in files}), pa.string())
        fields[name] = _numbers_of(texts).type
    return pa.schema(list(fields.items()))


def stored_frame(spark: SparkSession, urls: Sequence[str]) -> DataFrame:
    """A DataFrame with the columns of a Parquet dataset: Spark's of the files, or one without rows.

    Spark knows fewer file systems than fsspec, but keeps the metadata of its columns in the files.
    """
    call_at_files(spark, lambda: bool(find_files(urls)))
    try:
        found = spark.read.parquet(*(literal(for_spark(spark, url)) for url in urls))
        _ = found.schema  # looked up here with Spark Connect
        return found
    except Exception:
        schema = bytes.fromhex(call_at_files(spark, lambda: _schema(find_files(urls)).serialize().to_pybytes().hex()))
        return spark.createDataFrame([], _spark_schema(spark, pa.ipc.read_schema(pa.py_buffer(schema))))


def _spark_schema(spark: SparkSession, schema: pa.Schema) -> StructType:
    """The schema that Spark has for columns of files; of columns that it can't have, none."""
    from pyspark.ml.linalg import VectorUDT
    from pyspark.sql.types import StructType

    tests = pa.types.is_struct, lambda kind: is_readable(kind, "float32"), lambda kind: is_readable(kind, "string")
    readable = pa.schema([field for field in schema if any(test(field.type) for test in tests)])
    row = pa.table([pa.nulls(1, field.type) for field in readable], schema=readable)  # Connect takes no empty table
    fields = spark.createDataFrame(row).schema.fields
    for field, stored in zip(fields, readable, strict=True):
        field.dataType = VectorUDT() if is_vector(stored.type) else field.dataType
    return StructType(fields)


def plan(
    urls: str | Sequence[str], spec: TrainSpec, names: dict[str, Any], ranks: int, digest: str | None = None,
    ordered: bool = False, reader: str = "parquet", copied: bool = False,
) -> Shards:  # fmt: skip
    """Divide the row groups among the ranks. Reads the files' footers, their validation column and the first rows.

    Args:
        urls: a folder of Parquet files, one file, or a list of them.
        spec: the columns.
        names: what the stored column is, for each of the spec's fields.
        ranks: the number of ranks.
        digest: a hash of the rows; None to hash the sizes and times of the files instead.
        ordered: whether the digest depends on how the rows are divided into row groups.
        reader: "parquet" or "petastorm".
        copied: whether ranks keep what they read on local disk, for later epochs.

    Raises:
        InvalidInputError: there are no rows, or they do not fit the network; or petastorm can't read them.
    """
    roots = [urls] if isinstance(urls, str) else list(urls)
    files = find_files(roots)
    with ThreadPoolExecutor(FOOTERS) as pool:
        groups = list(pool.map(lambda file: _read_footer(file, spec, names, reader), files))
        versions = list(pool.map(version_of, files if digest is None else []))
    counts = np.array([one for groups_of_file in groups for one in groups_of_file], np.int64).reshape(-1, 3)
    sums = [counts[rank::ranks].sum(axis=0).tolist() for rank in range(ranks)]
    rows = tuple({"train": total - validation, "validation": validation} for total, validation, _ in sums)
    if not any(part["train"] for part in rows):
        raise InvalidInputError(f"There are no rows to train on at {', '.join(roots)}.")
    if digest is None:
        digest = hashlib.sha256(json.dumps(versions).encode()).hexdigest()
    elif ordered:  # Spark's writer makes smaller row groups when it is short of memory
        digest = f"{digest} {counts[:, 0].tolist()}"
    filled = tuple(int((counts[rank::ranks, 0] > 0).sum()) for rank in range(ranks))
    layout = _row_layout(files, groups, spec, names)
    varying_bytes = int(counts[:, 2].sum() // counts[:, 0].sum())
    by_url = reader == "petastorm"
    listed = tuple(
        (file.root, url_of(file.path, roots[file.root], file.filesystem) if by_url else file.path, len(found))
        for file, found in zip(files, groups, strict=True)
    )
    return Shards(reader, roots, listed, filled, names, rows, *layout, varying_bytes, digest, copied)


def _read_footer(file: DataFile, spec: TrainSpec, names: dict[str, Stored], reader: str) -> list[tuple[int, int, int]]:
    """The numbers of rows and of validation rows of each row group of a file, and its varying bytes."""
    with opened(file) as stored:
        _check_stored(stored.schema_arrow, {column: names[column.field] for column in spec.stored}, file, reader)
        return [_count(stored, index, spec, names, file.folders) for index in range(stored.num_row_groups)]


def _count(
    file: Any, index: int, spec: TrainSpec, names: dict[str, Stored], folders: Mapping[str, Any]
) -> tuple[int, int, int]:
    """The rows and the validation rows of a row group, and the memory that its strings and varying rows need."""
    metadata = file.metadata.row_group(index)
    validation = 0
    if spec.validation_fraction and "v" not in names:
        validation = _count_hashed(file, index, spec, names, folders)
    elif spec.validation or spec.validation_fraction:
        table = file.read_row_group(index, columns=column_names([names["v"]], folders))
        marks = marks_of(table, names["v"], folders)
        validation = int(validation_mask(marks).sum())
        if spec.validation and marks.null_count:
            row = int(marks.is_null().to_numpy(zero_copy_only=False).argmax())
            raise_on_invalid([RowError(row, spec.validation.name, "is null")], spec.handle_invalid, IN_ROW_GROUP)
    varying = {
        name.split(".")[0]: one.dtype
        for one in spec.columns
        if one.dtype == "string" or one.may_vary
        for name in column_names([names[one.field]], folders)
    }
    size = 0
    for chunk in map(metadata.column, range(metadata.num_columns)):
        dtype = varying.get(chunk.path_in_schema.split(".")[0])
        if dtype is not None and chunk.physical_type == "BYTE_ARRAY":
            overhead = STRING_OVERHEAD if dtype == "string" else 0
            size += chunk.total_uncompressed_size + chunk.num_values * overhead
        elif dtype is not None:
            size += chunk.num_values * (8 if dtype == "string" else np.dtype(dtype).itemsize)
    return metadata.num_rows, validation, size


def _count_hashed(file: Any, index: int, spec: TrainSpec, names: dict[str, Stored], folders: Mapping[str, Any]) -> int:
    """The number of rows of a row group that validationFraction selects: this reads all of them."""
    found = seen = 0
    columns = column_names([names[column.field] for column in spec.columns], folders)
    for batch in file.iter_batches(SCANNED, row_groups=[index], columns=columns):
        arrays, row_errors = {}, []
        for column in spec.columns:
            values = values_of(batch, names[column.field], column, folders)
            arrays[column.field], errors = decode_stored(values, settle(values, column))
            row_errors += errors
        row_errors += match_lengths(arrays, spec.columns, row_errors)
        if row_errors:
            raise_on_invalid(renumber(row_errors, seen), spec.handle_invalid, IN_ROW_GROUP)
        found += int(validates(row_keys(arrays), spec).sum())
        seen += batch.num_rows
    return found


def _row_layout(
    files: Sequence[DataFile], groups: Sequence[Any], spec: TrainSpec, names: dict[str, Stored]
) -> tuple[Any, Any]:
    """The shape and the dtype of a row, by field, from the first rows of the first row group that has any."""
    places = ((file, index) for file, found in zip(files, groups, strict=True) for index in range(len(found))
              if found[index][0])  # fmt: skip
    file, index = next(places)
    columns = column_names([names[column.field] for column in spec.columns], file.folders)
    with opened(file) as stored:
        preview = next(stored.iter_batches(PREVIEW_ROWS, row_groups=[index], columns=columns))
    shapes, dtypes = {}, {}
    for column in spec.columns:
        array, row_errors = decode_stored(values_of(preview, names[column.field], column, file.folders), column)
        if row_errors:
            raise_on_invalid(row_errors, spec.handle_invalid, IN_ROW_GROUP)
        shapes[column.field], dtypes[column.field] = array.shape[1:], array.dtype.str
    return shapes, dtypes


def _check_petastorm_urls(urls: Sequence[str]) -> None:
    for url in urls:
        if {"#", "?"} & set(url):
            raise InvalidInputError(
                f'petastorm can\'t read paths with # or ?, received {url}. Rename the path, or use feed="parquet".'
            )
        if local_path(url) is None:
            raise InvalidInputError(
                f'petastorm reads only paths of a local or mounted disk, received {url}. feed="parquet" reads any URL '
                "that fsspec can open."
            )


def _check_stored(schema: pa.Schema, names: Mapping[Column, Stored], file: DataFile, reader: str) -> None:
    """Raises InvalidInputError for a column that a file lacks, or whose name or type the reader can't read."""
    for column, stored in names.items():
        if reader == "petastorm":
            _check_petastorm_column(schema, stored, file)
            continue
        for name, *inner in [[stored]] if isinstance(stored, str) else stored:
            if name in file.folders:
                _check_folder_value(name, column, file)
                continue
            kind, within = schema.field(_index(schema, name, file)).type, name
            for part in inner:
                found = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
                if found < 0:
                    raise InvalidInputError(f"Column {within!r} of the file {file.path} has no field {part!r}: {kind}.")
                kind, within = kind.field(found).type, f"{within}.{part}"
            if not is_readable(kind, column.dtype):
                expected = "strings" if column.dtype == "string" else "numbers, Vectors or bytes"
                raise InvalidInputError(
                    f"Column {within!r} of the file {file.path} is stored as {kind}: expected {expected}, or arrays."
                )


def _check_folder_value(name: str, column: Column, file: DataFile) -> None:
    value = file.folders[name]
    if column.dtype != "string" and pa.types.is_string(_numbers_of(pa.array([value], pa.string())).type):
        raise InvalidInputError(f"Column {name!r} of the file {file.path} is {value!r}: expected a number.")


def _index(schema: pa.Schema, name: str, file: DataFile) -> int:
    """The place of a column in a file; raises InvalidInputError if it has none."""
    index: int = schema.get_field_index(name)
    if index < 0:
        raise InvalidInputError(f"The file {file.path} has no column {name!r}; it has {schema.names}.")
    return index


def _check_petastorm_column(schema: pa.Schema, name: Any, file: DataFile) -> None:
    """Raises InvalidInputError for a column that a file lacks, or that petastorm can't read."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise InvalidInputError(
            f"petastorm reads only columns whose names are public Python identifiers, received {name!r}. Use "
            'feed="parquet", or store the column under another name.'
        )
    if name in file.folders and name not in schema.names:
        raise InvalidInputError(
            f"The file {file.path} has no column {name!r}; petastorm does not read the values in folders' names, "
            f'such as {name}=1. Use feed="parquet".'
        )
    kind = schema.field(_index(schema, name, file)).type
    element = kind.value_type if pa.types.is_list(kind) else kind
    if element not in PETASTORM_READS and not pa.types.is_decimal(element):
        raise InvalidInputError(
            f"Column {name!r} of the file {file.path} is stored as {kind}, which petastorm does not read: expected "
            'numbers, strings, bytes, or flat lists of them. Use feed="parquet", or store it so with Spark '
            "(pyspark.ml.functions.vector_to_array converts Vectors)."
        )


# ── driver and rank ───────────────────────────────────────────────────────────────────────────────────────────────────


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
            values = values if column.dtype == "string" else _numbers_of(values)
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


def _numbers_of(texts: pa.Array) -> pa.Array:
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
