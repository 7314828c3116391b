"""LMDB databases as DataFrames: Caffe's Datums, or plain keys and values (driver side; readers and writers: tasks).

A database is one file: on a disk that the driver and all executors share, or at a URL, from which it is copied to each
executor, once.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import types as T
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)

from cos_ml.data.names import fold
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.paths import local_path
from cos_ml.sources.copies import local_copy
from cos_ml.sources.lmdb_pages import Malformed, NamedDatabase, PageFile, Records, Span, Tree, open_pages
from cos_ml.sources.options import one_of, positive_int, source_path
from cos_ml.sources.records import DATUM_SCHEMA, RAW_SCHEMA, RECORDS, datum_columns, to_records

__all__ = ["LmdbDataSource", "LmdbReader", "LmdbWriter", "PageRange", "Part", "opened_to_write", "put_records"]

BATCH_ROWS = 1024
BATCH_BYTES = 1 << 20
PARTITION_BYTES = 32 << 20
SPARE = 16 << 20  # bytes that a new database may need besides its records, before it grows
ATTEMPTS = 20  # to remove a folder
NAMES = 20  # of databases that a message shows


class LmdbDataSource(DataSource):
    """The format "lmdb"; ``cos_ml.sources.register`` registers it with a session.

    Reading, ``spark.read.format("lmdb").load(path)``: ``path`` is a folder that contains ``data.mdb``, or a database
    file: on a shared disk, or a URL that fsspec opens. Without a scheme it is on the ``fs.defaultFS`` of
    HADOOP_CONF_DIR. The database must not be written to meanwhile. Each record becomes a row with the columns ``id``
    (the key; bytes that are not UTF-8 as ``\\xNN``), ``label``, ``channels``, ``height``, ``width``, ``encoded``,
    ``data`` and ``float_data``. The last two are null if a Datum has none; other missing numbers are 0. If you pass a
    schema with some of these columns, only those are decoded.

    Writing, ``df.write.format("lmdb").mode("overwrite").save(path)``: takes the same columns, of which ``id``, and
    ``data`` or ``float_data``, are required. ``path`` becomes a folder. Tasks write next to it; at the end the driver
    merges their files and moves the database into place. Writing therefore needs space for the rows twice, and a
    driver that is killed leaves a folder ``.NAME.*`` behind. Mode "append" only creates a new database; Spark offers
    no other modes for Python data sources.

    A task holds a few MB of rows. In a database with the flag ``MDB_DUPSORT``, each value of a key is a row. Files may
    come from anywhere: one that contradicts its format is an error. Reading does not need the package lmdb. Errors are
    InvalidInputErrors in Spark's Python workers; Spark quotes them in its own exceptions.

    Options:
        numPartitions: the approximate number of parts to read. Default: one per 32 MB, and at least one per core of the
            driver's machine.
        values: "datum" (default), or "raw" for binary columns ``key`` and ``value``.
        database: the name of the database to read, in a file with named ones.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        self.raw = one_of(options, "values", "datum", "raw") == "raw"
        self.count = positive_int(options, "numPartitions")
        self.path = source_path(options.get("path", ""), "an LMDB database")
        self.database = options.get("database")

    @classmethod
    def name(cls) -> str:
        """The name that ``format`` takes."""
        return "lmdb"

    def schema(self) -> str:
        """The columns, if the user passes no schema."""
        return RAW_SCHEMA if self.raw else DATUM_SCHEMA

    def reader(self, schema: T.StructType) -> LmdbReader:
        """A reader of the columns of ``schema``."""
        return LmdbReader(self.path, self.raw, self.count, _checked(schema, self.schema()), self.database)

    def writer(self, schema: T.StructType, overwrite: bool) -> LmdbWriter:
        """A writer of rows of ``schema``."""
        if self.database is not None:
            raise InvalidInputError(
                f"Option database: a database that is written has no named ones in it, received {self.database!r}. "
                "Leave the option out."
            )
        if local_path(self.path) is None:
            raise InvalidInputError(
                f"An LMDB database can't be written to {self.path}: expected a folder on a disk that the driver and "
                "all executors share, such as file:///mnt/database."
            )
        _lmdb()  # fail early if the package is missing
        return LmdbWriter(self.path, self.raw, _checked_to_write(schema, self.raw), overwrite)


@dataclass
class PageRange(InputPartition):
    """The records to read: nodes of pages, with what is below them."""

    spans: list[Span]


@dataclass
class Part(WriterCommitMessage):
    """The file of records, an Arrow stream, that one task has written."""

    file: str


