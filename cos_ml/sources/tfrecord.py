"""TFRecord files of ``tf.train.Example`` as DataFrames (driver side; the reader: tasks).

TensorFlow reads and parses them. A file is a partition, for its records have no index.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import types as T
from pyspark.sql.datasource import DataSource, DataSourceReader, DataSourceWriter, InputPartition

from cos_ml.data.parquet_files import list_files, visible
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.sources.options import one_of, source_path
from cos_ml.stores import is_local, open_filesystem, retried

__all__ = ["RecordFile", "TFRecordDataSource", "TFRecordReader", "columns_of", "inferred"]

RAW_SCHEMA = T.StructType([T.StructField("byteArray", T.BinaryType())])
SAMPLE = 1000  # records that tell the schema
READ = 16  # records that are read together, of which each may have megabytes
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 22
# Kind of a feature -> its column's type, where the user does not state it.
INFERRED = {"int64_list": T.LongType(), "float_list": T.FloatType(), "bytes_list": T.BinaryType()}
# Type of a column -> TensorFlow's type of the values that it takes, and Arrow's of the column.
TYPES = {
    "bigint": ("int64", pa.int64()),
    "int": ("int64", pa.int32()),
    "smallint": ("int64", pa.int16()),
    "tinyint": ("int64", pa.int8()),
    "boolean": ("int64", pa.bool_()),
    "float": ("float32", pa.float32()),
    "double": ("float32", pa.float64()),
    "binary": ("string", pa.binary()),
    "string": ("string", pa.string()),
}


class TFRecordDataSource(DataSource):
    """The format "tfrecord"; ``cos_ml.sources.register`` registers it with a session.

    ``spark.read.format("tfrecord").load(path)``: ``path`` is a file, a folder with all files in it, a glob, or a list
    of these, on a shared disk or at a URL that fsspec opens; each task copies its file from a URL to its local disk
    while it reads it. Each ``tf.train.Example`` becomes a row with a column for each feature.

    Without a schema, the first 1,000 records tell the columns: bigint, float or binary, or arrays of these where a
    record has several values. A schema may name some of the features, and have their numbers as int, smallint, tinyint,
    boolean or double, and their bytes as string. A feature that a record lacks is null, or an empty array. Errors are
    InvalidInputErrors in Spark's Python workers; Spark quotes them in its own exceptions.

    Options:
        recordType: "Example" (default), or "ByteArray" for the records as they are, in a binary column ``byteArray``.
        compression: "auto" (default: "gzip" for names that end with .gz), "none", "gzip" or "zlib".
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        self.raw = one_of(options, "recordType", "Example", "ByteArray") == "ByteArray"
        self.compression = one_of(options, "compression", "auto", "none", "gzip", "zlib")
        paths = json.loads(options.get("paths", "[]")) or [options.get("path", "")]
        self.paths = [source_path(path, "TFRecord files") for path in paths]

    @classmethod
    def name(cls) -> str:
        """The name that ``format`` takes."""
        return "tfrecord"

    def schema(self) -> T.StructType:
        """The columns, if the user passes no schema: those of the features in the first file that has records."""
        if self.raw:
            return RAW_SCHEMA
        for file in find_files(self.paths):
            records = (record for batch in file.batches(self.compression) for record in batch)
            if sample := list(islice(records, SAMPLE)):
                return file.checked(partial(inferred, sample))
        raise InvalidInputError(f"There is no record at {', '.join(self.paths)} that would tell the columns.")

    def reader(self, schema: T.StructType) -> TFRecordReader:
        """A reader of the columns of ``schema``."""
        return TFRecordReader(self.paths, schema, self.raw, self.compression)

    def writer(self, schema: T.StructType, overwrite: bool) -> DataSourceWriter:
        """There is none."""
        raise InvalidInputError('TFRecord files are only read. Write the rows with format("parquet").')


@dataclass
class RecordFile(InputPartition):
    """A file of records.

    Attributes:
        root: the path or URL that the user gave.
        path: the file on that file system.
    """

    root: str
    path: str

    def batches(self, compression: str) -> Iterator[list[bytes]]:
        """The records, in batches of a few MB.

        Raises:
            InvalidInputError: the file is damaged, or of another format.
        """
        tf = import_tensorflow()
        if compression == "auto":
            compression = "gzip" if self.path.endswith(".gz") else "none"
        kind = "" if compression == "none" else compression.upper()
        with _local(self.root, self.path) as local:
            batches = iter(tf.data.TFRecordDataset(local, kind).batch(READ).as_numpy_iterator())
            kept: list[bytes] = []
            while (some := self.checked(lambda: next(batches, None))) is not None:
                kept += list(some)
                if len(kept) >= BATCH_ROWS or sum(map(len, kept)) >= BATCH_BYTES:
                    yield kept
                    kept = []
            if kept:
                yield kept

    def checked(self, action: Callable[[], Any]) -> Any:
        """The result of ``action``; what is wrong with the file is an InvalidInputError that names it."""
        from google.protobuf.message import DecodeError

        tf = import_tensorflow()
        try:
            return action()
        except tf.errors.DataLossError as error:
            raise InvalidInputError(
                f"{self.path} is damaged, no TFRecord file, or compressed in another way than the option compression "
                f"says: {error.message}"
            ) from error
        except (tf.errors.OpError, DecodeError, pa.ArrowInvalid, ValueError) as error:
            reason = getattr(error, "message", str(error))
            raise InvalidInputError(
                f'{self.path}: {reason}. The schema states the types; recordType="ByteArray" reads other records than '
                "tf.train.Example."
            ) from error


