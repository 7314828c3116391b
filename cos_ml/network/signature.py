"""The columns of a network's inputs and labels (driver side)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_ml.data.columns import INTEGRAL, Column, spark_dtype
from cos_ml.data.names import fold, last_part
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, Tensor
from cos_ml.network.losses import (
    ignored_class,
    is_builtin,
    is_chosen_by_shape,
    label_kind,
    loss_family,
    loss_name,
    losses_by_output,
    takes_logits,
)
from cos_ml.network.outputs import label_classes

if TYPE_CHECKING:
    from pyspark.sql import types as T

__all__ = ["input_columns", "label_columns", "vector_inputs", "with_vectors"]


def input_columns(network: Network, names: list[str], padding: float = 0.0) -> tuple[Column, ...]:
    """The columns of the network's inputs, in its order: matched by the inputs' names if all match, else by position.

    Several columns for a single input are joined, in their order. A column of Vectors fills two inputs that are called
    as ``cos_ml.layers.sparse_inputs`` calls them, with its indices and its values.

    Args:
        network: the network.
        names: the input columns.
        padding: the number that pads rows of an input with an unknown dimension.

    Raises:
        InvalidInputError: the number of columns is not the number of inputs, or an input can't hold ``padding``.
    """
    for tensor in network.inputs:
        _check_padding(tensor, padding)
    if len(network.inputs) == 1 and len(names) > 1:
        return (_input(network.inputs[0], ", ".join(names), "x0", padding=padding, parts=tuple(names)),)
    inputs = [tensor.name for tensor in network.inputs]
    names = with_vectors(network, names)
    _check_count("input", inputs, names)
    ordered = _matched(names, inputs) or names
    pairs = _pairs(network, ordered)
    return tuple(
        _input(tensor, name, f"x{index}", padding, paired=f"x{pairs[index]}" if index in pairs else "")
        for index, (name, tensor) in enumerate(zip(ordered, network.inputs, strict=True))
    )


def _input(tensor: Tensor, name: str, field: str, padding: float, **options: Any) -> Column:
    padding = padding if tensor.padding is None else tensor.padding
    dtype = spark_dtype(tensor.dtype)
    return Column(name, field, tensor.shape, dtype, below=tensor.below, padding=padding, **options)


def _pairs(network: Network, names: list[str]) -> dict[int, int]:
    """The inputs that hold the indices and the values of the same entries, by their places: each one's other."""
    held = {place: tensor.values for place, tensor in enumerate(network.inputs)}
    pairs: list[tuple[int, ...]] = [(place, values) for place, values in held.items() if values is not None]
    pairs += [places for places in vector_inputs(network).values() if len(places) > 1]
    places = {tuple(fold(name).rpartition(".")): place for place, name in enumerate(names)}
    for whole, dot, part in places:
        if dot and part == "indices" and (whole, dot, "values") in places:
            pairs.append((places[whole, dot, part], places[whole, dot, "values"]))
    flat = {place for place, tensor in enumerate(network.inputs) if {*tensor.shape} - {1} == {None}}
    return {one: other for pair in pairs if flat.issuperset(pair) for one, other in (pair, pair[::-1])}


def with_vectors(network: Network, names: list[str]) -> list[str]:
    """A column for each input: one of Vectors that stands for two inputs is replaced by its indices and its values.

    ``names`` as they are, where the network has no such inputs, or there is a column for each input already.
    """
    sources = vector_inputs(network)
    if len(names) == len(network.inputs) or len(names) != len(sources):
        return names
    columns = dict(zip(sources, _matched(names, list(sources)) or names, strict=True))
    found = [""] * len(network.inputs)
    for source, places in sources.items():
        parts = [".indices", ".values"] if len(places) > 1 else [""]
        for place, part in zip(places, parts, strict=True):
            found[place] = columns[source] + part
    return found


def vector_inputs(network: Network) -> dict[str, tuple[int, ...]]:
    """What fills the inputs, in order: by name one input, or those of the indices and the values of a Vector."""
    names = [tensor.name for tensor in network.inputs]
    varying = {tensor.name for tensor in network.inputs if tensor.shape == (None,)}
    found: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(names):
        source = re.sub("_(indices|values)$", "", name)
        pair = [f"{source}_indices", f"{source}_values"]
        if name in pair and varying.issuperset(pair) and source not in names:
            found[source] = tuple(map(names.index, pair))
        else:
            found[name] = (index,)
    return found


