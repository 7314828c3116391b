"""Weights that several of Caffe's layers share by ``param { name }`` (driver side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from cos_ml.caffe.blob import Blob
from cos_ml.caffe.convert import blob_shapes, takes_blobs
from cos_ml.caffe.problems import problem

__all__ = ["Sharing"]

FIELDS = ("convolution_param", "inner_product_param", "embed_param", "prelu_param", "scale_param", "bias_param",
          "batch_norm_param")  # fmt: skip
FILLERS = ("filler", "weight_filler", "bias_filler")


class Sharing:
    """The layers so far whose weights have names.

    Attributes:
        owners: by a layer's name in Keras: that of the layer whose weights it uses.
    """

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self._first: dict[str, tuple[Any, tuple[str, ...], list[Any], tuple[int, ...]]] = {}

    def remember(self, layer: Any, bottoms: Sequence[Blob], tops: Sequence[Blob]) -> None:
        """Keep what a later layer may share."""
        given = tuple(spec.name for spec in layer.param)
        new = [one for one in given if one and one not in self._first]
        if new:
            chain = _chain(bottoms, tops)
            for one in new:
                self._first[one] = layer, given, chain, tops[0].axes

    def again(self, layer: Any, bottoms: Sequence[Blob], name: str) -> list[Blob] | None:
        """The tops of a layer all of whose weights are an earlier layer's; None where it shares none."""
        given = tuple(spec.name for spec in layer.param)
        found = [self._first[one] for one in given if one in self._first]
        if not found:
            return None
        first, names, chain, axes = found[0]
        kernel = next((one for one in chain if takes_blobs(one)), None)
        if (
            names != given or not all(given) or len(bottoms) != 1 or kernel is None
            or len(blob_shapes(kernel)) != len(given)
        ):  # fmt: skip
            raise problem(
                layer,
                f"it shares weights with layer {first.name!r}: possible where both have one bottom and one top, "
                f"and share all their weights; their param names are {list(names)} and {list(given)}",
            )
        if _settings(first) != _settings(layer):
            raise problem(layer, f"it shares weights with layer {first.name!r}, but its other fields differ")
        tensor = bottoms[0].tensor
        for one in chain:
            tensor = one(tensor)
        self.owners[name] = kernel.name
        return [Blob(keras.layers.Identity(name=name)(tensor), axes)]


def _settings(layer: Any) -> list[Any]:
    """A layer's fields but for its fillers, which the first layer's weights come from."""
    found = [layer.type]
    for field in FIELDS:
        given = type(getattr(layer, field))()
        given.CopyFrom(getattr(layer, field))
        for filler in FILLERS:
            if filler in given.DESCRIPTOR.fields_by_name:
                given.ClearField(filler)
        found.append(given)
    return found


def _chain(bottoms: Sequence[Blob], tops: Sequence[Blob]) -> list[Any]:
    """The Keras layers between a bottom and a top, where they follow one another."""
    if len(bottoms) != 1 or len(tops) != 1:
        return []
    layers = keras.Model(bottoms[0].tensor, tops[0].tensor).layers
    return [one for one in layers if not isinstance(one, keras.layers.InputLayer)]
