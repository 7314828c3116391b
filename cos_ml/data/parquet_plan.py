"""Plans which row groups of a Parquet dataset each rank reads, and checks them (driver; a task with Spark Connect)."""

from __future__ import annotations

import hashlib
import json
import keyword
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, RowError, match_lengths, renumber, settle
from cos_ml.data.file_tasks import call_at_files
from cos_ml.data.parquet import (
    IN_ROW_GROUP,
    Shards,
    Stored,
    column_names,
    decode_stored,
    marks_of,
    numbers_of,
    validation_mask,
    values_of,
)  # fmt: skip
from cos_ml.data.parquet_files import DataFile, column_chunks, find_files, opened, row_batches
from cos_ml.data.ragged import Ragged
from cos_ml.data.raw_columns import is_readable, is_vector, plain
from cos_ml.data.spool import SCANNED, raise_on_invalid, row_keys, validates
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.paths import for_spark, literal, local_path
from cos_ml.spec import TrainSpec
from cos_ml.stores import retried, version_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

__all__ = ["check_petastorm", "plan", "stored_frame"]

PREVIEW_ROWS = 16  # rows that decide which shape rows have, and in which type they are stored
FOOTERS = 16  # files that are opened at the same time
PETASTORM_READS = {pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(),
                   pa.string(), pa.binary()}  # besides decimals  # fmt: skip
STRING_OVERHEAD = 41  # bytes that a Python string needs besides its characters


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
        fields[name] = numbers_of(texts).type
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
    if reader == "petastorm":
        _check_petastorm_urls([file.path for file in files])
    with ThreadPoolExecutor(FOOTERS) as pool:
        groups = list(pool.map(lambda file: retried(partial(_read_footer, file, spec, names, reader)), files))
        versions = list(pool.map(_version, files if digest is None else []))
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
    shapes, dtypes, held = retried(partial(_row_layout, files, groups, spec, names))
    varying_bytes = max(held, int(counts[:, 2].sum() // counts[:, 0].sum()))  # dictionaries make files small, not rows
    prefix = "file://" if reader == "petastorm" else ""
    listed = tuple((file.root, prefix + file.path, len(found)) for file, found in zip(files, groups, strict=True))
    return Shards(reader, roots, listed, filled, names, rows, shapes, dtypes, varying_bytes, digest, copied)


def _version(file: DataFile) -> list[str]:
    return [file.path, *version_of(retried(partial(file.filesystem.info, file.path)))]


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
    for name, chunk in column_chunks(file, index, [*varying]):
        dtype = varying[name]
        if chunk.physical_type == "BYTE_ARRAY":
            overhead = STRING_OVERHEAD if dtype == "string" else 0
            size += chunk.total_uncompressed_size + chunk.num_values * overhead
        else:
            size += chunk.num_values * (8 if dtype == "string" else np.dtype(dtype).itemsize)
    return metadata.num_rows, validation, size


def _count_hashed(file: Any, index: int, spec: TrainSpec, names: dict[str, Stored], folders: Mapping[str, Any]) -> int:
    """The number of rows of a row group that validationFraction selects: this reads all of them."""
    found = seen = 0
    columns = column_names([names[column.field] for column in spec.columns], folders)
    for batch in row_batches(file, index, columns, SCANNED):
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
) -> tuple[Any, Any, int]:
    """The shape and the dtype of a row, by field, from the first rows of the first row group that has any.

    And the memory that one of them needs in columns of strings and of rows that differ in length.
    """
    places = ((file, index) for file, found in zip(files, groups, strict=True) for index in range(len(found))
              if found[index][0])  # fmt: skip
    file, index = next(places)
    columns = column_names([names[column.field] for column in spec.columns], file.folders)
    with opened(file) as stored:
        preview = next(row_batches(stored, index, columns, PREVIEW_ROWS), None)
    if preview is None:
        raise InvalidInputError(f"The file {file.path} is damaged: row group {index} lacks the rows in its footer.")
    shapes, dtypes, held = {}, {}, 0
    for column in spec.columns:
        array, row_errors = decode_stored(values_of(preview, names[column.field], column, file.folders), column)
        if row_errors:
            raise_on_invalid(row_errors, spec.handle_invalid, IN_ROW_GROUP)
        shapes[column.field], dtypes[column.field] = array.shape[1:], array.dtype.str
        flat = array.flat_values if isinstance(array, Ragged) else array.reshape(-1)
        if array.dtype == object:
            held += sum(len(text) + STRING_OVERHEAD for text in flat)
        elif isinstance(array, Ragged):
            held += flat.nbytes
    return shapes, dtypes, held // preview.num_rows


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
    if column.dtype != "string" and pa.types.is_string(numbers_of(pa.array([value], pa.string())).type):
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
