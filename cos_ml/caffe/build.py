"""Caffe's layer types, each with what builds its Keras layers (driver side)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cos_ml.caffe.blob import Blob

__all__ = ["BUILDERS", "Builder"]

# Message of the layer, its bottoms, its name in Keras and the phase -> its tops.
Builder = Callable[[Any, list[Blob], str, str], list[Blob]]

BUILDERS: dict[str, Builder] = {}
