"""Images as inputs of a network: ImageAssembler and preprocessing_layers (driver side)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasHandleInvalid, HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.accessors import ImageAccessors
from cos_ml.converters import integer, one_of, string
from cos_ml.data.names import quoted, resolve, taken
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from cos_ml.params import DeclaredParam, StageParams
from cos_ml.scoring.udf_arguments import arrow_udf, with_udf
from cos_ml.sources.pixels import FILES, MODES, ImageSpec, decode_batches, decode_image, decode_raw, import_pillow

__all__ = ["ImageAssembler", "preprocessing_layers"]

# The fields of Spark's image struct that say what its data are; the field origin is where it comes from.
STRUCT = {"height": "int", "width": "int", "nChannels": "int", "mode": "int"}


def _channels(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError("expected 1 or 3")
    if value not in tuple(MODES):
        raise ValueError("expected 1 or 3")
    return int(float(value))


class ImageAssembler(
    Transformer, ImageAccessors, StageParams, HasInputCol, HasOutputCol, HasHandleInvalid,
    DefaultParamsReadable["ImageAssembler"], DefaultParamsWritable,
):  # fmt: skip
    """A Transformer that turns a column of images into pixels of one size, as DeepNetEstimator takes them.

    A binary column has whole files: JPEG, PNG, BMP, GIF (the first frame), TIFF or WebP. A struct is an image that
    ``spark.read.format("image")`` has decoded, whose channels are blue, green, red. Pillow reads and resizes both, and
    the executors need it too: ``pip install "cos-ml[images]"``. EXIF orientation is ignored, transparency is dropped,
    and images with 16 bits per channel keep the upper 8.

    Args: every Param by keyword, as described by ``explainParams()``; height and width are required to transform.

    Raises:
        InvalidInputError: a Param is invalid.
    """

    inputCol = DeclaredParam(
        string, 'column of images: whole files (binary), or the structs of Spark\'s source "image"', "data"
    )
    outputCol = DeclaredParam(
        string,
        "output column: height x width x channels values from 0 to 255, in row-major order with the channels last",
        "image",
    )
    height = DeclaredParam(integer(1), "height of the output in pixels (>= 1)")
    width = DeclaredParam(integer(1), "width of the output in pixels (>= 1)")
    channels = DeclaredParam(_channels, "3 (red, green, blue) or 1 (gray); images of the other kind are converted", 3)
    resize = DeclaredParam(
        one_of("stretch", "crop", "none"),
        "'stretch' to height and width, 'crop' (scale the image to cover them and keep its center) or 'none' (keep the "
        "center; smaller images are invalid)",
        "stretch",
    )
    outputType = DeclaredParam(
        one_of("uint8", "float"),
        "'uint8' (a binary column, one byte per value) or 'float' (an array of floats, 4 times the size)",
        "uint8",
    )
    handleInvalid = DeclaredParam(
        one_of("error", "skip", "keep"),
        "what to do with rows that are null, can't be decoded (by Spark, where it has read them), or exceed "
        "PIL.Image.MAX_IMAGE_PIXELS (against decompression bombs): 'error', 'skip' (drop them) or 'keep' (as null)",
        "error",
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
        self._set(**vars(self).pop("_input_kwargs"))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        import_pillow()
        arguments = self._arguments(dataset)
        name, output = self.getInputCol(), self.getOutputCol()
        spec = ImageSpec(self.getHeight(), self.getWidth(), self.getChannels(), self.getResize(), self.getOutputType())
        type_ = T.BinaryType() if spec.output_type == "uint8" else T.ArrayType(T.FloatType())
        function = decode_raw if "mode" in arguments else decode_image
        decode = partial(decode_batches, spec, name, self.getHandleInvalid(), decode=function)
        out = with_udf(dataset, arguments, output, arrow_udf(dataset.sparkSession, type_, decode, FILES))
        shape = {"height": spec.height, "width": spec.width, "channels": spec.channels}  # for display.show
        out = out.withColumn(output, F.col(quoted(output)).alias(output, metadata={"image": shape}))
        return out.filter(F.col(quoted(output)).isNotNull()) if self.getHandleInvalid() == "skip" else out

    def _arguments(self, dataset: DataFrame) -> dict[str, SparkColumn]:
        """What is decoded, after checking Params and columns against each other: a file, or the fields of a struct."""
        name, output = self.getInputCol(), self.getOutputCol()
        for param in (self.height, self.width):
            if not self.isDefined(param):
                raise InvalidInputError(f"Param {param.name} is not set: set it to the size of the network's input.")
        source = resolve(dataset, name)
        if taken(dataset, output):
            raise InvalidInputError(
                f"Output column {output!r} is in the DataFrame already: drop it, or set another outputCol."
            )
        if isinstance(source.data_type, T.BinaryType):
            return {"data": source.values}
        if _is_image(source.data_type):
            # pandas has no null among its integers.
            sizes = {field: F.coalesce(source.values[field], F.lit(-1)) for field in STRUCT}
            return {"data": source.values["data"], **sizes}
        raise InvalidInputError(
            f"Column {name!r} is of type {source.data_type.simpleString()}: expected binary, an image file per row, as "
            'cos_ml.read_images and Spark\'s source "binaryFile" read them, or the struct of Spark\'s source "image".'
        )


def _is_image(data_type: T.DataType) -> bool:
    """Whether a column has the struct of Spark's source "image"."""
    if not isinstance(data_type, T.StructType):
        return False
    types = {field.name: field.dataType.simpleString() for field in data_type.fields}
    return types.items() >= (STRUCT | {"data": "binary"}).items()


