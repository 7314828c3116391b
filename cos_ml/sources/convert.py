"""``cos-ml convert``: converts datasets between formats on one machine, without a cluster (driver side).

A conversion works part by part, in a folder ``.NAME.converting`` next to its target. A mark records each finished part,
and at the end the folder's output is renamed to the target. Therefore the target is complete whenever it exists, and
the same command resumes an interrupted conversion.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import cos_ml
from cos_ml.data.names import fold
from cos_ml.data.table_formats import check_plain_url
from cos_ml.errors import InvalidInputError
from cos_ml.paths import as_string, local_path
from cos_ml.terminal import tell

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["images_to_parquet", "lmdb_to_parquet", "lmdb_to_sequence_file", "parquet_to_lmdb"]

PART_BYTES = 64 << 20
ROW_GROUP_BYTES = 16 << 20
BATCH_ROWS = 1024
READERS = 8  # threads that read image files
IMAGES = pa.schema([("id", pa.string()), ("label", pa.int32()), ("encoded", pa.bool_()), ("data", pa.binary())])

Item = TypeVar("Item")
# Writes the part of a number, and calls a function with the number of rows written since the last call.
WritePart = Callable[[int, Callable[[int], Any]], None]


def images_to_parquet(source: str | Path, target: str | Path, *, labels: str | Path) -> None:
    """Store image files, not decoded, with their labels.

    Args:
        source: a folder of images.
        target: the folder of Parquet files to create, with columns ``id`` (the image's path as in ``labels``),
            ``label``, ``encoded`` (true) and ``data``.
        labels: a text file in the format of Caffe's tools, with a line for each image: the path relative to ``source``,
            white space, and an integer.

    Raises:
        InvalidInputError: ``target`` already exists, a line is malformed, or an image is missing or listed twice.
    """
    listed = _listed(labels)
    files = [Path(source, name) for name, _ in listed]
    missing = [name for (name, _), file in zip(listed, files, strict=True) if not file.is_file()]
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of the {len(listed)} images in {labels} are not in {source}, for example {missing[0]!r}."
        )
    stamps = _stamps(files)
    sizes = [size for _, size, _ in stamps]
    parts = list(_groups(zip(listed, sizes, strict=True), lambda image: image[1], PART_BYTES))

    def read(number: int) -> Iterator[pa.RecordBatch]:
        with ThreadPoolExecutor(READERS) as threads:
            for some in _groups(parts[number], lambda image: image[1], ROW_GROUP_BYTES // 4, BATCH_ROWS):
                names, classes = zip(*(image for image, _ in some), strict=True)
                data = list(threads.map(lambda name: Path(source, name).read_bytes(), names))
                columns = [pa.array(names), pa.array(classes, pa.int32()), pa.array([True] * len(some)), pa.array(data)]
                yield pa.RecordBatch.from_arrays(columns, schema=IMAGES)

    with working_folder(target, ["images-to-parquet", listed, stamps]) as work:
        _in_parts(work, len(parts), len(listed), lambda *part: write_parquet_part(work, IMAGES, read, *part))


def lmdb_to_parquet(source: str | Path, target: str | Path, *, raw: bool = False, database: str | None = None) -> None:
    """Store the records of an LMDB database as Parquet files.

    Args:
        source: the database, on this machine: a folder that contains ``data.mdb``, or a file.
        target: the folder of Parquet files to create, with the columns of the format "lmdb".
        raw: store keys and values instead of decoding Caffe's Datums.
        database: the name of the database, in a file with named ones.

    Raises:
        InvalidInputError: ``target`` already exists, ``source`` is not a database, or a value is not a Datum.
    """
    from cos_ml.sources.lmdb import LmdbReader
    from cos_ml.sources.records import DATUMS, RECORDS

    schema = RECORDS if raw else DATUMS
    reader = LmdbReader(_database(source), raw, None, schema.names, database)
    ranges = reader.partitions()

    def write(number: int, advance: Callable[[int], Any]) -> None:
        write_parquet_part(work, schema, lambda part: reader.read(ranges[part]), number, advance)

    with working_folder(target, ["lmdb-to-parquet", _stamps([reader.file]), str(ranges), raw, database]) as work:
        _in_parts(work, len(ranges), reader.count_rows(), write)


def _database(source: str | Path) -> str:
    """The path of a database; raises InvalidInputError for one that is not on this machine."""
    path = as_string(source)
    found = local_path(path)
    if found is None:
        raise InvalidInputError(
            f"Expected a database on this machine, received {path!r}. Spark reads it there: "
            f'spark.read.format("lmdb").load({path!r}).'
        )
    return found


def lmdb_to_sequence_file(source: str | Path, target: str | Path, *, database: str | None = None) -> None:
    """Store the records of an LMDB database, not decoded; bytes of keys that are not UTF-8 become ``\\xNN``.

    Spark writes the files, on this machine. ``read_sequence_file(spark, target, values="datum")`` decodes them as the
    format "lmdb" does.

    Args:
        source: the database, on this machine: a folder that contains ``data.mdb``, or a file.
        target: the folder of SequenceFiles to create, with keys of Text and values of BytesWritable.
        database: the name of the database, in a file with named ones.

    Raises:
        InvalidInputError: ``target`` already exists, or ``source`` is not a database.
    """
    from cos_ml.sources.images import write_sequence_file
    from cos_ml.sources.lmdb import LmdbReader
    from cos_ml.sources.records import RECORDS, keys_as_strings

    reader = LmdbReader(_database(source), True, None, RECORDS.names, database)
    ranges = reader.partitions()

    def write(number: int, advance: Callable[[int], Any]) -> None:
        batches = reader.read(ranges[number])
        tables = [pa.table([keys_as_strings(keys.to_pylist()), values], ["id", "data"]) for keys, values in batches]
        if not tables:
            return
        table = pa.concat_tables(tables)
        shutil.rmtree(work / "part", ignore_errors=True)
        write_sequence_file(spark.createDataFrame(table).coalesce(1), f"file://{work / 'part'}")
        os.replace(work / "part" / "part-00000", work / "out" / f"part-{number:05d}")
        advance(len(table))

    with (
        working_folder(target, ["lmdb-to-sequencefile", _stamps([reader.file]), str(ranges), database]) as work,
        _spark() as spark,
    ):
        _in_parts(work, len(ranges), reader.count_rows(), write)


def parquet_to_lmdb(source: str | Path, target: str | Path, *, id_column: str = "id", raw: bool = False) -> None:
    """Store the rows of Parquet files as the records of an LMDB database.

    Args:
        source: a Parquet file, or a folder of them, with columns of the format "lmdb". Other columns are ignored, and
            numbers may have other types.
        target: the folder of the database to create.
        id_column: the column of the keys.
        raw: store the columns ``key`` and ``value`` of ``source`` without encoding Datums.

    Raises:
        InvalidInputError: ``target`` already exists; ``source`` is not Parquet or lacks a column; a value is null or
            has another type; or a key occurs twice.
        SetupError: the package lmdb is missing.
    """
    from cos_ml.sources.lmdb import opened_to_write, put_records
    from cos_ml.sources.records import to_records

    source = as_string(source)
    dataset = _parquet(source)
    stored = _to_write(dataset.schema.names, id_column, raw)
    schema, columns = pa.schema(list(stored)), {field.name: ds.field(name) for field, name in stored.items()}
    files = [group for fragment in dataset.get_fragments() for group in fragment.split_by_row_group()]
    rows = dataset.count_rows()

    def write(number: int, advance: Callable[[int], Any]) -> None:
        for batch in files[number].to_batches(schema=dataset.schema, columns=columns, batch_size=BATCH_ROWS):
            records = to_records(_cast(batch, schema, source))
            put_records(environment, records, again=True)  # an interrupted part may have written some of them
            advance(len(batch))

    with working_folder(target, ["parquet-to-lmdb", _stamps(dataset.files), id_column, raw]) as work:
        with opened_to_write(str(work / "out"), sum(map(os.path.getsize, dataset.files))) as environment:
            _in_parts(work, len(files), rows, write)
            found = environment.stat()["entries"]
        if found < rows:
            raise InvalidInputError(
                f"{source} has {rows} rows, but only {found} different keys: keys of a database are unique."
            )


# ── working folder ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def working_folder(target: str | Path, inputs: Sequence[Any]) -> Iterator[Path]:
    """The working folder; its folder ``out`` becomes ``target`` at the end.

    Args:
        target: the path of the result.
        inputs: plain values that determine the result; an interrupted conversion of other inputs is started over.
    """
    final = Path(target).absolute()
    if os.path.lexists(final):
        raise InvalidInputError(f"{target} already exists: remove it, or choose another path.")
    work = final.parent / f".{final.name}.converting"
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInputError(f"Another process is creating {target}.") from None
        plan = hashlib.sha256(json.dumps([cos_ml.__version__, *inputs]).encode()).hexdigest()
        if _read_text(work / "plan") != plan or not (work / "out").is_dir():
            for left in work.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != "lock":
                    left.unlink()
            (work / "out").mkdir()
            write_text(work / "plan", plan)
        try:
            yield work
            os.rename(work / "out", final)
        except InvalidInputError:  # another attempt could not succeed
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def _in_parts(work: Path, parts: int, rows: int, write: WritePart) -> None:
    """Write the unfinished parts, with a progress bar that counts rows."""
    marks = [work / f"{number:05d}.done" for number in range(parts)]
    done = {mark: int(_read_text(mark) or 0) for mark in marks if mark.exists()}
    before = sum(done.values())
    if done:
        tell(f"Resuming: {before} of {rows} rows are already converted")
    with closing(_Counter(rows, before)) as counter:
        for number, mark in enumerate(marks):
            if mark not in done:
                start = counter.rows
                write(number, counter.advance)
                write_text(mark, str(counter.rows - start))


class _Counter:
    """Counts rows, and shows a progress bar while standard error is open."""

    def __init__(self, total: int, done: int) -> None:
        self.rows = done
        self._bar: Any = None
        with suppress(Exception):
            from tqdm import tqdm

            if sys.stderr is not None:
                self._bar = tqdm(total=total, initial=done, unit=" rows", unit_scale=True, dynamic_ncols=True)

    def advance(self, rows: int) -> None:
        """Count rows that are written."""
        self.rows += rows
        with suppress(Exception):
            if self._bar is not None:
                self._bar.update(rows)

    def close(self) -> None:
        """Leave the bar as it is."""
        with suppress(Exception):
            if self._bar is not None:
                self._bar.close()


def write_text(file: Path, text: str) -> None:
    """Write a file that is either there as a whole or not at all."""
    made = file.with_suffix(".new")
    made.write_text(text)
    os.replace(made, file)


def _read_text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None


# ── shared by the conversions ─────────────────────────────────────────────────────────────────────────────────────────


def write_parquet_part(
    work: Path,
    schema: pa.Schema,
    read: Callable[[int], Iterable[pa.RecordBatch]],
    number: int,
    advance: Callable[[int], Any],
) -> None:
    """Write one part as a Parquet file, which appears in the folder ``out`` when it is complete."""
    made = work / "part"
    with pq.ParquetWriter(made, schema) as writer:
        for batches in _groups(read(number), lambda batch: batch.nbytes, ROW_GROUP_BYTES):
            writer.write_table(pa.Table.from_batches(batches, schema))
            advance(sum(map(len, batches)))
    os.replace(made, work / "out" / f"part-{number:05d}.parquet")


def _groups(
    items: Iterable[Item], size: Callable[[Item], int], most: int, count: int = sys.maxsize
) -> Iterator[list[Item]]:
    """Group items, in order, into about ``most`` bytes and at most ``count`` items."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= most or len(group) >= count:
            yield group
            group, total = [], 0
    if group:
        yield group


def _stamps(files: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """The path, size and modification time of each file."""
    return [(os.path.abspath(file), (found := os.stat(file)).st_size, found.st_mtime_ns) for file in files]


def _listed(labels: str | Path) -> list[tuple[str, int]]:
    """The paths and labels in the lines of a text file."""
    if not os.path.isfile(labels):
        raise InvalidInputError(f"There is no file {labels}: expected lines with an image's path and an integer.")
    listed: dict[str, int] = {}
    try:
        lines = Path(labels).read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{labels} is not UTF-8 text: {error}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"\s*(.*?)\s+(-?\d{1,9})\s*", line)  # a path may contain spaces
        if found is None:
            raise InvalidInputError(
                f"{labels}, line {number}: expected an image's path, white space and an integer, received {line!r}."
            )
        name = found[1]
        if name in listed:
            raise InvalidInputError(f"{labels}, line {number}: {name!r} is listed twice.")
        listed[name] = int(found[2])
    return list(listed.items())


def _parquet(source: str) -> ds.Dataset:
    check_plain_url(os.path.abspath(source), lambda table: f'{table.rows}.write.format("lmdb").save(TARGET)')
    try:
        dataset = ds.dataset(source, format="parquet", partitioning="hive")
        dataset.count_rows()  # opens every file
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidInputError(f"{source} can't be read as Parquet: {error}") from error
    if not dataset.files:
        raise InvalidInputError(f"There are no Parquet files in {source}.")
    return dataset


def _to_write(names: Sequence[str], id_column: str, raw: bool) -> dict[pa.Field, str]:
    """The columns of a database for which there are columns in ``names``, and those: in any case, where one has it."""
    from cos_ml.sources.records import DATUMS, RECORDS

    known = RECORDS if raw else DATUMS
    stored = {field: _find(names, id_column if field.name == "id" else field.name) for field in known}
    columns = {field: name for field, name in stored.items() if name is not None}
    found = {field.name for field in columns}
    if not ({"key", "value"} <= found if raw else "id" in found and {"data", "float_data"} & found):
        wanted = "key and value" if raw else f"{id_column}, and data or float_data"
        raise InvalidInputError(f"Expected columns {wanted}, received {list(names)}.")
    return columns


def _find(names: Sequence[str], wanted: str) -> str | None:
    """The column of a name: as it is written, else in any case."""
    same = [name for name in names if name == wanted] or [name for name in names if fold(name) == fold(wanted)]
    if len(same) > 1:
        raise InvalidInputError(f"Column {wanted!r} is ambiguous: it means each of {same}. Rename the others.")
    return same[0] if same else None


def _cast(batch: pa.RecordBatch, schema: pa.Schema, source: str) -> dict[str, pa.Array]:
    try:
        return {field.name: column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)}
    except pa.ArrowException as error:
        raise InvalidInputError(f"Columns of {source} can't be converted to {schema.names}: {error}") from error


@contextmanager
def _spark() -> Iterator[SparkSession]:
    """The active session, or a temporary one on this machine."""
    from pyspark.sql import SparkSession

    if session := SparkSession.getActiveSession():
        yield session
        return
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(__file__).with_name("conf")))  # log errors only
    session = SparkSession.builder.master("local[*]").getOrCreate()
    try:
        yield session
    finally:
        session.stop()