class LmdbReader(DataSourceReader):
    """Divides the pages into ranges on the driver; each task reads one range."""

    def __init__(
        self, path: str, raw: bool, count: int | None, columns: Sequence[str], database: str | None = None
    ) -> None:
        self.path = path
        self.raw = raw
        self.count = count
        self.columns = list(columns)
        self.database = database

    @property
    def file(self) -> str:
        """The file of the database: a copy if it is at a URL."""
        return _data_file(self.path) if local_path(self.path) is not None else local_copy(self.path, "data.mdb")

    def partitions(self) -> list[PageRange]:
        """Ranges with about equal numbers of records; each record is in exactly one of them.

        Planning reads a few hundred pages, however large the database is.

        Raises:
            InvalidInputError: there is no database, its file is truncated, damaged or of another format, or it has
                named databases, of which none is chosen.
        """
        with self._opened() as (file, tree):
            count = self.count or max(file.size * file.count // PARTITION_BYTES, os.cpu_count() or 1)
            ranges = [PageRange(spans) for spans in file.parts(tree, count)]
        for batches in map(self._records, ranges[:1]):
            next(batches, None)  # here rather than in a task: are the records named databases?
        return ranges or [PageRange([])]

    def count_rows(self) -> int:
        """The number of records, which the database stores."""
        with self._opened() as (_, tree):
            return tree.entries

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Read the rows of one range, in batches of a few MB.

        Raises:
            InvalidInputError: a value is not a Datum, or the file is damaged.
        """
        assert isinstance(partition, PageRange)
        names = list(map(fold, self.columns))
        for keys, values in _batches(self._records(partition)):
            columns = (
                [pa.array(keys if name == "key" else values, pa.binary()) for name in names]
                if self.raw
                else datum_columns(names, keys, values, self.path)
            )
            yield pa.RecordBatch.from_arrays(columns, self.columns)

    def _records(self, part: PageRange) -> Iterator[Records]:
        with self._opened() as (file, _):
            yield from file.records(part.spans)

    @contextmanager
    def _opened(self) -> Iterator[tuple[PageFile, Tree]]:
        """The open file and the tree to read; what goes wrong while it is open is an InvalidInputError."""
        local = self.file
        if not os.path.isfile(local):
            raise InvalidInputError(
                f"There is no LMDB database at {self.path}: expected a folder with data.mdb, or a file."
            )
        try:
            with open_pages(local) as file:
                yield file, file.main if self.database is None else self._chosen(file, local)
        except NamedDatabase:
            raise InvalidInputError(
                f"{self._named(local)} has named databases: choose one of {_names(local)} with the option database."
            ) from None
        except Malformed as error:
            raise InvalidInputError(f"{self._named(local)} {error}.") from error
        except OSError as error:
            raise InvalidInputError(
                f"{self._named(local)} is not a readable LMDB database: {error.strerror}."
            ) from error

    def _named(self, local: str) -> str:
        """The file as messages name it: not by the path of a copy."""
        return local if local_path(self.path) is not None else self.path

    def _chosen(self, file: PageFile, local: str) -> Tree:
        for name, tree in file.databases():
            if name == str(self.database).encode():
                return tree
        names = _names(local)
        raise InvalidInputError(
            f"Option database: {self._named(local)} has no database {self.database!r}. "
            + (f"Choose one of {names}." if names else "It has no named ones: leave the option out.")
        )


class LmdbWriter(DataSourceArrowWriter):
    """Each task writes a file of records next to the database; the driver merges the files into the database."""

    def __init__(self, path: str, raw: bool, columns: Sequence[str], overwrite: bool) -> None:
        _check_target(path, overwrite)
        self.path = path
        self.raw = raw
        self.columns = list(columns)
        self.overwrite = overwrite
        target = Path(path)
        self.folder = str(target.parent / f".{target.name}.{uuid.uuid4().hex}")
        os.makedirs(self.folder)  # not in the tasks: one that ends after an abort would create it again

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Part:
        """Write the rows of one task.

        Raises:
            InvalidInputError: a row has no key, or neither data nor float_data, or the path is not shared.
        """
        if not os.path.isdir(self.folder):
            raise InvalidInputError(
                f"{self.path} must be on a file system that the driver and all executors share, but the folder "
                f"{self.folder}, which the driver created, does not exist on {socket.gethostname()}."
            )
        file = Path(self.folder, f"{uuid.uuid4().hex}.arrow")
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, RECORDS) as stream:
            for batch in iterator:
                columns = {fold(name): batch.column(at) for at, name in enumerate(self.columns)}
                stream.write_batch(to_records(columns))
        return Part(str(file))

    def commit(self, messages: list[Any]) -> None:
        """Merge the tasks' files into a new database, which replaces an existing one.

        Raises:
            InvalidInputError: a key occurs twice, or is too long for LMDB.
        """
        files = [message.file for message in messages if message is not None]
        made = Path(self.folder, "database")
        try:
            made.mkdir()
            _merge(files, str(made))
            _check_target(self.path, self.overwrite)  # again: it may have been created meanwhile
            _put_in_place(made, Path(self.path), Path(self.folder, "old"))
        finally:
            self.abort(messages)

    def abort(self, messages: list[Any]) -> None:
        """Remove the tasks' files."""
        # Spark aborts while other tasks still run; one that creates its file just then prevents the removal.
        for _ in range(ATTEMPTS):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.1)


