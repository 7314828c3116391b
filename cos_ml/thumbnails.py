"""Thumbnails of the images in a DataFrame's rows, for ``cos_ml.display`` (driver side)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import types as T

from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.sources.pixels import FORMATS, import_pillow

__all__ = ["Picture", "pictures"]

SIDE = 112  # pixels of a thumbnail, at most
SHOWN = 56  # pixels that a small image is enlarged to
MIN_SIDE = 8  # pixels of a square image that flat numbers are taken for
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
DATUM = ("channels", "height", "width")  # the columns of the format "lmdb" that tell an image's shape
SPARK_IMAGE = {"height", "width", "nChannels", "data"}  # fields of the structs that Spark's format "image" reads

Shape = Sequence[int]


@dataclass(frozen=True)
class Picture:
    """One image: its pixels, uint8 of shape [height, width] or [height, width, 3], and whether it was a JPEG."""

    pixels: np.ndarray
    is_photo: bool = False

    def __str__(self) -> str:
        return f"{self.pixels.shape[0]}x{self.pixels.shape[1]} image"

    def html(self) -> str:
        """An ``<img>`` that contains the image; small ones are enlarged pixel by pixel."""
        image = import_pillow().fromarray(self.pixels)
        image.thumbnail((SIDE, SIDE))
        out, kind = io.BytesIO(), "jpeg" if self.is_photo else "png"
        image.save(out, kind.upper(), **({"quality": 85} if self.is_photo else {"optimize": True}))
        factor = max(SHOWN // max(image.size), 1)
        width, height = (factor * side for side in image.size)
        return (
            f'<img src="data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}" alt="{self}" '
            f'width="{width}" height="{height}" style="image-rendering:pixelated;max-width:none;margin:0">'
        )


def pictures(
    schema: T.StructType, rows: Sequence[Sequence[Any]], wanted: Mapping[int, Shape | None] | None
) -> dict[int, list[Picture | None]]:
    """The images of each column that contains images, by the column's index; None for a row without an image.

    Args:
        schema: the columns.
        rows: the rows.
        wanted: the columns to show as images, with their shapes where those are given; None to find them.

    Raises:
        InvalidInputError: a wanted column has no images.
        SetupError: Pillow is not installed, and columns are wanted.
    """
    try:
        import_pillow()
    except SetupError as error:
        if wanted:
            raise SetupError('Thumbnails need Pillow: pip install "cos-ml[images]"') from error
        return {}
    found: dict[int, list[Picture | None]] = {}
    for index, field in enumerate(schema.fields):
        if wanted is not None and index not in wanted:
            continue
        shape, forced = (wanted or {}).get(index), wanted is not None
        images = _of_column(schema, rows, index, shape, forced)
        if any(images):
            found[index] = images
        elif forced and any(row[index] is not None for row in rows):
            expected = "a square image" if shape is None else f"an image of shape {tuple(shape)}"
            raise InvalidInputError(
                f"Column {field.name!r} ({field.dataType.simpleString()}): no value is {expected}. Give its shape: "
                f"images={{{field.name!r}: (height, width, channels)}}, with 1 or 3 channels."
            )
    return found


def _of_column(
    schema: T.StructType, rows: Sequence[Sequence[Any]], index: int, shape: Shape | None, forced: bool
) -> list[Picture | None]:
    field = schema.fields[index]
    values, kind = [row[index] for row in rows], field.dataType
    names = [one.name.lower() for one in schema.fields]
    shape = shape or _shape_in_metadata(field.metadata)
    if isinstance(kind, T.StructType):
        return [_of_struct(one) for one in values] if set(kind.names) >= SPARK_IMAGE else []
    if shape is None and field.name.lower() in ("data", "float_data") and set(DATUM) <= set(names):
        shapes = [tuple(row[names.index(name)] for name in DATUM) for row in rows]
        return _of_datums(values, shapes)
    if isinstance(kind, T.BinaryType):
        arrays = [None if one is None else np.frombuffer(one, np.uint8) for one in values]
        encoded = [_decoded(one) for one in values]
        return encoded if any(encoded) else _shaped(arrays, shape)
    if not isinstance(kind, (T.ArrayType, T.UserDefinedType)):
        return []
    arrays = [_numbers(one) for one in values]
    known = [one for one in arrays if one is not None]
    # Features and probabilities have metadata, embeddings have negative numbers: neither is an image by its size alone.
    if shape is None and not forced and any(one.ndim == 1 and (field.metadata or one.min() < 0) for one in known):
        return []
    return _shaped(_as_bytes(arrays), shape)


def _shape_in_metadata(metadata: Mapping[str, Any]) -> Shape | None:
    """The shape that ImageAssembler writes."""
    image = metadata.get("image")
    return [image[name] for name in ("height", "width", "channels")] if isinstance(image, dict) else None


def _decoded(data: bytes | None) -> Picture | None:
    """The image in the bytes of a file; None where they are not an image file."""
    if data is None or not bytes(data[:4]).startswith(MAGIC):
        return None
    try:
        with import_pillow().open(io.BytesIO(data), formats=FORMATS) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
            picture.thumbnail((SIDE, SIDE))
            return Picture(np.asarray(picture), image.format == "JPEG")
    except Exception:  # Pillow's decoders raise all kinds of errors for a damaged file
        return None


def _numbers(value: Any) -> np.ndarray | None:
    """The numbers of a Vector or an array, nested or not; None for anything else."""
    if value is None:
        return None
    try:
        array = np.asarray(value.toArray() if hasattr(value, "toArray") else value, float)
    except (TypeError, ValueError):
        return None
    return array if array.size and array.ndim in (1, 2, 3) else None


def _as_bytes(arrays: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """Numbers as uint8: 0 to 255 as they are, others stretched over the range of all of them, which includes 0."""
    finite = [one[np.isfinite(one)] for one in arrays if one is not None]
    low = min((one.min() for one in finite if one.size), default=0.0)
    high = max((one.max() for one in finite if one.size), default=0.0)
    low, high = min(low, 0.0), 255.0 if low >= 0 and 127 < high <= 255 else 1.0 if low >= 0 and high <= 1 else high
    scale = 255 / ((high - low) or 1.0)
    clean = [None if one is None else np.nan_to_num(one, nan=low, posinf=high, neginf=low) for one in arrays]
    return [None if one is None else np.clip(np.rint((one - low) * scale), 0, 255).astype(np.uint8) for one in clean]


def _shaped(arrays: Sequence[np.ndarray | None], shape: Shape | None) -> list[Picture | None]:
    """Each array as an image of this shape; without one, as a square image if its length fits."""
    return [None if one is None else _as_picture(one, shape) for one in arrays]


def _as_picture(array: np.ndarray, shape: Shape | None) -> Picture | None:
    if shape is not None:
        if math.prod(shape) != array.size or len(shape) not in (2, 3):
            return None
        array = array.reshape(tuple(shape))
    elif array.ndim == 1:
        sides = {1: math.isqrt(array.size), 3: math.isqrt(array.size // 3)}
        channels = next((one for one, side in sides.items() if side * side * one == array.size), None)
        if channels is None or sides[channels] < MIN_SIDE:
            return None
        array = array.reshape(sides[channels], sides[channels], channels)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)  # channels first
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = 0 not in array.shape and (array.ndim == 2 or array.shape[2] == 3)
    return Picture(np.ascontiguousarray(array)) if fits else None


def _of_struct(value: Any) -> Picture | None:
    """The image of a struct of Spark's format "image": rows of blue, green, red."""
    if value is None:
        return None
    height, width, channels = value["height"], value["width"], value["nChannels"]
    pixels = np.frombuffer(value["data"], np.uint8)
    if channels not in (1, 3, 4) or pixels.size != height * width * channels:
        return None
    pixels = pixels.reshape(height, width, channels)
    return _as_picture(pixels if channels == 1 else pixels[:, :, 2::-1], (*pixels.shape[:2], min(channels, 3)))


def _of_datums(values: Sequence[Any], shapes: Sequence[tuple[int, int, int]]) -> list[Picture | None]:
    """The images of Caffe's Datums: encoded files, or planes of blue, green, red."""
    arrays = [np.frombuffer(one, np.uint8) if isinstance(one, (bytes, bytearray)) else _numbers(one) for one in values]
    if not all(one is None or one.dtype == np.uint8 for one in arrays):
        arrays = _as_bytes(arrays)
    found: list[Picture | None] = []
    for value, array, shape in zip(values, arrays, shapes, strict=True):
        encoded = _decoded(bytes(value)) if isinstance(value, (bytes, bytearray)) else None
        fits = None not in shape and shape[0] in (1, 3)
        if encoded is None and array is not None and fits and math.prod(shape) == array.size:
            planes = array.reshape(shape)[::-1].transpose(1, 2, 0)
            encoded = _as_picture(planes, planes.shape)
        found.append(encoded)
    return found
