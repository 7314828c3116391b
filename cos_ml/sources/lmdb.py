"""LMDB databases as DataFrames: Caffe's Datums, or plain keys and values (planned on the driver, read by executors).

A database is one file with one writer, so its path has to mean the same file to the driver and to all executors.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import time
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import types as T
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)

from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.sources import datum

__all__ = [
    "DATUMS",
    "DATUM_SCHEMA",
    "RECORDS",
    "KeyRange",
    "LmdbDataSource",
    "LmdbReader",
    "LmdbWriter",
    "Part",
    "datum_columns",
    "opened_to_write",
    "put_records",
    "text",
    "to_records",
]

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
)  # the same, as Arrow has it
RECORDS = pa.schema([("key", pa.binary()), ("value", pa.binary())])
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 20
PARTITION_BYTES = 32 << 20
SPARE = 16 << 20  # bytes that a new database may need beside its records, before it grows
ATTEMPTS = 20  # to remove a folder


class LmdbDataSource(DataSource):
    """The format "lmdb"; ``cos_ml.sources.register`` makes it known to a session.

    Reading, ``spark.read.format("lmdb").load(path)``: ``path`` is a folder that holds ``data.mdb``, or a database of
    one file; nobody may write to it meanwhile. Each record is one row, in columns ``id`` (the key; bytes that are not
    UTF-8 as ``\\xNN``), ``label``, ``channels``, ``height``, ``width``, ``encoded``, ``data`` and ``float_data``. The
    last two are null where a Datum has none; numbers that it leaves out are 0. A schema of the reader's own may name
    some of these columns, and only they are made.

    Writing, ``df.write.format("lmdb").mode("overwrite").save(path)``: the same columns; ``id``, and ``data`` or
    ``float_data``, have to be there. ``path`` becomes a folder. Tasks write beside it, the driver merges what they
    wrote and puts it in place at the end; so it needs room for the rows twice, and a driver that is killed leaves a
    folder ``.NAME.*`` there. Mode "append" only makes a database where there is none; Spark has no other modes for
    sources in Python.

    A database is mapped into memory, never loaded: a task holds a few MB of rows, and the kernel takes the pages of
    the file back when it needs them. (A limit on the address space, spark.executor.pyspark.memory, has to leave room
    for the whole file.) What goes wrong is an InvalidInputError in Spark's Python workers; Spark quotes it in its own.

    Options:
        numPartitions: how many ranges of keys the rows are read in, about. Unset: one for every 32 MB, and at least
            one for each core of the driver's machine.
        values: "datum" (default), or "raw" for columns ``key`` and ``value``, both binary.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)  # type: ignore[arg-type]
        _lmdb()  # where it is missing, this is the place to say so
        self.raw = _one_of(options, "values", "datum", "raw") == "raw"
        self.count = _whole(options, "numPartitions")
        self.path = _path(options)

    @classmethod
    def name(cls) -> str:
        """What ``format`` takes."""
        return "lmdb"

    def schema(self) -> str:
        """The columns, where the reader names none."""
        return RAW_SCHEMA if self.raw else DATUM_SCHEMA

    def reader(self, schema: T.StructType) -> LmdbReader:
        """Reads the columns of ``schema``."""
        return LmdbReader(self.path, self.raw, self.count, _checked(schema, self.schema()))

    def writer(self, schema: T.StructType, overwrite: bool) -> LmdbWriter:
        """Writes rows of ``schema``."""
        return LmdbWriter(self.path, self.raw, _checked_to_write(schema, self.raw), overwrite)


@dataclass
class KeyRange(InputPartition):
    """Keys from ``start`` on, up to ``stop`` and without it; None is an open end."""

    start: bytes | None
    stop: bytes | None


@dataclass
class Part(WriterCommitMessage):
    """What one task has written: a file of records, as an Arrow stream."""

    file: str


