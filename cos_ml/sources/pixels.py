"""Image files as pixels of one size, decoded by Pillow (scoring task side)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from cos_ml.data.columns import as_list_array
from cos_ml.errors import InvalidInputError, SetupError

__all__ = ["FILES", "MODES", "ImageSpec", "decode_batches", "decode_image", "decode_raw", "import_pillow"]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # some of the others that Pillow reads run external programs
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
DEPTHS = ("8U", "8S", "16U", "16S", "32S", "32F", "64F", "16F")  # OpenCV's, in the lower 3 bits of a type
FILES = 16  # that a pandas UDF copies at a time: those of a whole batch of Spark's may be gigabytes
BATCH_BYTES = 16 << 20  # pixels that are returned to Spark at a time: Spark's own batches have 10,000 rows


@dataclass(frozen=True)
class ImageSpec:
    """The size and type that images are converted to.

    Attributes:
        height, width: pixels of the output.
        channels: 1 (gray) or 3 (red, green, blue).
        resize: how the image gets this size: "stretch", "crop" or "none".
        output_type: "uint8" or "float".
    """

    height: int
    width: int
    channels: int
    resize: str
    output_type: str

    @property
    def values(self) -> int:
        """Number of values of one image."""
        return self.height * self.width * self.channels


def import_pillow() -> ModuleType:
    """Pillow's module ``PIL.Image``; raises SetupError if it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise SetupError('ImageAssembler needs Pillow, on the executors too: pip install "cos-ml[images]"') from error
    return Image


def decode_image(data: bytes, spec: ImageSpec) -> np.ndarray:
    """The pixels of an image file, as uint8 of shape [height, width, channels].

    Raises:
        Exception: Pillow can't decode it, or it is smaller than ``spec`` and ``resize="none"``.
    """
    with import_pillow().open(io.BytesIO(data), formats=FORMATS) as image:
        if spec.resize != "none":
            # Decodes a JPEG much larger than the output at 1/2, 1/4 or 1/8 of its size, in a fraction of the time, but
            # at no less than twice the output's size, so that the difference is not visible.
            image.draft(MODES[spec.channels], (2 * spec.width, 2 * spec.height))
        return _fitted(_eight_bits(image), spec)


def decode_raw(data: bytes, height: int, width: int, channels: int, mode: int, spec: ImageSpec) -> np.ndarray:
    """The pixels of Spark's image struct, as uint8 of shape [height, width, channels] of ``spec``.

    Args:
        data: its values row by row, the channels of a pixel in OpenCV's order: blue, green, red, opacity.
        height, width, channels: its size.
        mode: OpenCV's type of its values; -1 where Spark could not decode the file.
        spec: the size and type of the result.

    Raises:
        ValueError: it has no values of 8 or 16 unsigned bits, their number is wrong, or it is smaller than ``spec`` and
            ``resize="none"``.
    """
    if mode < 0:
        raise ValueError("Spark's reader could not decode the file")
    depth = DEPTHS[mode & 7]
    if depth not in ("8U", "16U"):
        raise ValueError(f"its values are OpenCV's CV_{depth}C{channels} (mode {mode}), which have no known range")
    type_: np.dtype[Any] = np.dtype("u1" if depth == "8U" else "<u2")
    count = height * width * channels
    if channels not in (1, 3, 4) or mode >> 3 != channels - 1 or count <= 0 or len(data) != count * type_.itemsize:
        raise ValueError(
            f"{len(data)} bytes are not {height} x {width} pixels of {channels} channels of mode {mode}: expected "
            "1, 3 or 4 channels of 8 or 16 bits, as Spark's image schema has them"
        )
    values: np.ndarray = np.frombuffer(data, type_).reshape(height, width, channels)
    if depth == "16U":
        values = (values >> 8).astype(np.uint8)
    picture = values[..., 2::-1] if channels > 1 else values[..., 0]
    return _fitted(import_pillow().fromarray(np.ascontiguousarray(picture)), spec)