def _lmdb() -> Any:
    """The package lmdb, which is an optional dependency."""
    try:
        import lmdb
    except ImportError as error:
        raise SetupError('The format "lmdb" needs the package lmdb: pip install "cos-ml[lmdb]".') from error
    return lmdb


def _names(path: str) -> list[str]:
    """The names of the databases in a file, as far as a message shows them and the file is whole."""
    found = []
    with suppress(Malformed), open_pages(path) as file:
        for name, _ in islice(file.databases(), NAMES):
            found.append(str(name, "utf-8", "backslashreplace"))
    return found


def _checked(schema: T.StructType, known: str) -> list[str]:
    """The names of the columns of ``schema``, in any case.

    Raises:
        InvalidInputError: a column does not exist in the format, or has another type there.
    """
    types = dict(column.rsplit(" ", 1) for column in known.split(", "))
    for field in schema.fields:
        if types.get(fold(field.name)) != field.dataType.simpleString():
            raise InvalidInputError(
                f"There is no column {field.name!r} of type {field.dataType.simpleString()}: expected some of {known}."
            )
    return schema.fieldNames()


def _checked_to_write(schema: T.StructType, raw: bool) -> list[str]:
    names = list(map(fold, _checked(schema, RAW_SCHEMA if raw else DATUM_SCHEMA)))
    missing = {"key", "value"} - set(names) if raw else {"id"} - set(names)
    if missing or not (raw or {"data", "float_data"} & set(names)):
        wanted = "key and value" if raw else "id, and data or float_data"
        raise InvalidInputError(f"Expected columns {wanted}, received {names}.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"Expected each column once, received {repeated[0]!r} twice: {schema.fieldNames()}.")
    return names


def _data_file(path: str) -> str:
    return os.path.join(path, "data.mdb") if os.path.isdir(path) else path


def _batches(records: Iterator[Records]) -> Iterator[Records]:
    """Records in batches of a few MB."""
    keys: list[bytes] = []
    values: list[bytes] = []
    size = 0
    for some_keys, some_values in records:
        keys += some_keys
        values += some_values
        size += sum(map(len, some_values))
        if size >= BATCH_BYTES or len(keys) >= BATCH_ROWS:
            yield keys, values
            keys, values, size = [], [], 0
    if keys:
        yield keys, values


def _check_target(path: str, overwrite: bool) -> None:
    """Raises InvalidInputError if a database must not be written to ``path``."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise InvalidInputError(
            f'{path} already exists, and rows can\'t be appended to a database. Use mode("overwrite") to replace it.'
        )
    if os.path.islink(path) or not os.path.isdir(path) or not {"data.mdb", "lock.mdb"}.issuperset(os.listdir(path)):
        raise InvalidInputError(f"{path} is not the folder of an LMDB database: remove it, or choose another path.")


def _merge(files: Iterable[str], folder: str) -> None:
    """Write the records of ``files`` to a new database in ``folder``."""
    with opened_to_write(folder, sum(map(os.path.getsize, files))) as environment:
        for file in files:
            with pa.memory_map(file) as source, pa.ipc.open_stream(source) as batches:
                for batch in batches:
                    put_records(environment, batch)


@contextmanager
def opened_to_write(folder: str, size: int) -> Iterator[Any]:
    """The database in ``folder``, with room for about ``size`` bytes; it is synced to disk at the end."""
    with _lmdb().open(folder, map_size=SPARE + 2 * size, lock=False, sync=False) as environment:
        yield environment
        environment.sync(True)


def put_records(environment: Any, batch: pa.RecordBatch, *, again: bool = False) -> None:
    """Put either all records of ``batch`` into the database, which grows as needed, or none of them.

    Raises:
        InvalidInputError: a key already exists (with ``again``: with another value), or is too long for LMDB.
    """
    lmdb = _lmdb()
    keys, values = (column.to_pylist() for column in batch.columns)
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in zip(keys, values, strict=True):
                    if not transaction.put(key, value, overwrite=False) and not (
                        again and transaction.get(key) == value
                    ):
                        raise InvalidInputError(f"Two rows have the key {key!r}, but keys of a database are unique.")
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])
        except lmdb.BadValsizeError as error:
            most = environment.max_key_size()
            wrong = [len(key) for key in keys if not 1 <= len(key) <= most] or [max(map(len, keys))]
            raise InvalidInputError(
                f"LMDB needs keys of 1 to {most} bytes, received one of {wrong[0]} bytes."
            ) from error


def _put_in_place(made: Path, target: Path, old: Path) -> None:
    """Rename ``made`` to ``target``. An existing target becomes ``old``, and is restored on failure."""
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
