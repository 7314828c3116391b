"""The kind of prediction that an output of a network is, and its columns in Spark ML (driver and scoring task side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Tensor
from cos_ml.network.losses import label_kind, loss_family, loss_name, losses_by_output, takes_logits

__all__ = [
    "OutputKind",
    "check_loss",
    "is_classifier",
    "label_classes",
    "names_of",
    "num_classes",
    "output_kind",
    "output_kinds",
    "predictions",
]

# Family -> the activation that it expects, and the loss that does without it.
EXPECTED = {
    "sparse": ("softmax", "SparseCategoricalCrossentropy"),
    "categorical": ("softmax", "CategoricalCrossentropy"),
    "binary": ("sigmoid", "BinaryCrossentropy"),
}
TINY = np.finfo(np.float32).tiny


class OutputKind(StrEnum):
    """What the numbers of an output mean."""

    CLASS_PROBABILITIES = "classes"  # a probability per class
    CLASS_LOGITS = "class_logits"  # a logit per class
    PROBABILITY = "probability"  # one unit: the probability of class 1
    LOGIT = "logit"  # one unit: the logit of class 1
    NUMBER = "number"  # one unit that is no class
    VECTOR = "vector"  # anything else


def output_kind(output: Tensor, loss: Any = None) -> OutputKind:
    """The kind of prediction of an output, from its shape, its activation and its loss."""
    family, units = loss_family(loss, output.units), output.units
    if len(output.shape) > 1:
        return OutputKind.VECTOR
    if family and takes_logits(loss):
        if units == 1:
            return OutputKind.LOGIT
        return OutputKind.VECTOR if family == "binary" else OutputKind.CLASS_LOGITS
    if units == 1:
        is_probability = output.activation == "sigmoid" or family == "binary"
        return OutputKind.PROBABILITY if is_probability else OutputKind.NUMBER
    if output.activation == "softmax" or family in ("sparse", "categorical"):
        return OutputKind.CLASS_PROBABILITIES
    return OutputKind.VECTOR


def output_kinds(outputs: Sequence[Tensor], loss: Any) -> tuple[OutputKind, ...]:
    """The kind of prediction of each output; ``loss`` is the argument of ``keras.Model.compile``."""
    losses = losses_by_output(loss, outputs)
    return tuple(output_kind(output, one) for output, one in zip(outputs, losses, strict=True))


def names_of(outputs: Sequence[Tensor]) -> list[str]:
    """Names that tell outputs apart: the layer's, and where a layer computes several, their keys or places."""
    layers = [output.name for output in outputs]
    return [
        output.name if layers.count(output.name) == 1 else output.key or f"{output.name}_{place}"
        for place, output in enumerate(outputs)
    ]


def is_classifier(kind: str) -> bool:
    """Whether an output of this kind has the columns probability and rawPrediction."""
    return kind not in (OutputKind.NUMBER, OutputKind.VECTOR)


def num_classes(output: Tensor, kind: str) -> int | None:
    """The number of classes of an output of this kind; None for one that is no classifier's."""
    if not is_classifier(kind):
        return None
    return 2 if kind in (OutputKind.PROBABILITY, OutputKind.LOGIT) else output.units


def label_classes(output: Tensor, loss: Any) -> int | None:
    """The number of classes that label values index, or None where labels are not class ids."""
    return output.units if label_kind(loss) in ("ids", "words") else None


def check_loss(output: Tensor, loss: Any) -> None:
    """Raises InvalidInputError for a loss that can't train ``output``."""
    family, units, activation = loss_family(loss, output.units), output.units, output.activation
    if family is None:
        return
    name = loss_name(loss)
    received = f"received output {output.name!r} with {units} unit{'s' if units != 1 else ''}"
    if family != "binary" and units == 1:
        raise InvalidInputError(
            f"Param loss: {name} expects one unit per class, {received}. Give the last layer as many units as there "
            "are classes, or use binary_crossentropy."
        )
    if takes_logits(loss):
        return
    if activation in ("linear", "relu", "tanh"):
        expected, instead = EXPECTED[family]
        raise InvalidInputError(
            f"Param loss: {name} expects probabilities, {received} and activation {activation!r}. End the network "
            f"with activation={expected!r}, or use keras.losses.{instead}(from_logits=True)."
        )
    if family == "sparse" and activation == "sigmoid":
        raise InvalidInputError(
            f"Param loss: {name} expects probabilities that sum to 1, {received} and activation 'sigmoid'. Use softmax."
        )


def predictions(kind: str, output: np.ndarray, thresholds: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """An output's values as the columns of Spark ML (scoring task side).

    Args:
        kind: the kind of prediction, from ``output_kind``.
        output: [rows, ...], the values that the network computed.
        thresholds: a classifier's, one per class: the class with the largest probability / threshold is predicted.

    Returns:
        dict[str, np.ndarray]: "prediction", float64 [rows] (for a vector: [rows, size]). For a classifier also
        "probability" and "rawPrediction", [rows, classes]: logits, or log-probabilities where the network computes
        probabilities; for one unit [-logit, logit], as from Spark's LogisticRegression. NaN gives NaN.
    """
    flat = output.reshape(len(output), math.prod(output.shape[1:])).astype(np.float64)
    if kind == OutputKind.VECTOR:
        return {"prediction": flat}
    if kind == OutputKind.NUMBER:
        return {"prediction": flat[:, 0]}
    with np.errstate(invalid="ignore", over="ignore"):  # of NaN and large logits
        if kind == OutputKind.CLASS_PROBABILITIES:
            probability, raw = flat, _log(flat)
        elif kind == OutputKind.CLASS_LOGITS:
            exponents = np.exp(flat - flat.max(axis=1, keepdims=True))
            probability, raw = exponents / exponents.sum(axis=1, keepdims=True), flat
        else:
            given = kind == OutputKind.LOGIT
            logit = flat if given else _log(flat) - _log(1 - flat)
            positive = np.exp(-np.logaddexp(0, -flat)) if given else flat
            probability, raw = np.hstack([1 - positive, positive]), np.hstack([-logit, logit])
        prediction = np.where(np.isnan(flat).any(axis=1), np.nan, _chosen(probability, thresholds))
    return {"prediction": prediction, "probability": probability, "rawPrediction": raw}


def _chosen(probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The predicted class of each row. As in Spark, a threshold of 0 wins, but not if the probability is 0 as well."""
    if not len(thresholds):
        return probability.argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = probability / np.asarray(thresholds)
    return np.where(np.isnan(scaled), -np.inf, scaled).argmax(axis=1)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, TINY))