def _fitted(image: Any, spec: ImageSpec) -> np.ndarray:
    mode, size = MODES[spec.channels], (spec.width, spec.height)
    picture = image if image.mode == mode else image.convert(mode)
    if picture.size != size:
        picture = _resized(picture, size, spec.resize)
    return np.asarray(picture).reshape(spec.height, spec.width, spec.channels)


def _eight_bits(image: Any) -> Any:
    """The upper 8 bits of a 16-bit image, of which Pillow would clip the values at 255; other images unchanged."""
    if image.mode.startswith("I;16"):
        return import_pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its values have 32 bits (Pillow's mode {image.mode}) and no known range")
    return image


def _resized(image: Any, size: tuple[int, int], resize: str) -> Any:
    (width, height), (to_width, to_height) = image.size, size
    if resize == "none":
        left, top = (width - to_width) // 2, (height - to_height) // 2
        if left < 0 or top < 0:
            raise ValueError(f'it has {width}x{height} pixels, less than {to_width}x{to_height}, and resize is "none"')
        return image.crop((left, top, left + to_width, top + to_height))
    bilinear = import_pillow().Resampling.BILINEAR
    if resize == "stretch":
        return image.resize(size, bilinear)
    scale = min(width / to_width, height / to_height)
    left, top = (max(0.0, spare / 2) for spare in (width - to_width * scale, height - to_height * scale))  # rounding
    return image.resize(size, bilinear, box=(left, top, width - left, height - top))


def decode_batches(
    spec: ImageSpec,
    column: str,
    handle_invalid: str,
    batches: Iterator[tuple[pa.Array, ...]],
    decode: Callable[..., np.ndarray] = decode_image,
) -> Iterator[pa.Array]:
    """Decode the rows of Arrow batches, in order, in batches of a few MB; invalid rows become null.

    Args:
        spec: the size and type of the result.
        column: the name of the column, for messages.
        handle_invalid: "error", or what else the Param may be.
        batches: an array for each argument of ``decode`` but the last; a null in the first makes the row invalid.
        decode: ``decode_image`` for files, or ``decode_raw``.

    Raises:
        InvalidInputError: a row is invalid, and ``handle_invalid`` is "error".
        SetupError: Pillow is not installed.
    """
    import_pillow()  # a missing package is no error of a row
    size = max(BATCH_BYTES // (spec.values * (4 if spec.output_type == "float" else 1)), 1)
    first_row = 0
    for arrays in batches:
        for start in range(0, len(arrays[0]), size):
            rows = zip(*(array[start : start + size].to_pylist() for array in arrays), strict=True)
            images = [_decode_row(row, decode, spec) for row in rows]
            invalid = next((row for row, image in enumerate(images) if isinstance(image, str)), None)
            if invalid is not None and handle_invalid == "error":
                raise InvalidInputError(
                    f"column {column!r}, row {first_row + start + invalid}: {images[invalid]}. "
                    'handleInvalid="skip" drops such rows, "keep" makes them null.'
                )
            yield _column(images, spec)
        first_row += len(arrays[0])


def _decode_row(row: Sequence[Any], decode: Callable[..., np.ndarray], spec: ImageSpec) -> np.ndarray | str:
    """The pixels of one row, or what is wrong with it."""
    if row[0] is None:
        return "is null"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which is not used
        warnings.simplefilter("error", import_pillow().DecompressionBombWarning)
        try:
            return decode(*row, spec)
        except Exception as error:  # Pillow's decoders raise all kinds of errors for a damaged file
            return f"can't be decoded: {type(error).__name__}: {error}"


def _column(images: Sequence[np.ndarray | str], spec: ImageSpec) -> pa.Array:
    """The values of the output column, null for rows without pixels."""
    if spec.output_type == "uint8":
        return pa.array([None if isinstance(image, str) else image.tobytes() for image in images], pa.binary())
    values = np.zeros((len(images), spec.values), np.float32)
    for row, image in zip(values, images, strict=True):
        row[:] = 0 if isinstance(image, str) else image.reshape(-1)
    return as_list_array(values, np.array([isinstance(image, str) for image in images]))