class LmdbReader(DataSourceReader):
    """Plans ranges of keys on the driver, and reads one in each task."""

    def __init__(self, path: str, raw: bool, count: int | None, columns: Sequence[str]) -> None:
        self.path = path
        self.raw = raw
        self.count = count
        self.columns = list(columns)

    @property
    def file(self) -> str:
        """The one file of the database."""
        return _data_file(self.path)

    def partitions(self) -> list[KeyRange]:
        """Half-open ranges of keys: whatever the database holds, each record is in exactly one.

        They hold about as many records each. Their bounds come from the inner nodes of the database's own tree, so
        planning reads some hundred pages, however large it is.

        Raises:
            InvalidInputError: there is no database, it is cut short, or the file is something else.
        """
        with _opened(self.path) as environment:
            size = environment.stat()["psize"] * (environment.info()["last_pgno"] + 1)
            count = self.count or max(size // PARTITION_BYTES, os.cpu_count() or 1)
            inner = _bounds(environment, self.file, count)
        bounds = [None, *inner, None]
        return [KeyRange(*ends) for ends in pairwise(bounds)]

    def count_rows(self) -> int:
        """How many records there are, which the database knows."""
        with _opened(self.path) as environment:
            return int(environment.stat()["entries"])

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """The rows of one range, in batches of a few MB.

        Raises:
            InvalidInputError: a value is no Datum.
        """
        assert isinstance(partition, KeyRange)
        with _opened(self.path) as environment, environment.begin() as transaction:
            for keys, values in _batches(transaction.cursor(), partition):
                columns = (
                    [pa.array(keys if name == "key" else values, pa.binary()) for name in self.columns]
                    if self.raw
                    else datum_columns(self.columns, keys, values, self.path)
                )
                yield pa.RecordBatch.from_arrays(columns, self.columns)


class LmdbWriter(DataSourceArrowWriter):
    """Each task writes a file of records into a folder beside the database; the driver makes the database of them."""

    def __init__(self, path: str, raw: bool, columns: Sequence[str], overwrite: bool) -> None:
        _check_target(path, overwrite)
        self.path = path
        self.raw = raw
        self.columns = list(columns)
        self.overwrite = overwrite
        target = Path(path)
        self.folder = str(target.parent / f".{target.name}.{uuid.uuid4().hex}")
        os.makedirs(self.folder)  # not by the tasks: one that ends after an abort would make it again

    def write(self, iterator: Iterator[pa.RecordBatch]) -> Part:
        """Write the rows of one task.

        Raises:
            InvalidInputError: a row has no key, or neither data nor float_data; or the path is not shared.
        """
        if not os.path.isdir(self.folder):
            raise InvalidInputError(
                f"{self.path} has to be in a file system that the driver and all executors share, and on "
                f"{socket.gethostname()} the folder {self.folder}, made by the driver, is not there"
            )
        file = Path(self.folder, f"{uuid.uuid4().hex}.arrow")
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, RECORDS) as stream:
            for batch in iterator:
                columns = {name: batch.column(at) for at, name in enumerate(self.columns)}
                stream.write_batch(to_records(columns))
        return Part(str(file))

    def commit(self, messages: list[Any]) -> None:
        """Merge what the tasks wrote into a new database, and put it in place of what is there.

        Raises:
            InvalidInputError: a key occurs twice, or is longer than LMDB takes.
        """
        files = [message.file for message in messages if message is not None]
        made = Path(self.folder, "database")
        try:
            made.mkdir()
            _merge(files, str(made))
            _check_target(self.path, self.overwrite)  # again: something may have come to be there meanwhile
            _put_in_place(made, Path(self.path), Path(self.folder, "old"))
        finally:
            self.abort(messages)

    def abort(self, messages: list[Any]) -> None:
        """Remove what the tasks wrote."""
        # Spark aborts while other tasks still run; one that begins its file just then keeps the folder from going.
        for _ in range(ATTEMPTS):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.1)


