"""Caffe's layer types, each with what builds its Keras layers (driver side)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from cos_ml.caffe import build_elements as elements
from cos_ml.caffe import build_images as images
from cos_ml.caffe import build_shapes as shapes
from cos_ml.caffe.blob import Blob

__all__ = ["BOTTOMS", "BUILDERS", "Builder"]

# Message of the layer, its bottoms and its name in Keras -> its tops.
Builder = Callable[[Any, list[Blob], str], list[Blob]]

BUILDERS: dict[str, Builder] = {
    **elements.ELEMENTWISE,
    "ArgMax": shapes.argmax,
    "BatchNorm": elements.batch_norm,
    "Bias": elements.bias,
    "Concat": shapes.concat,
    "Convolution": images.convolution,
    "Crop": shapes.crop,
    "Deconvolution": images.deconvolution,
    "Eltwise": shapes.eltwise,
    "Embed": images.embed,
    "Flatten": shapes.flatten,
    "InnerProduct": images.inner_product,
    "LRN": elements.lrn,
    "LSTM": images.recurrent,
    "MVN": elements.mvn,
    "PReLU": elements.prelu,
    "Permute": shapes.permute,
    "Pooling": images.pooling,
    "RNN": images.recurrent,
    "Reshape": shapes.reshape,
    "Scale": elements.scale,
    "Silence": shapes.silence,
    "Slice": shapes.slices,
    "Softmax": elements.softmax,
    "Split": shapes.split,
}

# How many bottoms a type takes, at least and at most; others take one.
BOTTOMS: dict[str, tuple[int, float]] = {
    "Bias": (1, 2),
    "Concat": (1, math.inf),
    "Convolution": (1, math.inf),
    "Crop": (2, 2),
    "Deconvolution": (1, math.inf),
    "Eltwise": (2, math.inf),
    "LSTM": (2, 3),
    "RNN": (2, 3),
    "Scale": (1, 2),
    "Silence": (1, math.inf),
}
