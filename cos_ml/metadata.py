"""The metadata of output columns, by which Spark's stages know sizes, names and classes (driver side)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cos_ml.data.columns import Column
from cos_ml.data.names import resolve
from cos_ml.network.archive import Network, find_layer, load_model
from cos_ml.network.forward import shapes_of_rows
from cos_ml.network.outputs import OutputKind, num_classes

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = ["column_metadata", "input_metadata"]

MAX_NAMES = 1000  # of the numbers of a Vector: a schema of more is slow to plan with
Shape = tuple[int | None, ...]

# The shapes of the layers that transform has returned, for as long as a model has the network.
_shapes: WeakKeyDictionary[Network, dict[str, Shape | None]] = WeakKeyDictionary()


def column_metadata(
    network: Network, kinds: Sequence[str], keys: Iterable[Any], labels: Sequence[str] | None
) -> dict[Any, dict[str, Any]]:
    """The metadata of each output column, as Spark's own models write it; empty where the size is unknown.

    Args:
        network: the network.
        kinds: the kind of prediction of each of its outputs.
        keys: the columns: the name of a layer, the index of an output and "prediction" and so on, or the index of an
            input and "attributions".
        labels: the names of the classes of the first output, if they are known.
    """
    keys = list(keys)
    shapes = _layer_shapes(network, [key for key in keys if isinstance(key, str)])
    found: dict[Any, dict[str, Any]] = {}
    for key in keys:
        if isinstance(key, str):
            found[key] = _vector(shapes[key], key.rsplit("/", 1)[-1])
            continue
        index, what = key
        if what == "attributions":
            found[key] = _vector(network.inputs[index].shape, network.inputs[index].name)
            continue
        output, classes = network.outputs[index], num_classes(network.outputs[index], kinds[index])
        names = list(labels) if labels and index == 0 else None
        if what not in ("rawPrediction", "probability", "prediction"):
            found[key] = {}
        elif classes is None:
            is_number = kinds[index] == OutputKind.NUMBER
            found[key] = {"ml_attr": {}} if is_number else _vector(output.shape, output.name)
        elif what == "prediction":
            values = {"vals": names} if names else {"num_vals": classes}
            found[key] = {"ml_attr": {"type": "nominal", **values}}
        else:
            found[key] = _group(names or [str(one) for one in range(min(classes, MAX_NAMES + 1))], classes)
    return found


def input_metadata(dataset: DataFrame, column: Column) -> dict[str, Any]:
    """The metadata of a Vector with a number for each value of an input column: the names of its values, if known."""
    if column.parts:
        return _group(list(column.parts), len(column.parts)) if len(column.parts) == column.size else {}
    known = resolve(dataset, column.name).metadata
    return {"ml_attr": known["ml_attr"]} if known.get("ml_attr", {}).get("num_attrs") == column.size else {}


def _vector(shape: Shape | None, name: str) -> dict[str, Any]:
    """The metadata of a Vector with the values of a row of this shape."""
    if shape is None or None in shape:
        return {}
    size = math.prod(side for side in shape if side is not None)
    return _group([f"{name}_{index}" for index in range(min(size, MAX_NAMES + 1))], size)


def _group(names: list[str], size: int) -> dict[str, Any]:
    if len(names) > MAX_NAMES:
        return {"ml_attr": {"num_attrs": size}}
    attributes = [{"idx": index, "name": name} for index, name in enumerate(names)]
    return {"ml_attr": {"attrs": {"numeric": attributes}, "num_attrs": size}}


def _layer_shapes(network: Network, layers: list[str]) -> dict[str, Shape | None]:
    """The shape of a row of each layer's output; None if only rows can tell."""
    known = _shapes.setdefault(network, {})
    missing = [name for name in layers if name not in known]
    if missing:
        model = load_model(network.archive, network.modules)
        found = shapes_of_rows(model, [find_layer(network.layers, name) for name in missing])
        known |= dict(zip(missing, found[len(network.outputs) :], strict=True)) if found else dict.fromkeys(missing)
    return known
