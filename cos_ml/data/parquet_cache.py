"""Stores the rows of a fit as a Parquet dataset, which ranks read (driver side; ``usable_batches``: tasks)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import Column, inconsistent_shapes
from cos_ml.data.file_tasks import call_at_files
from cos_ml.data.frames import small_batches
from cos_ml.data.ragged import Ragged, offsets_of
from cos_ml.data.spool import row_keys, usable_rows, validates
from cos_ml.disks import is_full
from cos_ml.errors import InvalidInputError, from_spark
from cos_ml.paths import for_spark, literal
from cos_ml.spec import TrainSpec
from cos_ml.stores import exists, open_filesystem, retried

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["parquet_cache", "to_stored", "usable_batches"]

ROW_GROUP = 16 << 20  # bytes; a rank holds a few row groups
ROW_HASH = "row_hash"  # the column that the digest is made of
DISK_FULL = os.strerror(errno.ENOSPC)  # Java's messages contain the C library's, too
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def parquet_cache(
    rows: DataFrame, spec: TrainSpec, folder: str, keep: bool, ordered: bool | None
) -> Iterator[tuple[str, str | None]]:
    """Store rows as a Parquet dataset that exists for the length of a ``with`` block.

    Args:
        rows: the DataFrame that ``select_columns`` returned.
        spec: the columns.
        folder: where to store the dataset, under a unique name.
        keep: whether to keep the dataset.
        ordered: whether the digest depends on the order of the rows; None for no digest.

    Yields:
        tuple[str, str | None]: the URL of the dataset, and a digest of its rows.

    Raises:
        InvalidInputError: a row is bad.
    """
    from pyspark.sql.types import BooleanType, StructField, StructType

    url = f"{folder.rstrip('/')}/cos_ml-{uuid.uuid4().hex}"
    marked = StructType([*rows.schema, StructField("v", BooleanType())]) if spec.validation_fraction else rows.schema
    usable = rows.mapInArrow(partial(usable_batches, spec), marked)
    if ordered is not None:
        usable = usable.withColumn(ROW_HASH, _row_hash(usable.columns, ordered))
    try:
        try:
            writer = usable.write.option("parquet.block.size", ROW_GROUP).option("parquet.enable.dictionary", "false")
            with small_batches(rows.sparkSession, spec):
                writer.parquet(for_spark(rows.sparkSession, url))
        except Exception as error:
            if is_full(str(error)):
                raise InvalidInputError(
                    f"Param cacheDir: {folder} has no room for the rows ({DISK_FULL}). They are stored as "
                    "dense arrays: choose a larger file system."
                ) from None
            raise from_spark(error) or error from None
        yield url, None if ordered is None else _digest(rows.sparkSession, url)
    finally:
        if not keep:
            try:
                call_at_files(rows.sparkSession, lambda: retried(partial(_remove, url)))
            except Exception as error:  # each storage has its own exceptions; the fit is worth more
                logger.warning("The rows of the fit could not be removed from %s: %r", url, error)


def _remove(url: str) -> None:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()  # Spark has written behind its back
    if exists(filesystem, path):
        filesystem.rm(path, recursive=True)


def _row_hash(names: Sequence[str], ordered: bool) -> SparkColumn:
    from pyspark.sql import functions as F

    place = [F.monotonically_increasing_id()] if ordered else []  # the partition, and the row within it
    return F.xxhash64(*names, *place)


def _digest(spark: SparkSession, url: str) -> str:
    """A digest of the stored rows, from the column of their hashes.

    An Observation would save this pass, but after one, Spark 4.0 can't serialize the summaries of its own models.
    """
    from pyspark.sql import functions as F

    # Equal rows cancel out in bit_xor but not in the sum, which overflows as a bigint.
    digest = F.concat_ws(" ", F.bit_xor(ROW_HASH), F.sum(F.col(ROW_HASH).cast("decimal(20)")), F.count("*"))
    stored = spark.read.schema(f"{ROW_HASH} bigint").parquet(literal(for_spark(spark, url)))
    return str(stored.agg(digest).collect()[0][0])


def usable_batches(spec: TrainSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The usable rows of one task, in the types that they had; with validationFraction, also whether they validate.

    Raises:
        InvalidInputError: a row is bad, or rows have different shapes.
    """
    seen = 0
    shapes: dict[str, tuple[int | None, ...]] = {}
    settled: dict[str, Column] = {}
    keeps = spec.handle_invalid == "keep"  # bad rows, whose values have changed
    for batch in batches:
        arrays, kept = usable_rows(batch, spec, seen, settled)
        seen += batch.num_rows
        for column in spec.columns if kept.any() else ():
            shape = arrays[column.field].shape[1:]
            if shape != shapes.setdefault(column.field, shape):
                raise inconsistent_shapes(column, shape, shapes[column.field])
        columns = [
            to_stored(arrays[name][kept], values.type) if name in arrays and keeps else values.filter(pa.array(kept))
            for name, values in zip(batch.schema.names, batch.columns, strict=True)
        ]
        names = list(batch.schema.names)
        if spec.validation_fraction:
            columns.append(pa.array(validates(row_keys(arrays), spec)[kept]))
            names.append("v")
        yield pa.RecordBatch.from_arrays(columns, names)


def to_stored(rows: np.ndarray | Ragged, kind: pa.DataType) -> pa.Array:
    """Convert decoded rows back to their Arrow type ``kind``."""
    if isinstance(rows, Ragged):
        sizes, flat = np.diff(rows.offsets), rows.flat_values
    else:
        sizes, flat = np.full(len(rows), math.prod(rows.shape[1:])), rows.reshape(-1)
    if pa.types.is_binary(kind):
        data, ends = flat.astype(np.uint8).tobytes(), offsets_of(sizes).tolist()
        return pa.array([data[start:end] for start, end in itertools.pairwise(ends)], kind)
    element = kind.value_type if pa.types.is_list(kind) else kind
    values = pa.array(flat, pa.binary()).cast(pa.string()) if flat.dtype == object else pa.array(flat)
    values = values if values.type == element else values.cast(element, safe=False)  # it came from there
    return pa.ListArray.from_arrays(offsets_of(sizes).astype(np.int32), values) if pa.types.is_list(kind) else values
