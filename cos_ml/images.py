"""Images as inputs of a network: ImageAssembler decodes them, preprocessing_layers stay in the saved model.

ImageAssembler and preprocessing_layers run on the driver, decode_image and what calls it in scoring tasks.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasHandleInvalid, HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.columns import as_list_array
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.model import _has_user_type
from cos_ml.network.keras_import import import_keras
from cos_ml.params import _one_of, _param, _setters, _whole
from cos_ml.scoring.predict import _arrow_frame

__all__ = ["ImageAssembler", "Layout", "decode_image", "preprocessing_layers"]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")  # not all that Pillow knows: some of them run other programs
MODES = {1: "L", 3: "RGB"}
YIELDED = 16 << 20  # bytes of pixels that go back to Spark at a time: its own batches have 10,000 rows


@dataclass(frozen=True)
class Layout:
    """What an image becomes: plain values.

    Attributes:
        height, width: in pixels.
        channels: 1 (gray) or 3 (red, green, blue).
        resize: how it gets that size: "stretch", "crop" or "none".
        output_type: "uint8" or "float".
    """

    height: int
    width: int
    channels: int
    resize: str
    output_type: str

    @property
    def size(self) -> int:
        """Bytes of one image."""
        return self.height * self.width * self.channels * (4 if self.output_type == "float" else 1)


def _channels(value: Any) -> int:
    if isinstance(value, bool) or value not in tuple(MODES):
        raise InvalidInputError(f"Param channels: expected 1 or 3, received {value!r}.")
    return int(value)


@_setters
class ImageAssembler(
    Transformer, HasInputCol, HasOutputCol, HasHandleInvalid, DefaultParamsReadable[Any], DefaultParamsWritable
):
    """Decodes a column of image files into pixels, all of one size, as DeepNetEstimator takes them.

    Reads JPEG, PNG, BMP, GIF (the first picture), TIFF and WebP, with Pillow: ``pip install "cos-ml[images]"``, on the
    executors too. Orientation tags of cameras (EXIF) are not looked at, transparency is dropped, and of 16 bits per
    channel the upper 8 are kept.

    Args:
        inputCol: binary column, a whole image file per row.
        outputCol: the new column: height x width x channels values of 0 to 255, row by row, the channels of a pixel
            next to each other.
        height, width: of the output, in pixels.
        channels: 3 (red, green, blue) or 1 (gray); images of the other kind are converted.
        resize: "stretch" to height and width; "crop" (scale to cover them, and keep the middle); or "none" (keep the
            middle; a smaller image is invalid).
        outputType: "uint8" (a binary column, one byte per value) or "float" (an array of floats: 4 times the size).
        handleInvalid: rows that are null, no image, damaged, or larger than Pillow's limit of pixels
            (``PIL.Image.MAX_IMAGE_PIXELS``, against files that unpack to huge images): "error", "skip" or "keep" (as
            null).

    Raises:
        InvalidInputError: a Param is wrong.
    """

    height = _param("height", "height of the output in pixels (>= 1)", _whole("height", 1))
    width = _param("width", "width of the output in pixels (>= 1)", _whole("width", 1))
    channels = _param("channels", "3 (red, green, blue) or 1 (gray)", _channels)
    resize = _param(
        "resize",
        "'stretch' to height and width, 'crop' (scale to cover them, keep the middle) or 'none' (keep the middle)",
        _one_of("resize", "stretch", "crop", "none"),
    )
    outputType = _param(
        "outputType",
        "'uint8' (binary, a byte per value) or 'float' (array of floats), both of 0 to 255",
        _one_of("outputType", "uint8", "float"),
    )
    handleInvalid = _param(
        "handleInvalid",
        "what to do with rows that are null or can't be decoded: 'error', 'skip' (leave them out) or 'keep' (as null)",
        _one_of("handleInvalid", "error", "skip", "keep"),
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "data",
        outputCol: str = "image",
        height: int | None = None,
        width: int | None = None,
        channels: int = 3,
        resize: str = "stretch",
        outputType: str = "uint8",
        handleInvalid: str = "error",
    ) -> None:
        super().__init__()
        self._setDefault(
            inputCol="data", outputCol="image", channels=3, resize="stretch", outputType="uint8", handleInvalid="error"
        )
        self.setParams(**self._input_kwargs)  # type: ignore[attr-defined]

    def setParams(self, **kwargs: Any) -> ImageAssembler:
        """Set any of the Params by keyword, as the constructor does; None is the same as not given."""
        return self._set(**{name: value for name, value in kwargs.items() if value is not None})

    def getHeight(self) -> int:
        """Gets the value of height."""
        return self.getOrDefault(self.height)

    def getWidth(self) -> int:
        """Gets the value of width."""
        return self.getOrDefault(self.width)

    def getChannels(self) -> int:
        """Gets the value of channels or its default value."""
        return self.getOrDefault(self.channels)

    def getResize(self) -> str:
        """Gets the value of resize or its default value."""
        return self.getOrDefault(self.resize)

    def getOutputType(self) -> str:
        """Gets the value of outputType or its default value."""
        return self.getOrDefault(self.outputType)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        import_pillow()
        self._check(dataset.schema)
        name, output, invalid = self.getInputCol(), self.getOutputCol(), self.getHandleInvalid()
        layout = Layout(self.getHeight(), self.getWidth(), self.getChannels(), self.getResize(), self.getOutputType())
        out, given = dataset, F.col("`" + name.replace("`", "``") + "`")
        taken = f"{self.uid}_data"
        if _has_user_type(dataset.schema):  # as in DeepNetModel._transform, for Spark 4.3
            out = dataset.select("*", F.explode(F.array(given)).alias(taken))
            given = F.col(taken)
        out = out.withColumn(output, _udf(layout, name, invalid)(given)).drop(taken)
        if invalid == "skip":
            out = out.filter(F.col("`" + output.replace("`", "``") + "`").isNotNull())
        return out

    def _check(self, schema: T.StructType) -> None:
        name, output = self.getInputCol(), self.getOutputCol()
        missing = [param.name for param in (self.height, self.width) if not self.isDefined(param)]
        if missing:
            raise InvalidInputError(f"Param {missing[0]} is not set: give the size that the network takes.")
        if name not in schema.fieldNames():
            raise InvalidInputError(f"There is no column {name!r}. The DataFrame has {schema.fieldNames()}.")
        if not isinstance(schema[name].dataType, T.BinaryType):
            raise InvalidInputError(
                f"Column {name!r} is of type {schema[name].dataType.simpleString()}: expected binary, a whole image "
                'file per row, as cos_ml.read_images and Spark\'s "binaryFile" source read them.'
            )
        if output in schema.fieldNames():
            raise InvalidInputError(
                f"Output column {output!r} is in the DataFrame already: drop it, or set another outputCol."
            )


def preprocessing_layers(
    *,
    size: Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    mirror: bool = False,
    mean: float | Sequence[float] = 0.0,
    scale: float = 1.0,
) -> list[Any]:
    """What Caffe's transform_param does to images, as Keras layers: first of a network, and saved with it.

    Pixels become ``(pixel - mean) * scale``. In training, every image is cropped at a place of its own and, with
    ``mirror``, half of them are mirrored left to right; at inference the middle is taken, and nothing is mirrored.

    Args:
        size: height and width of the images that come in; needed with ``crop`` alone.
        crop: height and width to keep, or one number for both.
        mirror: whether to mirror images.
        mean: what to subtract: a number, or one per channel, in the order of the channels (ImageAssembler's is red,
            green, blue; Caffe's is blue, green, red).
        scale: what to multiply by.

    Returns:
        list: standard layers for inputs of [rows, height, width, channels], of uint8 or floats; the output is floats.

    Raises:
        InvalidInputError: ``crop`` comes without ``size``, or is larger.
    """
    layers = import_keras().layers
    made: list[Any] = []
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        if size is None or not (0 < height <= size[0] and 0 < width <= size[1]):
            raise InvalidInputError(f"expected a crop inside the images' size, received crop={crop!r}, size={size!r}.")
        # Not RandomCrop: it cuts all images of a batch at the same place, and leaves them whole at inference.
        # A shift by whole pixels, and then the middle, is the same as a crop anywhere; no pixel from outside gets in.
        shifts = _shifts(size[0], height), _shifts(size[1], width)
        if (height, width) != tuple(size):
            made.append(layers.RandomTranslation(*shifts, fill_mode="nearest", interpolation="nearest"))
        made.append(layers.CenterCrop(height, width))
    if mirror:
        made.append(layers.RandomFlip("horizontal"))
    means = [float(value) for value in np.ravel(mean)]
    offsets = [-value * scale for value in means]
    made.append(layers.Rescaling(scale, offsets if len(offsets) > 1 else offsets[0]))
    return made


def _shifts(side: int, kept: int) -> tuple[float, float]:
    """The parts of ``side`` by which an image may move, so that its middle ``kept`` pixels are all of the image's.

    Half a pixel more either way: the nearest whole pixel counts, and so each place is as likely as another.
    """
    spare = side - kept
    return (spare // 2 - spare - 0.5) / side, (spare // 2 + 0.5) / side


# ── scoring task ──────────────────────────────────────────────────────────────────────────────────────────────────────


def import_pillow() -> ModuleType:
    """Pillow's module ``PIL.Image``.

    Raises:
        SetupError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise SetupError('ImageAssembler needs Pillow, on the executors too: pip install "cos-ml[images]"') from error
    return Image


def decode_image(data: bytes, layout: Layout) -> np.ndarray:
    """The pixels of an image file: uint8, of [height, width, channels].

    Raises:
        Exception: it can't be decoded, whatever Pillow raises then; or it is smaller than the layout, and
            ``resize="none"``.
    """
    mode, size = MODES[layout.channels], (layout.width, layout.height)
    with import_pillow().open(io.BytesIO(data), formats=FORMATS) as image:
        if layout.resize != "none":
            # A JPEG much larger than the output decodes to a half, a quarter or an eighth of its size, in a fraction of
            # the time; to no less than twice the output, where the difference does not show.
            image.draft(mode, (2 * size[0], 2 * size[1]))
        picture = _eight_bits(image)
        if picture.mode != mode:
            picture = picture.convert(mode)
        if picture.size != size:
            picture = _resized(picture, size, layout.resize)
        return np.asarray(picture).reshape(layout.height, layout.width, layout.channels)


def _eight_bits(image: Any) -> Any:
    """Pillow cuts larger values off at 255 where it converts an image of 16 bits."""
    if image.mode.startswith("I;16"):
        return import_pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its values have 32 bits (Pillow's mode {image.mode}), and no known range")
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
    left, top = (width - to_width * scale) / 2, (height - to_height * scale) / 2
    return image.resize(size, bilinear, box=(left, top, width - left, height - top))


def _udf(layout: Layout, column: str, handle_invalid: str) -> Any:
    kind = T.BinaryType() if layout.output_type == "uint8" else T.ArrayType(T.FloatType())

    @F.pandas_udf(kind)  # type: ignore[attr-defined]
    def decode(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        return _decode_batches(batches, layout, column, handle_invalid)

    # Spark would push the filter that skips bad rows below this UDF, and run it twice.
    return decode.asNondeterministic() if handle_invalid == "skip" else decode


def _decode_batches(
    batches: Iterator[pd.Series], layout: Layout, column: str, handle_invalid: str
) -> Iterator[pd.Series]:
    """A value for every row, null for a bad one, in batches of a few MB, whatever size Spark's own are."""
    rows, first_row = max(YIELDED // layout.size, 1), 0
    for batch in batches:
        for start in range(0, len(batch), rows):
            pixels, row_errors = _decode_rows(batch.iloc[start : start + rows], layout)
            if row_errors and handle_invalid == "error":
                row, what = next(iter(row_errors.items()))
                raise InvalidInputError(
                    f"column {column!r}, row {first_row + start + row}: {what}. "
                    'handleInvalid="skip" leaves such rows out, "keep" makes them null.'
                )
            yield _series(pixels, list(row_errors), layout)
        first_row += len(batch)


def _decode_rows(rows: Sequence[bytes | None], layout: Layout) -> tuple[np.ndarray, dict[int, str]]:
    """Pixels of [rows, values of an image], and what is wrong with the rows that have none."""
    image = import_pillow()  # outside of the try below: missing, it is no matter of a row
    pixels = np.zeros((len(rows), layout.height * layout.width * layout.channels), np.uint8)
    row_errors = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that nobody reads here
        warnings.simplefilter("error", image.DecompressionBombWarning)
        for row, data in enumerate(rows):
            if data is None:
                row_errors[row] = "is null"
                continue
            try:
                pixels[row] = decode_image(data, layout).reshape(-1)
            except Exception as error:  # a damaged file meets any of Pillow's decoders in any state
                row_errors[row] = f"can't be decoded: {type(error).__name__}: {error}"
    return pixels, row_errors


def _series(pixels: np.ndarray, bad: list[int], layout: Layout) -> pd.Series:
    """The output column's values, null for bad rows."""
    empty = np.zeros(len(pixels), bool)
    empty[bad] = True
    if layout.output_type == "float":
        values = pd.arrays.ArrowExtensionArray(as_list_array(pixels.astype(np.float32), empty))
        return _arrow_frame()({"pixels": values})["pixels"]  # Spark takes it as it is, in a tenth of the time
    return pd.Series([None if null else row.tobytes() for row, null in zip(pixels, empty, strict=True)], dtype=object)
