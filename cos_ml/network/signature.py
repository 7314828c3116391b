"""The columns of a network's inputs and labels (driver side)."""

from __future__ import annotations

from typing import Any

from cos_ml.data.columns import Column, spark_dtype
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, Tensor
from cos_ml.network.outputs import CLASS_LOSSES, label_classes, loss_name, losses_by_output

__all__ = ["input_columns", "label_columns"]


def input_columns(network: Network, names: list[str]) -> tuple[Column, ...]:
    """The columns of the network's inputs, in its order: by the inputs' names where they match, else by order.

    Raises:
        InvalidInputError: there are more or fewer columns than inputs.
    """
    inputs = network.inputs
    if len(names) != len(inputs):
        raise InvalidInputError(
            f"The network has {len(inputs)} inputs, {[tensor.name for tensor in inputs]}, and there are {len(names)} "
            f"input columns, {names}: "
            "expected one each. Set inputCols."
        )
    if set(names) == {tensor.name for tensor in inputs}:
        names = [tensor.name for tensor in inputs]
    return tuple(
        Column(name, f"x{index}", tensor.shape, spark_dtype(tensor.dtype))
        for index, (name, tensor) in enumerate(zip(names, inputs, strict=True))
    )


def label_columns(network: Network, names: list[str], loss: Any) -> tuple[Column, ...]:
    """The columns of the labels, one per output, in the network's order.

    Raises:
        InvalidInputError: there are more or fewer columns than outputs.
    """
    outputs = network.outputs
    if len(names) != len(outputs):
        raise InvalidInputError(
            f"The network has {len(outputs)} outputs, {[output.name for output in outputs]}, and there are "
            f"{len(names)} label columns, {names}: expected one each. Set labelCols."
        )
    losses = losses_by_output(loss, outputs)
    return tuple(_label(name, f"y{index}", outputs[index], losses[index]) for index, name in enumerate(names))


def _label(name: str, field: str, output: Tensor, loss: Any) -> Column:
    sparse = CLASS_LOSSES.get(loss_name(loss)) == "sparse"
    scalar = (output.units == 1 and len(output.shape) <= 1) or sparse
    shape = () if scalar and len(output.shape) <= 1 else output.shape[:-1] if sparse else output.shape
    return Column(name, field, shape, classes=label_classes(output, loss))
