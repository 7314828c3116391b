"""Pipelines and searches as MLflow shows them: a name for each stage, and its Params as text (driver side)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.ml import Estimator, Transformer
from pyspark.ml.evaluation import Evaluator

from cos_ml.estimator import DeepNetEstimator

__all__ = ["names_of", "networks_in", "params_of", "walk"]

STAGES = (Estimator, Transformer, Evaluator)


def walk(stage: Any) -> Iterator[Any]:
    """The stage, and all that its Params hold, depth first; of a DeepNetEstimator, the Param model is no stage."""
    yield stage
    for value in [] if isinstance(stage, DeepNetEstimator) else _values(stage).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, STAGES):
                yield from walk(one)


def networks_in(stage: Any) -> list[DeepNetEstimator]:
    """The estimators of networks in a stage."""
    return [one for one in walk(stage) if isinstance(one, DeepNetEstimator)]


def names_of(stage: Any) -> dict[str, str]:
    """By uid, the names of a stage and those inside: the class, numbered where there are several, as MLflow does."""
    kinds = {one.uid: type(one).__name__ for one in walk(stage)}
    numbers, total = Counter[str](), Counter(kinds.values())
    names = {}
    for uid, kind in kinds.items():
        numbers[kind] += 1
        names[uid] = f"{kind}_{numbers[kind]}" if total[kind] > 1 else kind
    return names


def params_of(stage: Any, names: Mapping[str, str]) -> dict[str, str]:
    """The Params of a stage by name, and those of the stages inside as "Stage.name"."""
    found = {}
    for one in walk(stage):
        prefix = "" if one is stage else f"{names.get(one.uid, one.uid)}."
        for name, value in _values(one).items():
            if name != "estimatorParamMaps":  # each candidate has a run with its Params
                found[prefix + name] = _text(value, names)
    return found


def _values(stage: Any) -> dict[str, Any]:
    return {param.name: stage.getOrDefault(param) for param in stage.params if stage.isDefined(param)}


def _text(value: Any, names: Mapping[str, str]) -> str:
    if isinstance(value, STAGES):
        return names.get(value.uid, str(value))
    if isinstance(value, list) and any(isinstance(one, STAGES) for one in value):
        return json.dumps([names.get(one.uid, str(one)) for one in value])
    return json.dumps(value, default=str) if isinstance(value, (list, dict)) else str(value)
