"""The weights of a classifier's classes, as the ranks take them (driver side)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network
from cos_ml.network.losses import losses_by_output
from cos_ml.network.outputs import is_classifier, output_kind
from cos_ml.spec import ClassWeights

__all__ = ["BALANCED", "with_class_weights"]

BALANCED = "balanced"


def with_class_weights(
    value: dict[int, float] | str | None, network: Network, labels: tuple[Column, ...], loss: Any
) -> tuple[tuple[Column, ...], ClassWeights | None]:
    """The columns of the labels, whose classes are then checked row by row, and what the ranks take of ``value``.

    Args:
        value: the Param classWeights: weights by class, or "balanced"; None or no weights for none.
        network: the network.
        labels: the columns of the labels, from ``signature.label_columns``.
        loss: the argument ``loss`` of ``keras.Model.compile``; None if the network has a loss of its own.

    Raises:
        InvalidInputError: there is not exactly one label of a classifier, or no class of this number.
    """
    if not value:
        return labels, None
    place, count = _classifier(network, labels, loss)
    label = labels[place]
    if label.shape in ((), (1,)):  # ids; else one-hot rows
        label = replace(label, classes=count, low=None, high=None)
    labels = (*labels[:place], replace(label, alternatives=()), *labels[place + 1 :])
    if value == BALANCED:
        return labels, ClassWeights(label.field, count)
    assert isinstance(value, dict)
    if unknown := sorted(set(value) - set(range(count))):
        raise InvalidInputError(
            f"Param classWeights: expected classes from 0 to {count - 1}, because the network's output has {count} "
            f"classes, received {unknown[0]}."
        )
    return labels, ClassWeights(label.field, count, tuple(value.get(index, 1.0) for index in range(count)))


def _classifier(network: Network, labels: tuple[Column, ...], loss: Any) -> tuple[int, int]:
    """The place among ``labels`` of the one whose output is a classifier, and the number of its classes."""
    losses, found = losses_by_output(loss, network.outputs), []
    for place, label in enumerate(labels):
        index = int(label.field[1:])
        if index < len(network.outputs) and is_classifier(output_kind(network.outputs[index], losses[index])):
            units = network.outputs[index].units or 1
            found.append((place, 2 if units == 1 else units))
    if len(found) != 1:
        outputs = [output.key or output.name for output in network.outputs]
        raise InvalidInputError(
            "Param classWeights: expected one label that is a class, of an output that ends in softmax or sigmoid or "
            f"has a cross-entropy as its loss; the outputs {outputs} have {len(found)}. Use weightCol instead."
        )
    return found[0]
