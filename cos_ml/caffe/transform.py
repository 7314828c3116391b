"""What Caffe's data layers do to images before the network (every side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

__all__ = ["DataTransform"]


@keras.saving.register_keras_serializable(package="cos_ml")
class DataTransform(keras.layers.Layer):
    """Subtracts a mean, crops, mirrors and scales images, channels last.

    Args:
        scale: factor after the mean has been subtracted.
        mean: nested lists that broadcast against an image: a number for each channel, or an image; None for none.
        crop: height and width of what is kept, or None. While a network trains the place is random, else central.
        mirror: whether images are mirrored at random, half of them on average, while the network trains.
        random_crop: whether the place of a crop is random while the network trains.
        always: whether ``mirror`` holds outside of training too, as in Caffe's TEST phase.
        seed: seed of the random numbers.
    """

    def __init__(
        self, scale: float = 1.0, mean: Any = None, crop: Sequence[int] | None = None, mirror: bool = False,
        random_crop: bool = True, always: bool = False, seed: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        self.scale, self.mean, self.mirror = scale, mean, mirror
        self.crop = tuple(crop) if crop else None
        self.random_crop, self.always, self.seed = random_crop, always, seed
        self._random = keras.random.SeedGenerator(seed) if mirror or (crop and random_crop) else None

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape after the crop."""
        return (input_shape[0], *self.crop, *input_shape[3:]) if self.crop else tuple(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The transformed images."""
        images = inputs
        if self.mean is not None:
            images = images - ops.convert_to_tensor(np.asarray(self.mean, np.float32), images.dtype)
        if self.crop:
            images = self._cropped(images, bool(training) and self.random_crop)
        if self.mirror and (training or self.always):
            flips = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=self._random) < 0.5
            images = ops.where(flips, ops.flip(images, axis=2), images)
        return images * self.scale if self.scale != 1 else images

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("scale", "mean", "crop", "mirror", "random_crop", "always", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _cropped(self, images: Any, random: bool) -> Any:
        room = [ops.shape(images)[axis + 1] - side for axis, side in enumerate(self.crop or ())]
        if not random:
            (top, left), (height, width) = [(space // 2) for space in room], self.crop or (0, 0)
            return images[:, top : top + height, left : left + width]
        for axis, (side, space) in enumerate(zip(self.crop or (), room, strict=True), 1):
            places = keras.random.uniform((ops.shape(images)[0], 1), seed=self._random)
            starts = ops.cast(ops.floor(places * ops.cast(space + 1, places.dtype)), "int32")
            index = ops.minimum(starts, space) + ops.arange(side, dtype="int32")[None]
            index = index[:, :, None, None] if axis == 1 else index[:, None, :, None]
            images = ops.take_along_axis(images, index, axis=axis)
        return images
