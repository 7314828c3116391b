"""Reads image files and reads and writes Hadoop SequenceFiles (driver side; their functions: tasks)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from cos_ml.data.names import resolve
from cos_ml.errors import InvalidInputError
from cos_ml.paths import for_spark, readable
from cos_ml.sources.records import DATUM_SCHEMA, DATUMS, datum_columns
from cos_ml.spark_internals import is_connect

__all__ = ["image_classes", "read_images", "read_sequence_file", "write_sequence_file"]

IMAGES = "*.{[jJ][pP][gG],[jJ][pP][eE][gG],[pP][nN][gG]}"


def read_images(
    spark: SparkSession, path: str | PathLike[str], *, classes: Sequence[str] | None = None, pattern: str = IMAGES
) -> DataFrame:
    """Read the image files in ``path`` and all folders below it, without decoding; ``ImageAssembler`` decodes them.

    Args:
        spark: the session.
        path: a folder, on any file system that Spark supports.
        classes: names of folders, as ``image_classes`` lists them. Only images directly in such a folder are read; the
            index of the name in this list is their label.
        pattern: a Hadoop glob for the names of the files. Default: .jpg, .jpeg and .png.

    Returns:
        DataFrame: ``path`` (string), ``data`` (binary) and, with ``classes``, ``label`` (int).

    Raises:
        InvalidInputError: ``classes`` contains a name twice.
    """
    files = _files(spark, path, pattern)
    if classes is None:
        return files.select("path", F.col("content").alias("data"))
    if isinstance(classes, str) or len(set(classes)) < len(classes):
        raise InvalidInputError(f"classes: expected a list of names, each once, received {classes!r}.")
    # array_position counts from 1, and is 0 for a name that is not in the array.
    label = F.array_position(F.array(*map(F.lit, classes)), _folder()).cast("int") - 1
    labelled = files.select("path", F.col("content").alias("data"), label.alias("label"))
    return labelled.filter("label >= 0")


def image_classes(spark: SparkSession, path: str | PathLike[str], *, pattern: str = IMAGES) -> list[str]:
    """The sorted names of the folders below ``path`` that contain images, for datasets with one folder per class.

    Files are listed, but not read.
    """
    return sorted(row[0] for row in _files(spark, path, pattern).select(_folder()).distinct().collect())


def read_sequence_file(spark: SparkSession, path: str | PathLike[str], *, values: str = "raw") -> DataFrame:
    """Read the records of SequenceFiles with keys of Text (or an integer) and values of BytesWritable.

    Args:
        spark: the session, without Spark Connect.
        path: a file, a folder of them, or a glob, on any file system that Spark supports.
        values: "raw", or "datum" for Caffe's Datums, as ``cos-ml convert`` writes them from an LMDB.

    Returns:
        DataFrame: ``id`` (string) and ``data`` (binary); for Datums, the columns of the format "lmdb".

    Raises:
        InvalidInputError: the session uses Spark Connect, or ``values`` is invalid; later, while rows are read: a
            record has other types, or is not a Datum.
    """
    _check_classic(spark, "read")
    if values not in ("raw", "datum"):
        raise InvalidInputError(f"values: expected 'raw' or 'datum', received {values!r}.")
    rows = spark.sparkContext.sequenceFile(readable(spark, path)).mapPartitions(_records)
    records = spark.createDataFrame(rows, "id string, data binary", verifySchema=False)
    return records if values == "raw" else records.mapInArrow(_datums, DATUM_SCHEMA)


def write_sequence_file(df: DataFrame, path: str | PathLike[str], *, idCol: str = "id", dataCol: str = "data") -> None:
    """Write two columns as SequenceFiles, one per partition, with keys of Text and values of BytesWritable.

    Args:
        df: the rows.
        path: a folder that does not exist yet, on any file system that Spark supports.
        idCol: the column of the keys, written as strings.
        dataCol: the column of the values, binary.

    Raises:
        InvalidInputError: the session uses Spark Connect, or a column is missing or not binary; while rows are written:
            a row contains a null.
    """
    _check_classic(df.sparkSession, "write")
    key, data = resolve(df, idCol), resolve(df, dataCol)
    if (kind := data.data_type.simpleString()) != "binary":
        raise InvalidInputError(f"Column {dataCol!r} is of type {kind}: expected binary.")
    pairs = df.select(key.values.cast("string"), data.values).rdd.map(_pair)
    pairs.saveAsSequenceFile(for_spark(df.sparkSession, path))


def _files(spark: SparkSession, path: str | PathLike[str], pattern: str) -> DataFrame:
    reader = spark.read.format("binaryFile").option("recursiveFileLookup", True)
    return reader.option("pathGlobFilter", pattern).load(readable(spark, path))


def _folder() -> Column:
    """The name of the folder that contains a file."""
    return F.element_at(F.split("path", "/"), -2)


def _check_classic(spark: SparkSession, what: str) -> None:
    if is_connect(spark):
        raise InvalidInputError(
            f"Spark Connect can't {what} SequenceFiles, because it has no RDDs. Use a session without Spark Connect, "
            "SparkSession.builder.master(...) instead of remote(...), and exchange the rows as Parquet files."
        )


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _records(records: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, bytes]]:
    for key, value in records:
        if not isinstance(key, (str, int)) or not isinstance(value, (bytes, bytearray)):
            raise InvalidInputError(
                f"PySpark reads the keys of this SequenceFile as {type(key).__name__} and the values as "
                f"{type(value).__name__}: expected Text (or an integer) and BytesWritable."
            )
        yield str(key), bytes(value)  # PySpark sends bytes to the JVM faster than a bytearray


def _datums(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        keys, values = (column.cast(pa.binary()).to_pylist() for column in batch.columns)
        yield pa.RecordBatch.from_arrays(datum_columns(DATUMS.names, keys, values, "SequenceFile"), schema=DATUMS)


def _pair(row: Any) -> tuple[str, bytearray]:
    if row[0] is None or row[1] is None:
        raise InvalidInputError(f"SequenceFiles can't contain nulls, received one in the row with the key {row[0]!r}.")
    return row[0], row[1]