def label_columns(
    network: Network, names: list[str], loss: Any, types: Mapping[str, T.DataType] | None = None
) -> tuple[Column, ...]:
    """The columns of the labels, in the order of the network's outputs.

    A label has the shape and the number type of its column, and what the loss accepts decides; doubles stay doubles if
    the output is float64, and become float32 otherwise, as in the arrays that ``keras.Model.fit`` gets. There is a
    label for each output, or one for each output that has a loss. Names that are the outputs' keys or names go to
    those outputs.

    Args:
        network: the network.
        names: the label columns.
        loss: the argument ``loss`` of ``keras.Model.compile``; None if the network has a loss of its own.
        types: the types of the DataFrame's columns by name.

    Raises:
        InvalidInputError: the number of columns fits neither, or a column's type does not fit its loss.
    """
    outputs = network.outputs or _unknown(network, names, types or {})
    losses = losses_by_output(loss, outputs)
    trained = [index for index, one in enumerate(losses) if one is not None]
    own_step = not trained and len(names) <= len(outputs)
    wanted = range(len(outputs)) if len(names) == len(outputs) else range(len(names)) if own_step else trained
    _check_count("output", [outputs[index].key or outputs[index].name for index in wanted], names)
    columns = []
    for index, name in zip(wanted, _ordered(names, [outputs[index] for index in wanted]), strict=True):
        values = _values((types or {}).get(name))
        columns.append(_label(name, f"y{index}", outputs[index], losses[index], values))
    return tuple(columns)


def _unknown(network: Network, names: list[str], types: Mapping[str, T.DataType]) -> tuple[Tensor, ...]:
    """What stands for the outputs of a network that has only a ``train_step``: a tensor shaped as each label."""
    depths = [_values(types.get(name)).depth for name in names]
    dtype = "float64" if any(tensor.dtype == "float64" for tensor in network.inputs) else "float32"
    return tuple(Tensor(name, (None,) if depth else (), dtype) for name, depth in zip(names, depths, strict=True))


def _check_padding(tensor: Tensor, padding: float) -> None:
    """Raises InvalidInputError if rows of an input are padded with a number that its type can't hold."""
    if tensor.padding is not None:
        return
    if None in tensor.shape and tensor.below is not None and not 0 <= padding < tensor.below:
        raise InvalidInputError(
            f"Param paddingValue: expected an index from 0 to {tensor.below - 1}, because the network's input "
            f"{tensor.name!r} goes into an Embedding with {tensor.below} rows, received {padding:g}."
        )
    if None not in tensor.shape or not tensor.dtype.startswith(INTEGRAL):
        return
    is_bool = tensor.dtype == "bool"
    low, high = (0, 1) if is_bool else (np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max)
    if not (low <= padding <= high and padding.is_integer()):
        raise InvalidInputError(
            f"Param paddingValue: expected an integer from {low} to {high}, because the network's input "
            f"{tensor.name!r} is of type {tensor.dtype}, received {padding:g}."
        )


def _check_count(what: str, tensors: list[str], names: list[str]) -> None:
    if len(names) != len(tensors):
        kind = "input" if what == "input" else "label"
        raise InvalidInputError(
            f"Expected one {kind} column for each of the network's {what}s {tensors}, received {names}. Set {kind}Cols."
        )


def _ordered(names: list[str], outputs: Sequence[Tensor]) -> list[str]:
    """The names in the order of the outputs that they name; in their own order if they name none."""
    for known in ([output.key for output in outputs], [output.name for output in outputs]):
        if matched := _matched(names, known):
            return matched
    return names


def _matched(names: list[str], known: Sequence[str | None]) -> list[str] | None:
    """The columns in the order of the names of a network that they have, in any case; None unless all have one."""
    for key in (str, last_part, lambda name: fold(last_part(name)), lambda name: fold(name).replace(".", "_")):
        by_key = {key(name): name for name in names}
        wanted = [key(str(one)) for one in known]
        if len(by_key) == len(set(wanted)) == len(names) and by_key.keys() == set(wanted):
            return [by_key[one] for one in wanted]
    return None


