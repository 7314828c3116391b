"""The columns of a network's inputs and labels (driver side)."""

from __future__ import annotations

from typing import Any

from cos_ml.data.columns import Column, spark_dtype
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, Tensor
from cos_ml.network.outputs import label_classes, loss_family, losses_by_output

__all__ = ["input_columns", "label_columns"]


def input_columns(network: Network, names: list[str]) -> tuple[Column, ...]:
    """The columns of the network's inputs, in its order: matched by the inputs' names if all match, else by position.

    Raises:
        InvalidInputError: the number of columns is not the number of inputs.
    """
    inputs = [tensor.name for tensor in network.inputs]
    _check_count("input", inputs, names)
    ordered = inputs if set(names) == set(inputs) else names
    return tuple(
        Column(name, f"x{index}", tensor.shape, spark_dtype(tensor.dtype))
        for index, (name, tensor) in enumerate(zip(ordered, network.inputs, strict=True))
    )


def label_columns(network: Network, names: list[str], loss: Any) -> tuple[Column, ...]:
    """The columns of the labels, one per output, in the network's order.

    Raises:
        InvalidInputError: the number of columns is not the number of outputs.
    """
    outputs = network.outputs
    _check_count("output", [output.name for output in outputs], names)
    losses = losses_by_output(loss, outputs)
    return tuple(_label(name, f"y{index}", outputs[index], losses[index]) for index, name in enumerate(names))


def _check_count(what: str, tensors: list[str], names: list[str]) -> None:
    if len(names) != len(tensors):
        kind = "input" if what == "input" else "label"
        raise InvalidInputError(
            f"Expected one {kind} column for each of the network's {what}s {tensors}, received {names}. Set {kind}Cols."
        )


def _label(name: str, field: str, output: Tensor, loss: Any) -> Column:
    sparse, one_axis = loss_family(loss) == "sparse", len(output.shape) <= 1
    if one_axis and (sparse or output.units == 1):
        shape: tuple[int | None, ...] = ()
    else:
        shape = output.shape[:-1] if sparse else output.shape
    return Column(name, field, shape, classes=label_classes(output, loss))