def _lmdb() -> Any:
    """The package lmdb, imported where it is used: cos_ml is installed without it."""
    try:
        import lmdb
    except ImportError as error:
        raise SetupError('The format "lmdb" needs the package lmdb: pip install "cos-ml[lmdb]"') from error
    return lmdb


def _one_of(options: Mapping[str, str], name: str, *choices: str) -> str:
    value = options.get(name, choices[0])
    if value not in choices:
        raise InvalidInputError(f"Option {name}: expected one of {', '.join(choices)}, received {value!r}")
    return value


def _whole(options: Mapping[str, str], name: str) -> int | None:
    value = options.get(name)
    if value is None or (value.isdecimal() and int(value) > 0):
        return None if value is None else int(value)
    raise InvalidInputError(f"Option {name}: expected a whole number from 1 on, received {value!r}")


def _path(options: Mapping[str, str]) -> str:
    path = options.get("path", "")
    if path.startswith("file:"):
        path = "/" + path.removeprefix("file:").lstrip("/")
    if not path or "://" in path:
        raise InvalidInputError(
            f"Expected the path of one LMDB database in a file system of this machine, received {path!r}"
        )
    return os.path.abspath(path)  # executors may have another working directory


def _checked(schema: T.StructType, known: str) -> list[str]:
    """The names of the columns.

    Raises:
        InvalidInputError: a column is not there to be read, or is of another type.
    """
    types = dict(column.rsplit(" ", 1) for column in known.split(", "))
    for field in schema.fields:
        if types.get(field.name) != field.dataType.simpleString():
            raise InvalidInputError(
                f"There is no column {field.name!r} of type {field.dataType.simpleString()}: expected some of {known}"
            )
    return schema.fieldNames()


def _checked_to_write(schema: T.StructType, raw: bool) -> list[str]:
    names = _checked(schema, RAW_SCHEMA if raw else DATUM_SCHEMA)
    missing = {"key", "value"} - set(names) if raw else {"id"} - set(names)
    if missing or not (raw or {"data", "float_data"} & set(names)):
        wanted = "key and value" if raw else "id, and data or float_data"
        raise InvalidInputError(f"Expected columns {wanted}, received {names}")
    return names