class TFRecordReader(DataSourceReader):
    """Lists the files on the driver; each task reads one."""

    def __init__(self, paths: Sequence[str], schema: T.StructType, raw: bool, compression: str) -> None:
        self.paths = list(paths)
        self.raw = raw
        self.compression = compression
        self.columns = [_Column.of(field) for field in schema.fields]
        if raw and [one.type for one in self.columns] != [pa.binary()]:
            raise InvalidInputError(f"A ByteArray is one column, byteArray binary, received {schema.simpleString()}.")

    def partitions(self) -> list[RecordFile]:  # type: ignore[override]
        """The files.

        Raises:
            InvalidInputError: there are none.
        """
        return find_files(self.paths)

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Read the records of one file, in batches of a few MB.

        Raises:
            InvalidInputError: the file is damaged, or its features do not have the types of the columns.
        """
        assert isinstance(partition, RecordFile)
        names = [column.name for column in self.columns]
        for records in partition.batches(self.compression):
            if self.raw:
                arrays = [pa.array(records, pa.binary())]
            else:
                arrays = partition.checked(partial(columns_of, records, self.columns))
            yield pa.RecordBatch.from_arrays(arrays, names)


def find_files(roots: Sequence[str]) -> list[RecordFile]:
    """The files at these paths, those of a folder or a glob sorted by name, without those that Spark hides.

    Raises:
        InvalidInputError: there are none at one of them.
    """
    found = []
    for root in roots:
        filesystem, path = open_filesystem(root)
        listed = list_files(filesystem, path)
        paths = listed if listed == [path] else visible(path, listed)
        paths = paths or sorted(one for one in retried(partial(filesystem.glob, path)) if filesystem.isfile(one))
        if not paths:
            raise InvalidInputError(f"There are no TFRecord files at {root}: expected a file, a folder or a glob.")
        found += [RecordFile(root, one) for one in paths]
    return found


@contextmanager
def _local(root: str, path: str) -> Iterator[str]:
    """A file on this machine: the file itself, or a copy for the length of a ``with`` block."""
    filesystem, _ = open_filesystem(root)
    if is_local(filesystem):
        yield path
        return
    spark = next((one for one in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if os.path.isdir(one)), None)
    with tempfile.TemporaryDirectory(prefix="cos_ml-", dir=spark) as folder:
        copy = os.path.join(folder, "records")
        retried(partial(filesystem.get_file, path, copy))
        yield copy


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Column:
    """A column: TensorFlow's type of its values, Arrow's, and whether it is one of arrays."""

    name: str
    values: str
    type: pa.DataType
    many: bool

    @classmethod
    def of(cls, field: T.StructField) -> _Column:
        many = isinstance(field.dataType, T.ArrayType)
        element = (field.dataType.elementType if many else field.dataType).simpleString()  # type: ignore[attr-defined]
        if element not in TYPES:
            raise InvalidInputError(
                f"Column {field.name!r} is of type {field.dataType.simpleString()}: a feature of an Example is one of "
                f"{', '.join(TYPES)}, or an array of one."
            )
        return cls(field.name, *TYPES[element], many)


def inferred(records: Iterable[bytes]) -> T.StructType:
    """The columns of the features in serialized Examples, sorted by name; an array where one has several values.

    Raises:
        ValueError: a feature has values of different kinds.
        google.protobuf.message.DecodeError: a record is no Example.
    """
    example = import_tensorflow().train.Example
    kinds: dict[str, str] = {}
    many = set()
    for record in records:
        for name, feature in example.FromString(record).features.feature.items():
            kind = feature.WhichOneof("kind")
            if kind is None:
                continue
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(f"feature {name!r} is a {kinds[name]} and a {kind}")
            if len(getattr(feature, kind).value) > 1:
                many.add(name)
    types = {name: INFERRED[kinds[name]] for name in sorted(kinds)}
    return T.StructType([T.StructField(name, T.ArrayType(one) if name in many else one) for name, one in types.items()])


def columns_of(records: Sequence[bytes], columns: Sequence[_Column]) -> list[pa.Array]:
    """The columns of serialized Examples.

    Raises:
        ValueError: a column of single values has several.
        pyarrow.ArrowInvalid: a value is none of the column's type, such as a number that is too large.
        tensorflow.errors.OpError: a record is no Example, or a feature has values of another kind.
    """
    tf = import_tensorflow()
    with tf.device("CPU"):
        features = {column.name: tf.io.RaggedFeature(column.values) for column in columns}
        parsed = tf.io.parse_example(list(records), features)
    return [_array(parsed[column.name], column) for column in columns]


def _array(ragged: Any, column: _Column) -> pa.Array:
    values, splits = ragged.values.numpy(), ragged.row_splits.numpy()
    flat = pa.array(values.tolist() if values.dtype == object else values).cast(column.type)
    if column.many:
        return pa.ListArray.from_arrays(pa.array(splits, pa.int32()), flat)
    lengths = np.diff(splits)
    if lengths.max(initial=0) > 1:
        raise ValueError(f"feature {column.name!r} has {lengths.max()} values in a record, and its column holds one")
    return flat.take(pa.array(splits[:-1], mask=lengths == 0))
