"""The Keras model of a Caffe network, compiled with its losses (driver side)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from cos_ml.caffe.blob import Blob
from cos_ml.caffe.build_losses import accuracy, training_output
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_internals import inputs_of_calls, producer

__all__ = ["Read", "assembled"]

logger = logging.getLogger(__name__)
# A loss or Accuracy layer, its bottoms (None for one that is a label), and its name in Keras.
Read = tuple[Any, list[Blob | None], str]


def assembled(
    name: str, inputs: Sequence[Any], losses: Sequence[Read], metrics: Sequence[Read], loose: Mapping[str, Blob],
    softmaxes: Mapping[int, Any], own: Sequence[Any],
) -> keras.Model:  # fmt: skip
    """The model whose outputs are what the losses read, in order, then the tops that nobody reads.

    Args:
        name: of the model.
        inputs: Keras inputs.
        losses: the loss layers.
        metrics: the Accuracy layers.
        loose: the tops that nobody reads.
        softmaxes: by the id of the tensor of a Softmax layer: the tensor of its scores.
        own: the Keras layers that have names of the file; all others are helpers.
    """
    own = list(own)
    outputs: list[Any] = []
    compiled: list[Any] = []
    weights: list[float] = []
    for layer, bottoms, loss_name in losses:
        weight = layer.loss_weight[0] if layer.loss_weight else 1.0
        output, loss = training_output(layer, bottoms, loss_name, weight)
        if loss is None:
            own.append(producer(output))
        if any(output is other for other in outputs):
            output = keras.layers.Identity(name=f"{loss_name}_scores")(output)
        outputs.append(output)
        compiled.append(loss)
        weights.append(weight)
    others = [blob.tensor for blob in loose.values()]
    others = [tensor for at, tensor in enumerate(others) if not any(tensor is one for one in [*outputs, *others[:at]])]
    if not outputs and not others:
        raise InvalidInputError("The network has no outputs: expected a top that no other layer reads, or a loss.")
    every = [*outputs, *others]
    _rename_helpers(every, own)
    model = keras.Model(_single(inputs), _single(every), name=name)
    if losses:
        found = _metrics(losses, metrics, softmaxes)
        rest = [None] * len(others)
        scaled = [*weights, *rest] if any(weight != 1 for weight in weights) and any(compiled) else None
        model.compile(
            optimizer="sgd",
            loss=_single([*compiled, *rest]) if any(compiled) else None,  # layers may add all losses themselves
            loss_weights=None if scaled is None else scaled,
            metrics=_compiled_metrics([*found, *rest]),
        )
    return model


def _rename_helpers(outputs: Sequence[Any], own: Sequence[Any]) -> None:
    """Append ``_`` to the names of helper layers that other layers have, until they are free."""
    kept = {id(layer): layer.name for layer in own if layer is not None}
    taken, seen, waiting = set(kept.values()), set[int](), list(outputs)
    while waiting:
        layer = producer(waiting.pop())
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        waiting += [tensor for call in inputs_of_calls(layer) for tensor in call]
        if id(layer) not in kept:
            while layer.name in taken:
                layer.name += "_"
            taken.add(layer.name)


def _single(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _compiled_metrics(found: Sequence[Any]) -> Any:
    if not any(found):
        return None
    return found[0] if len(found) == 1 else [one or [] for one in found]


def _metrics(losses: Sequence[Read], metrics: Sequence[Read], softmaxes: Mapping[int, Any]) -> list[list[Any]]:
    """The metrics of each loss's output."""
    found: list[list[Any]] = [[] for _ in losses]
    for layer, bottoms, _ in metrics:
        metric = accuracy(layer, bottoms)
        tensor = bottoms[0].tensor if bottoms[0] else None
        scores = softmaxes.get(id(tensor), tensor)
        places = [
            at
            for at, (loss, read, _) in enumerate(losses)
            if read[0] is not None and read[0].tensor is scores and loss.bottom[-1] == layer.bottom[-1]
        ]
        if places:
            found[places[0]].append(metric)
        else:
            logger.warning("Caffe layer %r (Accuracy) is passed over: no loss reads its bottoms %s.", layer.name,
                           ", ".join(layer.bottom))  # fmt: skip
    return found
