"""What kind of prediction a network makes, and its columns as Spark ML writes them (driver and scoring task)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Tensor

__all__ = ["check_loss", "class_count", "label_classes", "losses_by_output", "output_kind", "predictions"]

CLASS_LOSSES = {
    "sparsecategoricalcrossentropy": "sparse",
    "categoricalcrossentropy": "categorical",
    "binarycrossentropy": "binary",
    "categoricalfocalcrossentropy": "categorical",
    "binaryfocalcrossentropy": "binary",
}  # fmt: skip
TINY = np.finfo(np.float32).tiny


def loss_name(loss: Any) -> str:
    """A loss by one spelling: "sparse_categorical_crossentropy" and SparseCategoricalCrossentropy alike."""
    name = loss.get("class_name", "") if isinstance(loss, dict) else str(loss or "")
    return name.replace("_", "").lower()


def losses_by_output(loss: Any, outputs: Sequence[Tensor]) -> list[Any]:
    """The loss of each output: Keras takes one for all of them, a list in their order, or a dict by their names."""
    if isinstance(loss, (list, tuple)):
        return [loss[index] if index < len(loss) else None for index in range(len(outputs))]
    if isinstance(loss, dict) and "class_name" not in loss:
        return [loss.get(output.name) for output in outputs]
    return [loss] * len(outputs)


def from_logits(loss: Any) -> bool:
    """Whether a serialised loss takes logits."""
    return bool(isinstance(loss, dict) and loss.get("config", {}).get("from_logits"))


def output_kind(output: Tensor, loss: Any = None) -> str:
    """The kind of prediction of an output.

    Returns:
        str: "classes" (a probability a class), "class_logits" (a logit a class), "chance" (one unit: the probability of
        class 1), "chance_logit" (one unit: its logit), "number" (one linear unit), or "vector" (anything else).
    """
    family, units = CLASS_LOSSES.get(loss_name(loss)), output.units
    if len(output.shape) > 1:
        return "vector"
    if family and from_logits(loss):
        return "chance_logit" if units == 1 else "vector" if family == "binary" else "class_logits"
    if units == 1:
        return "chance" if output.activation == "sigmoid" or family == "binary" else "number"
    if output.activation == "softmax" or family in ("sparse", "categorical"):
        return "classes"
    return "vector"


def is_classifier(head: str) -> bool:
    """Whether a head has the columns probability and rawPrediction."""
    return head in ("classes", "class_logits", "chance", "chance_logit")


def class_count(output: Tensor) -> int:
    """How many classes a classifying output tells apart."""
    return max(output.units or 1, 2)


def label_classes(output: Tensor, loss: Any) -> int | None:
    """The number of classes that label values index, or None where labels are no class indices."""
    family = CLASS_LOSSES.get(loss_name(loss))
    if family == "sparse":
        return output.units
    return 2 if family == "binary" and output.units == 1 else None


def check_loss(output: Tensor, loss: Any) -> None:
    """Raises InvalidInputError for a loss that can't train ``output``."""
    family, units = CLASS_LOSSES.get(loss_name(loss)), output.units
    what = f"output {output.name!r} with {units} unit{'s' if units != 1 else ''}"
    if family in ("sparse", "categorical") and units == 1:
        raise InvalidInputError(
            f"Param loss: {_shown(loss)} expects one unit per class, received {what}. Give the last layer as many "
            "units as there are "
            "classes, or use binary_crossentropy."
        )
    if not family or from_logits(loss):
        return
    if output.activation in ("linear", "relu", "tanh"):
        wanted = "softmax" if family != "binary" else "sigmoid"
        name = (
            next(
                prefix
                for prefix in ("SparseCategorical", "Categorical", "Binary")
                if prefix.lower() == family + ("categorical" if family == "sparse" else "")
            )
            + "Crossentropy"
        )
        raise InvalidInputError(
            f"Param loss: {_shown(loss)} expects probabilities, received {what} and activation "
            f"{output.activation!r}. End the "
            f"network with activation={wanted!r}, or use keras.losses.{name}(from_logits=True)."
        )
    if family == "sparse" and output.activation == "sigmoid":
        raise InvalidInputError(
            f"Param loss: {_shown(loss)} expects probabilities that sum to 1, received {what} and activation "
            "'sigmoid': use softmax."
        )


def _shown(loss: Any) -> str:
    return str(loss.get("class_name")) if isinstance(loss, dict) else str(loss)


def predictions(head: str, output: np.ndarray) -> dict[str, np.ndarray]:
    """An output's values as the columns of Spark ML (scoring task side).

    Args:
        head: the kind of prediction, from ``output_kind``.
        output: [rows, ...], what the network computes.

    Returns:
        dict[str, np.ndarray]: "prediction", float64 [rows] (for "vector": [rows, size]), and of a classifier
        "probability" and "rawPrediction", [rows, classes]: logits, or log-probabilities where the network computes
        probabilities; of one unit, as Spark's LogisticRegression has them, [-logit, logit].
    """
    with np.errstate(invalid="ignore", over="ignore"):  # NaN in, NaN out
        return _predictions(head, output)


def _predictions(head: str, output: np.ndarray) -> dict[str, np.ndarray]:
    flat = output.reshape(len(output), math.prod(output.shape[1:])).astype(np.float64)
    if head == "vector":
        return {"prediction": flat}
    if head == "number":
        return {"prediction": flat[:, 0]}
    if head == "classes":
        probability, raw = flat, np.log(np.maximum(flat, TINY))
    elif head == "class_logits":
        exponents = np.exp(flat - flat.max(axis=1, keepdims=True))
        probability, raw = exponents / exponents.sum(axis=1, keepdims=True), flat
    else:
        logit = flat if head == "chance_logit" else np.log(np.maximum(flat, TINY)) - np.log(np.maximum(1 - flat, TINY))
        chance = flat if head == "chance" else np.exp(-np.logaddexp(0, -flat))
        probability, raw = np.hstack([1 - chance, chance]), np.hstack([-logit, logit])
    prediction = np.where(np.isnan(flat).any(axis=1), np.nan, probability.argmax(axis=1))
    return {"prediction": prediction, "probability": probability, "rawPrediction": raw}
