"""Caffe's loss layers and its accuracy as what a Keras model is compiled with (driver side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from cos_ml.caffe.blob import Blob
from cos_ml.caffe.losses import (
    CaffeAccuracy,
    CaffeContrastiveLoss,
    CaffeEuclideanLoss,
    CaffeHingeLoss,
    CaffeSigmoidCrossEntropy,
    CaffeSoftmaxLoss,
    ComputedLoss,
    Pair,
)
from cos_ml.caffe.problems import problem, unknown_sides
from cos_ml.caffe.prototxt import spelled
from cos_ml.caffe.schema import enum_name

__all__ = ["LOSSES", "accuracy", "keras_loss", "scores_last", "training_output"]

LOSSES = ("ContrastiveLoss", "EuclideanLoss", "HingeLoss", "SigmoidCrossEntropyLoss", "SoftmaxWithLoss")


def training_output(
    layer: Any, bottoms: Sequence[Blob | None], name: str, weight: float = 1.0
) -> tuple[Any, Any | None]:
    """The output of a network that a loss layer trains, and the loss to compile it with.

    Args:
        layer: the message of the loss layer.
        bottoms: its blobs; None for a label, which is a column and not computed by the network.
        name: of the Keras layers that are needed for it.
        weight: of the loss, where the network adds it itself.

    Returns:
        tuple: the output, and the loss; None where both blobs are computed, and a layer adds the loss.
    """
    wanted = 3 if layer.type == "ContrastiveLoss" else 2
    if len(bottoms) != wanted:
        raise problem(layer, f"expected {wanted} bottoms, received {len(bottoms)}")
    first = bottoms[0]
    if first is None or (layer.type == "ContrastiveLoss" and bottoms[1] is None):
        raise problem(layer, f"its bottom {layer.bottom[0 if first is None else 1]!r} is a label")
    loss = keras_loss(layer, bottoms)
    if layer.type == "ContrastiveLoss":
        pair = Pair(name=f"{name}_pair")([first.tensor, bottoms[1].tensor])  # type: ignore[union-attr]
        labels = bottoms[2]
        return (pair, loss) if labels is None else (
            ComputedLoss(loss, weight, name=name)([pair, labels.tensor]), None)  # fmt: skip
    scores = scores_last(layer, first, name)
    labels = bottoms[1]
    if labels is None:
        return scores.tensor, loss
    if layer.type in ("EuclideanLoss", "SigmoidCrossEntropyLoss"):
        if _count(labels) != _count(scores):
            raise problem(layer, f"expected two bottoms of one size, received {first.shape} and {labels.shape}")
        if labels.ndim == scores.ndim:
            labels = labels.ordered(scores.axes, f"{name}_labels")
        elif labels.ndim > 2 or scores.ndim > 2:
            scores, labels = (blob.in_caffe_order(f"{name}_order{at}") for at, blob in enumerate((scores, labels)))
    return ComputedLoss(loss, weight, name=name)([scores.tensor, labels.tensor]), None


def keras_loss(layer: Any, bottoms: Sequence[Blob | None]) -> Any:
    """The Keras loss of a loss layer: its scores have their classes on the last axis, as from ``training_output``."""
    first, name = bottoms[0], spelled(layer.name)
    assert first is not None
    if first.rows and layer.type in ("HingeLoss", "ContrastiveLoss"):
        raise problem(layer, f"expected the rows on axis 0, received {first.shape} with rows on axis {first.rows}")
    if layer.type == "EuclideanLoss":
        return CaffeEuclideanLoss(bool(first.rows), name)
    if layer.type == "HingeLoss":
        return CaffeHingeLoss(enum_name(layer.hinge_loss_param, "norm") == "L2", name=name)
    if layer.type == "ContrastiveLoss":
        given = layer.contrastive_loss_param
        return CaffeContrastiveLoss(given.margin, given.legacy_version, name)
    if layer.type not in LOSSES:
        raise problem(layer, f"this type of loss is not supported; {', '.join(LOSSES)} are")
    given = layer.loss_param
    ignored = given.ignore_label if given.HasField("ignore_label") else None
    if layer.type == "SigmoidCrossEntropyLoss":
        return CaffeSigmoidCrossEntropy(
            _normalization(given, "batch_size"), ignored, time_first=bool(first.rows), name=name
        )
    axis = first.caffe_axis(layer.softmax_param.axis)
    normalization = _normalization(given, "valid")
    if ignored is None and normalization in ("valid", "full"):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, name=name)
    if normalization == "valid":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, name=name)
    return CaffeSoftmaxLoss(normalization, ignored, axis, name=name)


def accuracy(layer: Any, bottoms: Sequence[Blob | None]) -> CaffeAccuracy:
    """The metric of an Accuracy layer, for an output whose classes are on the last axis."""
    given = layer.accuracy_param
    if bottoms[0] is None or len(layer.top) > 1:
        raise problem(layer, "its second top, the accuracy of each class, is not supported" if bottoms[0] else
                      f"its bottom {layer.bottom[0]!r} is a label")  # fmt: skip
    if given.top_k < 1:
        raise problem(layer, f"expected a top_k >= 1, received {given.top_k}")
    ignored = given.ignore_label if given.HasField("ignore_label") else None
    return CaffeAccuracy(given.top_k, ignored, spelled(layer.name))


def scores_last(layer: Any, blob: Blob, name: str) -> Blob:
    """A blob of scores with the axis of the classes last; other losses take it as it is."""
    if layer.type not in ("SoftmaxWithLoss", "HingeLoss"):
        return blob
    axis = blob.caffe_axis(layer.softmax_param.axis if layer.type == "SoftmaxWithLoss" else 1)
    if axis == blob.rows:
        raise problem(layer, f"axis {axis} holds the rows of a batch")
    if layer.type == "HingeLoss" and blob.ndim > 2:
        if None in blob.shape[1:]:
            raise unknown_sides(layer, blob.shape)
        ordered = blob.in_caffe_order(f"{name}_permute")
        return Blob.of(keras.layers.Reshape((_count(blob),), name=f"{name}_flatten")(ordered.tensor))
    others = [other for other in range(blob.ndim) if other not in (axis, blob.rows)]
    ordered = blob.ordered((blob.rows, *others, axis), f"{name}_permute")
    if blob.rows == 0 and ordered.tensor.shape[1:-1] and all(side == 1 for side in ordered.tensor.shape[1:-1]):
        # One place: a row's label is a number, and the output a classifier's.
        size = ordered.tensor.shape[-1]
        return Blob.of(keras.layers.Reshape((size,), name=f"{name}_flatten")(ordered.tensor))
    return ordered


def _count(blob: Blob) -> int:
    return math.prod(side or 1 for at, side in enumerate(blob.shape) if at != blob.rows)


def _normalization(given: Any, default: str) -> str:
    if given.HasField("normalization"):
        return enum_name(given, "normalization").lower()
    if given.HasField("normalize"):
        return "valid" if given.normalize else "batch_size"
    return default
