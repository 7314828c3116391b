"""The rows of Caffe's data layers as DataFrames (driver side; ``_caffe_order``: scoring task)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cos_ml.caffe.prototxt import resolve
from cos_ml.commands import data
from cos_ml.data.names import quoted
from cos_ml.errors import InvalidInputError
from cos_ml.paths import local_path

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["SAMPLE_ID", "Source", "data_layer", "read"]

SAMPLE_ID = "SampleID"
LAYERS = ("Data", "MemoryData", "CoSData")
FORMATS = {
    "LMDB": "lmdb",
    "SeqImageDataSource": "sequencefile",
    "ImageDataFrame": "parquet",
    "DataFrameSource": "parquet",
}


@dataclass(frozen=True)
class Source:
    """The rows of a data layer.

    Attributes:
        rows: the column SampleID, and one for each top, of the top's name.
        tops: the names of the layer's tops.
        shapes: of images: channels, height and width, by top.
    """

    rows: DataFrame
    tops: tuple[str, ...]
    shapes: dict[str, tuple[int, int, int]]


def data_layer(layers: Sequence[Any], phase: str) -> Any:
    """The layer that reads the rows of a phase's network."""
    found = [layer for layer in layers if layer.type in (*LAYERS, "ImageData", "HDF5Data", "Input")]
    if len(found) != 1 or found[0].type not in LAYERS:
        kinds = ", ".join(f"{layer.name!r} ({layer.type})" for layer in found) or "none"
        raise InvalidInputError(
            f"The network's data layers of the phase {phase}: expected one of the types {', '.join(LAYERS)}, received "
            f"{kinds}. For files of other kinds: cos-ml convert, or cos-ml train --solver with --data."
        )
    return found[0]


def read(spark: SparkSession, layer: Any, beside: str, resize: bool, partitions: int | None) -> Source:
    """The rows of a data layer; ``beside`` is the network's file, from which relative paths are looked for too."""
    kind, given = _kind(layer)
    if not given.source:
        raise InvalidInputError(f"Caffe layer {layer.name!r}: it names no source, the path of its rows.")
    path = _absolute(resolve(_plain(given.source), beside), given.source)
    options = {"numPartitions": str(partitions)} if partitions and kind == "lmdb" else {}
    rows = data.read(spark, data.Data(path, kind, options))
    if layer.type == "CoSData":
        return _of_cos_data(layer, rows)
    if layer.type == "MemoryData" and given.dataframe_column_select:
        rows = rows.selectExpr(*given.dataframe_column_select)
    return _of_datums(layer, rows, resize)


def _kind(layer: Any) -> tuple[str, Any]:
    """The format of a layer's source, and its parameters."""
    name = layer.source_class.rpartition(".")[2]
    if name and name not in FORMATS:
        raise InvalidInputError(
            f"Caffe layer {layer.name!r}: source_class {layer.source_class!r} is not one of {', '.join(FORMATS)}: "
            "write its rows as Parquet, and read them as ImageDataFrame or DataFrameSource."
        )
    if layer.type == "Data":
        given = layer.data_param
        if given.HasField("backend") and given.backend == 0:
            raise InvalidInputError(f"Caffe layer {layer.name!r}: backend LEVELDB can't be read: convert it to LMDB.")
        return "lmdb", given
    given = layer.cos_data_param if layer.type == "CoSData" else layer.memory_data_param
    default = "DataFrameSource" if layer.type == "CoSData" else "LMDB"
    kind = FORMATS[name or default]
    return (given.dataframe_format or kind) if kind == "parquet" else kind, given


def _plain(source: str) -> str:
    """A source without the scheme of a relative path, which CaffeOnSpark's files have: ``file:train_lmdb``."""
    return source if source.startswith("file:/") else source.removeprefix("file:")


def _absolute(path: str, source: str) -> str:
    """A path from its root, as tasks need it: on this machine if ``source`` is relative or says so by its scheme."""
    found = local_path(path)
    if found is None:
        return path
    return os.path.abspath(found) if source.startswith("/") else f"file://{os.path.abspath(found)}"