@dataclass(frozen=True)
class _Values:
    """What one value of a column is: its number type, and how deep numbers are nested in arrays."""

    dtype: str = "float32"
    depth: int = 0
    vector: bool = False

    @property
    def integral(self) -> bool:
        """Whether the column holds only integers."""
        return self.dtype.startswith(("int", "uint"))


def _values(given: T.DataType | None) -> _Values:
    """What a column of this type holds."""
    from pyspark.sql import types as T

    if isinstance(given, T.UserDefinedType):
        return _Values("float64", 1, vector=True)
    if isinstance(given, T.BinaryType):
        return _Values("uint8", 1)
    depth = 0
    while isinstance(given, T.ArrayType):
        given, depth = given.elementType, depth + 1
    if isinstance(given, T.DecimalType):
        return _Values("int64" if given.scale == 0 and given.precision <= 18 else "float64", depth)
    kinds: dict[Any, str] = {T.BooleanType: "bool", T.ByteType: "int8", T.ShortType: "int16", T.IntegerType: "int32"}
    kinds |= {T.LongType: "int64", T.DoubleType: "float64", T.StringType: "string"}
    dtype = kinds.get(type(given), "float32")
    return _Values("float32" if dtype == "string" else dtype, depth)


def _label(name: str, field: str, output: Tensor, loss: Any, values: _Values) -> Column:
    """The column of one label."""
    kind, family = label_kind(loss), loss_family(loss, output.units)
    shapes, hint = _shapes(output, loss, values)
    ignored = ignored_class(loss) if kind == "ids" else None
    binary = family == "binary" and ignored_class(loss) is None  # an ignored label is neither 0 nor 1
    return Column(
        name,
        field,
        shapes[0],
        "float32" if values.dtype == "float64" and output.dtype != "float64" else values.dtype,
        classes=label_classes(output, loss),
        low=0.0 if binary else None,
        high=1.0 if binary else None,
        padding=ignored or 0.0,
        alternatives=tuple(shapes[1:]),
        ignored=ignored,
        hint=hint,
    )


def _shapes(output: Tensor, loss: Any, values: _Values) -> tuple[list[tuple[int | None, ...]], str]:
    """The shapes that a row of labels may have, the likeliest first, and what to say about rows of another size."""
    kind, one_axis, steps = label_kind(loss), len(output.shape) <= 1, output.shape[:-1]
    shown = f"Param loss: {loss_name(loss)} expects"
    if kind == "words":
        return [(None,)], ""
    if kind == "row ids":
        return [(1,) if values.depth else ()], ""
    if kind == "ids":
        hint = "For one-hot labels use categorical_crossentropy."
        if one_axis and values.vector:
            raise InvalidInputError(f"{shown} a class id for each row, received a Vector. {hint}")
        nested = loss_name(loss).replace("_", "").lower() == "sparsecategoricalcrossentropy" and values.depth
        return [(1,) if one_axis and nested else steps], hint
    if not values.depth and one_axis and is_builtin(loss) and (output.units or 1) > 1:
        if is_chosen_by_shape(loss):  # Keras takes them for class ids
            return [()], ""
        raise InvalidInputError(_one_number(output, loss))
    if not values.depth and (one_axis or not is_builtin(loss)):
        return [(1,) if output.shape == (1,) else ()], ""
    if is_builtin(loss):
        others = [steps] if is_chosen_by_shape(loss) and not one_axis else []
        if one_axis and loss_family(loss, output.units) is None and output.shape != (1,):
            others = [(1,)]  # Keras compares it with each unit
        return [output.shape, *others], ""
    if None in output.shape and values.depth == 1 and values.integral and not one_axis:
        return [steps], ""  # the only thing that tells ids from the rows of a ragged output
    shapes = [output.shape, *([] if one_axis else [steps]), (None,)]
    return [shape for shape in shapes if shape.count(None) <= 1], ""


def _one_number(output: Tensor, loss: Any) -> str:
    """The error for a column of numbers where the loss compares every unit of the output with a number of its own."""
    remedy = f"Pass an array of {output.units}."
    if loss_family(loss) == "categorical":
        logits = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
        remedy = f"For class ids use {logits if takes_logits(loss) else 'sparse_categorical_crossentropy'}."
    return (
        f"Param loss: {loss_name(loss)} expects {output.units} numbers per row, one for each unit of output "
        f"{output.name!r}, received one number. {remedy}"
    )
