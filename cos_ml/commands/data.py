"""Data by format and path, as DataFrames (driver side)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_ml.commands.settings import split
from cos_ml.data.names import quoted
from cos_ml.data.table_formats import Table, check_plain_url
from cos_ml.errors import InvalidInputError
from cos_ml.paths import for_spark, literal, local_path, qualified

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["FORMATS", "Data", "assembler", "format_of", "layout", "read", "with_classes", "write"]

FORMATS = ("parquet", "lmdb", "sequencefile", "images", "delta", "table", "csv", "json", "orc")
ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".orc": "orc", ".seq": "sequencefile", ".mdb": "lmdb"}
SIZE = re.compile(r"(\d+)x(\d+)(?:x([13]))?")


@dataclass(frozen=True)
class Data:
    """What a command reads.

    Attributes:
        path: a path or URL; the name of a table for the format "table".
        format: one of FORMATS, or any other that ``spark.read.format`` takes; None to tell it from the path.
        options: options of the reader.
        image_size: height x width [x channels] to which images in the column "data" are decoded, as column "image".
        where: a condition that rows must meet, in SQL.
    """

    path: str
    format: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    image_size: str | None = None
    where: str | None = None


def layout(data: Data) -> str:
    """The order of images' axes, as ``data_format``: Datums have Caffe's, images that are decoded here Keras's."""
    kind = (data.format or format_of(data.path)).lower()
    return "channels_first" if kind in ("lmdb", "sequencefile") and data.image_size is None else "channels_last"


def read(spark: SparkSession, data: Data) -> DataFrame:
    """The rows, with the columns of the format."""
    kind = (data.format or format_of(data.path)).lower()
    df = _load(spark, kind, data.path, dict(data.options))
    if data.where:
        df = df.where(data.where)
    return df if data.image_size is None else assembler(data.image_size).transform(df)


def _load(spark: SparkSession, kind: str, path: str, options: dict[str, Any]) -> DataFrame:
    if kind == "images":
        from cos_ml.sources.images import image_classes, read_images

        classes = options.pop("classes", None)
        _check_no_options(kind, options)
        classes = split(classes) if isinstance(classes, str) else classes
        return read_images(spark, path, classes=classes or image_classes(spark, path))
    if kind == "sequencefile":
        from cos_ml.sources.images import read_sequence_file

        values = options.pop("values", "datum")
        _check_no_options(kind, options)
        return read_sequence_file(spark, path, values=values)
    if kind == "table":
        return spark.read.options(**options).table(path)
    if kind == "lmdb":
        from cos_ml.sources import register

        register(spark)
        found = qualified(spark, path)  # the format has no session
        return spark.read.format(kind).options(**options).load(f"file://{found}" if found.startswith("/") else found)
    if kind == "csv":
        options = {"header": "true", "inferSchema": "true"} | options
    if kind in ("parquet", "orc"):
        _check_plain(qualified(spark, path))
    local = local_path(path)
    found = literal(path) if local is not None and Path(local).exists() and kind != "delta" else for_spark(spark, path)
    return spark.read.format(kind).options(**options).load(found)


def _check_plain(url: str) -> None:
    try:
        check_plain_url(url, _flags)
    except InvalidInputError:
        raise
    except Exception:  # Spark may open what fsspec can't; each storage has its own exceptions
        pass


def _flags(table: Table) -> str:
    where = f' --where "{table.where}"' if table.where else ""
    return f"--data {table.url} --format {table.format}{where}"


def _check_no_options(kind: str, options: dict[str, Any]) -> None:
    if options:
        allowed = {"images": "classes", "sequencefile": "values"}[kind]
        raise InvalidInputError(f"--option {next(iter(options))}: the format {kind!r} takes only {allowed!r}.")


def format_of(path: str) -> str:
    """The format of a path that was given without one: by its ending, or by what the folder contains."""
    found = local_path(path)
    folder = None if found is None else Path(found)
    if folder is not None and (folder / "data.mdb").exists():
        return "lmdb"
    if folder is not None and (folder / "_delta_log").exists():
        return "delta"
    return ENDINGS.get(Path(path.rstrip("/")).suffix.lower(), "parquet")


def assembler(size: str) -> Any:
    """The ImageAssembler of ``--image-size``: from the column data to the column image."""
    from cos_ml.images import ImageAssembler

    found = SIZE.fullmatch(size)
    if found is None:
        raise InvalidInputError(f"--image-size {size}: expected HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS, as 28x28x1.")
    height, width, channels = (int(side or 3) for side in found.groups())
    return ImageAssembler(height=height, width=width, channels=channels)


def with_classes(spark: SparkSession, data: Data) -> Data:
    """The same data, whose options name the classes of images: others read with them have the same labels."""
    if (data.format or format_of(data.path)).lower() != "images" or data.options.get("classes"):
        return data
    from cos_ml.sources.images import image_classes

    return replace(data, options=data.options | {"classes": image_classes(spark, data.path)})


def write(df: DataFrame, path: str, kind: str, overwrite: bool) -> None:
    """Write rows to a new folder; Vectors become arrays of floats, which any reader knows."""
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    vectors = {field.name for field in df.schema if field.dataType.typeName() == "vectorudt"}
    for name in vectors:
        df = df.withColumn(name, vector_to_array(F.col(quoted(name)), "float32"))
    mode = "overwrite" if overwrite else "errorifexists"
    df.write.format(kind).mode(mode).save(for_spark(df.sparkSession, path))
