"""Images as files: folders of them, and Hadoop's SequenceFiles (driver side)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from cos_ml.errors import InvalidInputError
from cos_ml.sources.lmdb import DATUM_SCHEMA, DATUMS, datum_columns
from cos_ml.spark_internals import is_connect

__all__ = ["image_classes", "read_images", "read_sequence_file", "write_sequence_file"]

IMAGES = "*.{[jJ][pP][gG],[jJ][pP][eE][gG],[pP][nN][gG]}"


def read_images(
    spark: SparkSession, path: str, *, classes: Sequence[str] | None = None, pattern: str = IMAGES
) -> DataFrame:
    """The image files under ``path``, in all folders below it too; ``ImageAssembler`` decodes them.

    Args:
        spark: the session.
        path: a folder, on any file system that Spark opens.
        classes: names of folders, as ``image_classes`` lists them. Only images right in a folder of such a name are
            read, and have a label: the place of the name in this list.
        pattern: of the files' names, as Hadoop globs. The default: .jpg, .jpeg and .png.

    Returns:
        DataFrame: ``path`` (string), ``data`` (binary) and, with ``classes``, ``label`` (int).

    Raises:
        InvalidInputError: a name is twice in ``classes``.
    """
    files = _files(spark, path, pattern)
    if classes is None:
        return files.select("path", F.col("content").alias("data"))
    if isinstance(classes, str) or len(set(classes)) < len(classes):
        raise InvalidInputError(f"expected classes to be a list of names, each once, received {classes!r}.")
    # Names count from 1, and one that is not among them is 0.
    label = F.array_position(F.array(*map(F.lit, classes)), _folder()).cast("int") - 1
    labelled = files.select("path", F.col("content").alias("data"), label.alias("label"))
    return labelled.filter("label >= 0")


def image_classes(spark: SparkSession, path: str, *, pattern: str = IMAGES) -> list[str]:
    """The names of the folders under ``path`` that hold images, sorted: the classes, where folders are classes.

    It lists the files, and reads none.
    """
    return sorted(row[0] for row in _files(spark, path, pattern).select(_folder()).distinct().collect())


def read_sequence_file(spark: SparkSession, path: str, *, values: str = "raw") -> DataFrame:
    """The records of SequenceFiles with keys of Text (or a whole number) and values of BytesWritable.

    Args:
        spark: the session, without Spark Connect.
        path: a file, a folder of them, or a glob, on any file system that Spark opens.
        values: "raw", or "datum" for values that are Caffe's Datums, as ``cos-ml convert`` takes them out of an LMDB.

    Returns:
        DataFrame: ``id`` (string) and ``data`` (binary); of Datums, the columns of the format "lmdb".

    Raises:
        InvalidInputError: the session is one of Spark Connect, or ``values`` is something else. While it is read: a
            record is of other types, or no Datum.
    """
    _check_classic(spark, "read")
    if values not in ("raw", "datum"):
        raise InvalidInputError(f"values: expected 'raw' or 'datum', received {values!r}.")
    rows = spark.sparkContext.sequenceFile(path).mapPartitions(_records)
    records = spark.createDataFrame(rows, "id string, data binary", verifySchema=False)
    return records if values == "raw" else records.mapInArrow(_datums, DATUM_SCHEMA)


def write_sequence_file(df: DataFrame, path: str, *, idCol: str = "id", dataCol: str = "data") -> None:
    """Write two columns as a folder of SequenceFiles, one per partition: keys of Text, values of BytesWritable.

    Args:
        df: the rows.
        path: a folder that does not exist yet, on any file system that Spark opens.
        idCol: the column of the keys, written as strings.
        dataCol: the column of the values, binary.

    Raises:
        InvalidInputError: the session is one of Spark Connect, or there is no such column, or it is not binary.
            While it is written: a row has a null.
    """
    _check_classic(df.sparkSession, "write")
    for name in (idCol, dataCol):
        if name not in df.columns:
            raise InvalidInputError(f"There is no column {name!r}. The DataFrame has {df.columns}.")
    if (kind := df.schema[dataCol].dataType.simpleString()) != "binary":
        raise InvalidInputError(f"Column {dataCol!r} is of type {kind}: expected binary.")
    pairs = df.select(df[idCol].cast("string"), df[dataCol]).rdd.map(_pair)
    pairs.saveAsSequenceFile(path)


def _files(spark: SparkSession, path: str, pattern: str) -> DataFrame:
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", True)
    return reader.option("pathGlobFilter", pattern).load(path)


def _folder() -> Column:
    """The name of the folder that a file is in."""
    return F.element_at(F.split("path", "/"), -2)


def _check_classic(spark: SparkSession, what: str) -> None:
    if is_connect(spark):
        raise InvalidInputError(
            f"Spark Connect can't {what} SequenceFiles: it has no RDDs. Use a session without it, "
            "SparkSession.builder.master(...) instead of remote(...), and Parquet to go between the two."
        )


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _records(records: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, bytes]]:
    for key, value in records:
        if not isinstance(key, (str, int)) or not isinstance(value, (bytes, bytearray)):
            raise InvalidInputError(
                f"This SequenceFile has keys that PySpark reads as {type(key).__name__} and values as "
                f"{type(value).__name__}: expected Text (or a whole number) and BytesWritable."
            )
        yield str(key), bytes(value)  # which PySpark sends back to the JVM faster than a bytearray


def _datums(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        keys, values = (column.cast(pa.binary()).to_pylist() for column in batch.columns)
        yield pa.RecordBatch.from_arrays(datum_columns(DATUMS.names, keys, values, "SequenceFile"), schema=DATUMS)


def _pair(row: Any) -> tuple[str, bytearray]:
    if row[0] is None or row[1] is None:
        raise InvalidInputError(f"A SequenceFile holds no nulls, and there is one at {row[0]!r}.")
    return row[0], row[1]