def preprocessing_layers(
    *,
    size: Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    mirror: bool = False,
    mean: float | Sequence[float] = 0.0,
    scale: float = 1.0,
) -> list[Any]:
    """Keras layers that process images as Caffe's transform_param does, to begin a network with and be saved with it.

    Pixels become ``(pixel - mean) * scale``. In training, every image is cropped at a random position of its own and,
    with ``mirror``, half of the images are flipped left to right. Inference crops the center and flips nothing.

    Args:
        size: height and width of the input images; required with ``crop``.
        crop: height and width to keep, or one number for both.
        mirror: whether to flip images.
        mean: number to subtract, or one per channel in the order of the channels (red, green, blue from ImageAssembler;
            Caffe's order is blue, green, red).
        scale: number to multiply by.

    Returns:
        list: standard layers for inputs of shape [rows, height, width, channels], uint8 or float; they return floats.

    Raises:
        InvalidInputError: ``crop`` is given without ``size``, or is larger.
    """
    layers = import_keras().layers
    result: list[Any] = []
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
        if size is None or not (0 < height <= size[0] and 0 < width <= size[1]):
            raise InvalidInputError(f"expected a crop inside the images' size, received crop={crop!r}, size={size!r}.")
        # RandomCrop crops all images of a batch at the same position, and does not crop at inference. A random shift by
        # whole pixels followed by CenterCrop is a random crop, and includes no pixel from outside the image.
        if (height, width) != tuple(size):
            shifts = _shifts(size[0], height), _shifts(size[1], width)
            result.append(layers.RandomTranslation(*shifts, fill_mode="nearest", interpolation="nearest"))
        result.append(layers.CenterCrop(height, width))
    if mirror:
        result.append(layers.RandomFlip("horizontal"))
    offsets = [-float(value) * scale for value in np.ravel(mean)]
    result.append(layers.Rescaling(scale, offsets if len(offsets) > 1 else offsets[0]))
    return result


def _shifts(side: int, kept: int) -> tuple[float, float]:
    """The range of shifts, as fractions of ``side``, that keep the center crop of ``kept`` pixels inside the image.

    Half a pixel is added at both ends: shifts round to whole pixels, so all positions are equally likely.
    """
    spare = side - kept
    return (spare // 2 - spare - 0.5) / side, (spare // 2 + 0.5) / side
