"""Image files as pixels, in a TensorFlow graph: the numbers that ImageAssembler computes with Pillow (driver side).

Pillow scales in integers: each of two passes, along the rows and along the columns, multiplies bytes with weights of 22
bits and rounds to bytes. Doubles hold these sums exactly.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cos_ml.network.keras_import import import_tensorflow
from cos_ml.sources.pixels import ImageSpec, import_pillow

__all__ = ["decode_files"]

UNIT = 2.0**22  # of Pillow's weights
GRAY = (19595, 38470, 7471)  # of 65536: Pillow's weights of red, green and blue


def decode_files(files: Any, spec: ImageSpec) -> Any:
    """The pixels of JPEG, PNG, BMP, GIF and WebP files: a string tensor [rows] as [rows, height, width, channels]."""
    tf = import_tensorflow()
    shape = (spec.height, spec.width, spec.channels)
    pixels = tf.map_fn(lambda data: _decode(data, spec), files, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
    return pixels if spec.output_type == "uint8" else tf.cast(pixels, tf.float32)


def _decode(data: Any, spec: ImageSpec) -> Any:
    tf = import_tensorflow()
    image = tf.cond(tf.io.is_jpeg(data), lambda: _jpeg(data, spec), lambda: _other(data, spec))
    sides = tf.shape(image)[:2]
    size = (spec.height, spec.width)
    if spec.resize == "none":
        tf.debugging.assert_greater_equal(sides, size, "the image is smaller than the input")
        top, left = tf.unstack((sides - size) // 2)
        return image[top : top + spec.height, left : left + spec.width]
    whole = tf.cast(sides, tf.float64)
    spare = tf.zeros_like(whole)
    if spec.resize == "crop":
        spare = tf.maximum(whole - np.array(size, float) * tf.reduce_min(whole / size), 0) / 2
    # Pillow's boxes have single precision.
    (top, left), (bottom, right) = (tf.unstack(tf.cast(one, tf.float32)) for one in (spare, whole - spare))

    def rows(pixels: Any) -> Any:
        across = _resampled(tf.transpose(pixels, (1, 0, 2)), left, right, spec.width)
        return tf.transpose(across, (1, 0, 2))

    def columns(pixels: Any) -> Any:
        return _resampled(pixels, top, bottom, spec.height)

    if not _tall_images_differ():
        return columns(rows(image))
    height, width = tf.unstack(sides - size)
    is_tall = (height > 0) & (height > 2 * width)
    return tf.cond(is_tall, lambda: rows(columns(image)), lambda: columns(rows(image)))


@functools.cache
def _tall_images_differ() -> bool:
    """Whether the installed Pillow scales columns first where an image loses twice as many rows as columns.

    Pillow 13 does, Pillow 12.0 does not; the results differ by rounding.
    """
    image = import_pillow().fromarray(np.random.default_rng(0).integers(0, 256, (50, 9)).astype(np.uint8))
    bilinear = import_pillow().Resampling.BILINEAR
    columns_first = image.resize((9, 20), bilinear).resize((4, 20), bilinear)
    return image.resize((4, 20), bilinear).tobytes() == columns_first.tobytes()


def _jpeg(data: Any, spec: ImageSpec) -> Any:
    """A JPEG file, decoded at 1/2, 1/4 or 1/8 of its size where Pillow's ``draft`` does so."""
    tf = import_tensorflow()
    ratios = [1, 2, 4, 8]

    def at(ratio: int) -> Any:
        return lambda: tf.io.decode_jpeg(data, spec.channels, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if spec.resize == "none":
        return _gray(tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE"), spec)
    height, width = tf.unstack(tf.io.extract_jpeg_shape(data)[:2])
    spare = tf.minimum(width // (2 * spec.width), height // (2 * spec.height))
    place = sum(tf.cast(spare >= ratio, tf.int32) for ratio in ratios[1:])
    return tf.switch_case(place, [at(ratio) for ratio in ratios])


def _other(data: Any, spec: ImageSpec) -> Any:
    """Any other file: the first frame, without transparency."""
    tf = import_tensorflow()
    image = tf.io.decode_image(data, expand_animations=False)
    is_color = tf.shape(image)[2] >= 3
    return _gray(tf.cond(is_color, lambda: image[..., :3], lambda: tf.repeat(image[..., :1], 3, axis=2)), spec)


def _gray(color: Any, spec: ImageSpec) -> Any:
    """Colors as they are, or as gray if ``spec`` has one channel."""
    tf = import_tensorflow()
    if spec.channels == 3:
        return color
    sums = tf.reduce_sum(tf.cast(color, tf.int32) * GRAY, axis=2, keepdims=True)
    return tf.cast((sums + 32768) // 65536, tf.uint8)


def _resampled(image: Any, start: Any, end: Any, size: int) -> Any:
    """Bytes of [length, n, channels], of which those from ``start`` to ``end`` are scaled to ``size``, bilinearly."""
    tf = import_tensorflow()
    length = tf.shape(image)[0]
    scale = tf.cast(end - start, tf.float64) / size
    reach = tf.maximum(scale, 1)
    centers = tf.cast(start, tf.float64) + (np.arange(size) + 0.5) * scale
    first = tf.maximum(tf.floor(tf.maximum(centers - reach + 0.5, 0)), 0)
    last = tf.minimum(tf.floor(centers + reach + 0.5), tf.cast(length, tf.float64))
    places = tf.cast(tf.range(length), tf.float64)[None]
    inside = (places >= first[:, None]) & (places < last[:, None])
    weights = tf.where(inside, tf.maximum(1 - tf.abs((places - centers[:, None] + 0.5) / reach), 0), 0)
    weights = tf.floor(weights / tf.reduce_sum(weights, axis=1, keepdims=True) * UNIT + 0.5)
    sums = tf.tensordot(weights, tf.cast(image, tf.float64), 1)
    return tf.cast(tf.clip_by_value(tf.floor((sums + UNIT / 2) / UNIT), 0, 255), tf.uint8)
