"""The Params by which DeepNetModel explains its predictions, and their checks against its network (driver side)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cos_ml.accessors import AttributionAccessors
from cos_ml.converters import attribution_baseline, attribution_target, integer, string
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network
from cos_ml.network.integrated_gradients import Attribution, check_attribution
from cos_ml.network.outputs import OutputKind, num_classes
from cos_ml.params import DeclaredParam
from cos_ml.training_params import TrainingParams

__all__ = ["ATTRIBUTIONS", "AttributionParams"]

ATTRIBUTIONS = "attributions"  # in the keys of output columns, after the place of the input


class AttributionParams(AttributionAccessors, TrainingParams):
    """The Params of DeepNetModel alone: integrated gradients of its first output."""

    attributionsCol = DeclaredParam(
        string,
        "output column of what each value of the input contributes to the prediction (integrated gradients), a Vector; "
        "of a network with several inputs a column for each, with '_' and the input's name. Unset: none",
    )
    attributionTarget = DeclaredParam(
        attribution_target,
        "the class, as an index or a label, or the index of the number, of the first output that is attributed. Unset: "
        "each row's predicted class",
    )
    attributionBaseline = DeclaredParam(
        attribution_baseline,
        "the input that attributions compare a row with: a number for all of its values, a list with one for each, or "
        "a dict of these by name of the input, where those that are left out have 0",
        0.0,
    )
    attributionSteps = DeclaredParam(
        integer(1), "points between baseline and row (>= 1) at which attributions compute gradients", 50
    )

    def attribution(
        self, network: Network, columns: Sequence[Column], kind: OutputKind, labels: Sequence[str] | None
    ) -> Attribution | None:
        """What ``transform`` attributes; None if it attributes nothing.

        Args:
            network: the network.
            columns: the columns of its inputs.
            kind: the kind of prediction of its first output.
            labels: the names of the classes, if they are known.

        Raises:
            InvalidInputError: a Param does not fit the network, or gradients do not reach an input.
        """
        if not self.value_or_none(self.attributionsCol):
            return None
        places = _attributed(columns)
        found = Attribution(
            places=places,
            baselines=self._baselines(network, columns, places),
            steps=self.getAttributionSteps(),
            target=self._target(network, kind, labels),
            one_unit=kind in (OutputKind.PROBABILITY, OutputKind.LOGIT),
        )
        check_attribution(network, found)
        return found

    def attribution_columns(self, network: Network, columns: Sequence[Column]) -> dict[tuple[int, str], str]:
        """The names of the output columns, by the place of the input and ATTRIBUTIONS."""
        name = self.value_or_none(self.attributionsCol)
        if not name:
            return {}
        several = len(columns) > 1
        return {
            (at, ATTRIBUTIONS): f"{name}_{network.inputs[at].name}" if several else name for at in _attributed(columns)
        }

    def _target(self, network: Network, kind: OutputKind, labels: Sequence[str] | None) -> int | None:
        """The index of what is attributed; None for the predicted class."""
        output, target = network.outputs[0], self.value_or_none(self.attributionTarget)
        classes = num_classes(output, kind)
        if None in output.shape:
            raise InvalidInputError(
                f"Param attributionsCol: expected a first output of a known size, received {output.name!r} of shape "
                f"{output.shape}. Unset attributionsCol."
            )
        size = classes or math.prod(side or 1 for side in output.shape)
        if isinstance(target, str):
            if target not in (labels or ()):
                raise InvalidInputError(
                    f"Param attributionTarget: expected an index, or one of the labels {list(labels or [])}, received "
                    f"{target!r}."
                )
            return list(labels or []).index(target)
        if target is not None and target >= size:
            what = "classes" if classes else "numbers"
            raise InvalidInputError(
                f"Param attributionTarget: output {output.name!r} has {size} {what}, expected an index from 0 to "
                f"{size - 1}, received {target}."
            )
        if target is None and classes is None and size > 1:
            raise InvalidInputError(
                f"Param attributionTarget is not set, but output {output.name!r} computes {size} numbers and no "
                "classes: set the index of the number to attribute."
            )
        return target if classes else target or 0

    def _baselines(
        self, network: Network, columns: Sequence[Column], places: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """The baseline of each of the inputs at ``places``."""
        given: Any = self.getAttributionBaseline()
        names = [network.inputs[at].name for at in places]
        by_name = given if isinstance(given, dict) else dict.fromkeys(names, given)
        if unknown := sorted({*by_name} - {*names}):
            raise InvalidInputError(
                f"Param attributionBaseline: expected names of the inputs {names}, received {unknown[0]!r}."
            )
        found = []
        for at, name in zip(places, names, strict=True):
            value = by_name.get(name, 0.0)
            values = tuple(value) if isinstance(value, list) else (value,)
            _check_baseline(name, columns[at], values, isinstance(value, list))
            found.append(values)
        return tuple(found)


def _attributed(columns: Sequence[Column]) -> tuple[int, ...]:
    """The places of the inputs that are attributed: of a sparse Vector the values, whose indices stay as they are."""
    return tuple(at for at, column in enumerate(columns) if not column.paired or column.dtype.startswith("float"))


def _check_baseline(name: str, column: Column, values: tuple[float, ...], is_row: bool) -> None:
    """Raises InvalidInputError for a baseline that is no row of this input."""
    if is_row and len(values) != column.size:
        size = "one number, because its rows differ in length" if column.size is None else f"{column.size} numbers"
        raise InvalidInputError(
            f"Param attributionBaseline: expected {size} for input {name!r}, received a list of {len(values)}."
        )
    if column.dtype.startswith("float"):
        return
    low, high = -math.inf, math.inf
    if column.below is not None:
        low, high = 0, column.below - 1
    elif column.dtype.startswith(("int", "uint")):
        low, high = np.iinfo(column.dtype).min, np.iinfo(column.dtype).max
    bad = [one for one in values if not (low <= one <= high and float(one).is_integer())]
    if bad:
        raise InvalidInputError(
            f"Param attributionBaseline: expected integers from {low} to {high} for input {name!r} of type "
            f"{column.dtype}, received {bad[0]:g}."
        )