def _data_file(path: str) -> str:
    return os.path.join(path, "data.mdb") if os.path.isdir(path) else path


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The database at ``path``, read-only.

    No lock file is made or read: databases may be on a read-only file system.
    """
    lmdb = _lmdb()
    file = _data_file(path)
    if not os.path.isfile(file):
        raise InvalidInputError(f"There is no LMDB database at {path}: expected a folder with data.mdb, or a file")
    try:
        environment = lmdb.open(file, subdir=False, readonly=True, lock=False, max_spare_txns=0)
    except lmdb.Error as error:
        raise InvalidInputError(f"{file} is no LMDB database that can be read: {error}") from error
    with environment:
        needed = environment.stat()["psize"] * (environment.info()["last_pgno"] + 1)
        # Without this the process would end by a signal (SIGBUS) as soon as it touches a page that is not there.
        if os.path.getsize(file) < needed:
            raise InvalidInputError(
                f"{file} is cut short: it has {os.path.getsize(file):,} bytes, and its database {needed:,}"
            )
        try:
            yield environment
        except lmdb.Error as error:
            raise InvalidInputError(f"{file} is damaged: {error}") from error


# What is needed of LMDB's file format (mdb.c of openldap), to find keys that lie evenly without reading the database. A
# wrong one would only make the ranges uneven. Pages 0 and 1 describe the tree, the later transaction's holds; an inner
# page has nodes of a page number and the least key there, and a table of where they are.
_META = struct.Struct("=16xII16x")  # magic number, version
_TREE = struct.Struct("=IHH4Q")  # page size, flags, depth; branch, leaf and overflow pages, entries
_PAGE = struct.Struct("=10xHH2x")  # flags, end of the table
_NODE = struct.Struct("=HHHH")  # the page number in three parts, size of the key
_MAGIC, _VERSION, _BRANCH = 0xBEEFC0DE, 1, 1


def _bounds(environment: Any, file: str, count: int) -> list[bytes]:
    """Keys that cut the database into ``count`` ranges with about as many records each; fewer where it has too few."""
    with environment.begin() as transaction:
        flags = environment.open_db(None, txn=transaction, create=False).flags(transaction)
        if flags["reverse_key"] or flags["integerkey"]:  # such keys are not in the order of their bytes
            return []
        if environment.stat()["entries"] <= 256 * count:  # they fit a few pages for each range
            keys = list(transaction.cursor().iternext(keys=True, values=False))
        else:
            keys = _inner_keys(file, environment.stat()["psize"], 64 * count)
    chosen = {keys[at * len(keys) // count] for at in range(1, count)} if keys else set()
    return sorted(chosen - set(keys[:1]))  # before the first one there is nothing


def _inner_keys(file: str, size: int, enough: int) -> list[bytes]:
    """Keys in the inner pages of the tree, of the first level that has ``enough``; pages have ``size`` bytes."""
    with open(file, "rb") as pages:
        root, depth = max(_meta(_page(pages, number, size)) for number in (0, 1))[1:]
        level = [(b"", root)]
        for _ in range(depth - 1):
            level = [child for key, number in level for child in _children(key, _page(pages, number, size))]
            if len(level) >= enough:
                break
    return [key for key, _ in level]


def _page(pages: Any, number: int, size: int) -> bytes:
    pages.seek(number * size)
    return pages.read(size)


def _meta(page: bytes) -> tuple[int, int, int]:
    """The transaction, and the root and the depth of its tree; depth 0 where the format is not known."""
    if _META.unpack_from(page) != (_MAGIC, _VERSION):
        return 0, 0, 0
    main = 40 + 48  # behind the header, and the tree of free pages
    _, _, depth, *_ = _TREE.unpack_from(page, main)
    root, _, transaction = struct.unpack_from("=QQQ", page, main + _TREE.size)
    return transaction, root, depth


def _children(least: bytes, page: bytes) -> list[tuple[bytes, int]]:
    """The least key and the page of each node of an inner page; the first node leaves out its key, ``least``."""
    flags, end = _PAGE.unpack_from(page)
    if not flags & _BRANCH:
        return []
    found = []
    for at in struct.unpack_from(f"={(end - _PAGE.size) // 2}H", page, _PAGE.size):
        low, middle, high, length = _NODE.unpack_from(page, at)
        start = at + _NODE.size
        found.append((page[start : start + length] or least, low | middle << 16 | high << 32))
    return found


def _batches(cursor: Any, keys: KeyRange) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Keys and values of a range, some MB of them at a time."""
    if not (cursor.first() if keys.start is None else cursor.set_range(keys.start)):
        return
    records = cursor.iternext()
    found: list[bytes] = []
    values: list[bytes] = []
    size = 0
    step = 1
    while chunk := list(islice(records, step)):
        # Kept as bytes, which do not count for the garbage collector: thousands of pairs would start it all the time.
        some_keys, some_values = zip(*chunk, strict=True)
        if keys.stop is not None and some_keys[-1] >= keys.stop:
            inside = bisect_left(some_keys, keys.stop)
            yield found + list(some_keys[:inside]), values + list(some_values[:inside])
            return
        found += some_keys
        values += some_values
        size += sum(map(len, some_values))
        step = min(max(BATCH_BYTES * len(found) // (4 * size + 1), 1), 512)
        if size >= BATCH_BYTES or len(found) >= BATCH_ROWS:
            yield found, values
            found, values, size = [], [], 0
    yield found, values


def datum_columns(names: Sequence[str], keys: Sequence[bytes], values: Sequence[bytes], source: str) -> list[pa.Array]:
    """Some columns of the format "lmdb", of a batch of records.

    Raises:
        InvalidInputError: a value is no Datum; it names the key and the ``source``.
    """
    try:
        found = datum.decode(values)
    except datum.BadDatum as bad:
        raise InvalidInputError(
            f"{source}: the value of key {keys[bad.row]!r} {bad.what}. Values that are not Caffe's Datums are read "
            'with values="raw".'
        ) from bad
    return [_datum_column(name, keys, found) for name in names]


def _datum_column(name: str, keys: Sequence[bytes], found: datum.Datums) -> pa.Array:
    if name == "id":
        return text(keys)
    if name == "data":
        return found.data
    if name == "float_data":
        return _lists(found.floats, len(found.label))
    return pa.array(getattr(found, name))


def text(keys: Sequence[bytes]) -> pa.Array:
    """Keys as strings; bytes that are not UTF-8 as ``\\xNN``."""
    try:
        return pa.array(keys, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([str(key, "utf-8", "backslashreplace") for key in keys])


def _lists(pieces: list[datum.Piece], count: int) -> pa.Array:
    """An Arrow array of ``count`` lists of floats, null where a row has no piece."""
    if not pieces:
        return pa.nulls(count, pa.list_(pa.float32()))
    sizes = np.zeros(count, np.int64)
    there = np.zeros(count, bool)
    for row, values in pieces:
        sizes[row] += len(values)
        there[row] = True
    ordered = [values for _, values in sorted(pieces, key=lambda piece: piece.row)]
    offsets = pa.array(np.append(0, np.cumsum(sizes)), pa.int32(), mask=np.append(~there, False))
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(ordered)))


def to_records(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Keys and values out of columns ``key`` and ``value``, or else of the format "lmdb".

    A number of a Datum that is null or has no column is 0.

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
            raise InvalidInputError(f"The row of id {columns['id'][row].as_py()!r} has neither data nor float_data")
        sizes = (channels or 0, height or 0, width or 0)
        values.append(datum.encode(*sizes, data, label or 0, floats, bool(encoded)))
    return pa.array(values, pa.binary())


def _check_target(path: str, overwrite: bool) -> None:
    """Raises InvalidInputError where a database must not be put."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise InvalidInputError(
            f'{path} is there already, and a database can\'t be appended to: mode("overwrite") replaces it'
        )
    if os.path.islink(path) or not os.path.isdir(path) or not {"data.mdb", "lock.mdb"}.issuperset(os.listdir(path)):
        raise InvalidInputError(f"{path} is something else than the folder of an LMDB database: remove it first")


def _merge(files: Iterable[str], folder: str) -> None:
    """Make a database in ``folder`` of the records in ``files``."""
    with opened_to_write(folder, sum(map(os.path.getsize, files))) as environment:
        for file in files:
            with pa.memory_map(file) as source, pa.ipc.open_stream(source) as batches:
                for batch in batches:
                    put_records(environment, batch)


@contextmanager
def opened_to_write(folder: str, size: int) -> Iterator[Any]:
    """The database in ``folder``, for about ``size`` bytes; what was put is on the disk at the end."""
    with _lmdb().open(folder, map_size=SPARE + 2 * size, lock=False, sync=False) as environment:
        yield environment
        environment.sync(True)


def put_records(environment: Any, batch: pa.RecordBatch, *, again: bool = False) -> None:
    """Put the keys and values of ``batch`` into the database, which grows as needed: all of them, or none.

    Raises:
        InvalidInputError: a key is there already (with ``again``: and has another value), or has more bytes than LMDB
            takes.
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
                        raise InvalidInputError(f"Two rows have the key {key!r}, and a database has every key once")
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])
        except lmdb.BadValsizeError as error:
            raise InvalidInputError(
                f"LMDB takes keys of 1 to {environment.max_key_size()} bytes, and one has {max(map(len, keys))} or 0"
            ) from error


def _put_in_place(made: Path, target: Path, old: Path) -> None:
    """Rename ``made`` to ``target``; what is there becomes ``old``, and comes back where that fails."""
    replaces = target.exists()
    if replaces:
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