def _of_cos_data(layer: Any, rows: DataFrame) -> Source:
    """Columns by the names of the layer's tops."""
    from pyspark.sql import functions as F

    columns, shapes = [_sample_id(rows)], {}
    kinds = layer.cos_data_param.top[0].DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number
    for name, top in zip(layer.top, layer.cos_data_param.top, strict=True):
        column: Column = F.col(quoted(top.name or name))
        kind = kinds[top.type].name
        if kind.startswith("ENCODED_IMAGE"):
            shapes[name] = (top.channels, top.height, top.width)
            if not top.transform_param.crop_size:
                shapes[name] = (top.channels, top.out_height or top.height, top.out_width or top.width)
            if kind == "ENCODED_IMAGE_WITH_DIM":
                column = column["image"]
            column = _decoded(column, shapes[name])
        elif kind == "RAW_IMAGE":
            shapes[name] = (top.channels, top.height, top.width)
        elif kind in ("STRING", "INT", "FLOAT"):
            column = column.cast("float")
        columns.append(column.alias(name))
    return Source(rows.select(*columns), tuple(layer.top), shapes)


def _of_datums(layer: Any, rows: DataFrame, resize: bool) -> Source:
    """The columns of Datums: id, label, channels, height, width, encoded, data and float_data."""
    from pyspark.sql import functions as F

    given = layer.memory_data_param
    first = rows.first()
    if first is None:
        raise InvalidInputError(f"Caffe layer {layer.name!r}: its source has no rows.")
    row = first.asDict()
    encoded = row.get("encoded", given.image_encoded)
    declared = (given.channels, given.height, given.width)
    if encoded:
        sides = declared if all(declared) else _sides_of_image(row["data"], given.channels)
        image = _decoded(F.col("data"), sides, "stretch" if resize or not all(declared) else "none")
    else:
        own = (row.get("channels") or 0, row.get("height") or 0, row.get("width") or 0)
        sides = own if all(own) else declared
        if resize and all(declared) and sides != declared:
            raise InvalidInputError(
                f"-resize: the images of layer {layer.name!r} are pixels of {sides} (channels, height, width), not "
                "encoded files: expected JPEG or PNG files, which can be scaled."
            )
        image = F.col("float_data" if row.get("data") is None else "data")
    columns = [_sample_id(rows), image.alias(layer.top[0])]
    columns += [F.col("label").cast("float").alias(top) for top in layer.top[1:]]
    return Source(rows.select(*columns), tuple(layer.top), {layer.top[0]: sides} if all(sides) else {})


def _sample_id(rows: DataFrame) -> Column:
    from pyspark.sql import functions as F

    return (F.col("id").cast("string") if "id" in rows.columns else F.lit("")).alias(SAMPLE_ID)


def _sides_of_image(file: bytes, channels: int) -> tuple[int, int, int]:
    import io

    from cos_ml.sources.pixels import import_pillow

    with import_pillow().open(io.BytesIO(file)) as image:
        return channels or (1 if image.mode in ("L", "1", "I;16") else 3), image.height, image.width


def _decoded(files: Column, sides: tuple[int, int, int], resize: str = "stretch") -> Column:
    """Image files as pixels in Caffe's order: channels first, and blue before green before red."""
    import pyarrow as pa
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    from cos_ml.data.pandas_internals import in_parts
    from cos_ml.sources.pixels import FILES, ImageSpec, decode_batches

    spec = ImageSpec(sides[1], sides[2], sides[0], resize, "uint8")

    @F.pandas_udf(T.BinaryType())  # type: ignore[attr-defined]
    def decode(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        encoded = ((pa.array(part.map(_file), pa.binary()),) for (part,) in in_parts(batches, FILES))
        for images in decode_batches(spec, "data", "error", encoded):
            yield pd.Series([_caffe_order(pixels, sides) for pixels in images.to_pylist()], dtype=object)

    return decode(files)


def _file(value: Any) -> Any:
    """An image file, which CaffeOnSpark's tools have written as an array of bytes."""
    return np.asarray(value, np.int8).tobytes() if isinstance(value, (np.ndarray, list)) else value


def _caffe_order(pixels: bytes, sides: tuple[int, int, int]) -> bytes:
    image = np.frombuffer(pixels, np.uint8).reshape(sides[1], sides[2], sides[0])
    return image[:, :, ::-1].transpose(2, 0, 1).tobytes()
