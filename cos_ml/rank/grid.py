"""Lets candidates of a grid share a trainer, whose step is traced once for all that have the same shape (rank side).

A trace takes a second or more, and depends only on what is constant in it. Candidates of one shape differ in the values
of variables (weights, learning rate, optimizer state, seeds) and outside of the step (rows, callbacks).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import asdict
from typing import Any

import keras
import numpy as np

from cos_ml.rank.feed import Feed
from cos_ml.rank.trainer import DistributedTrainer
from cos_ml.spec import TrainSpec

__all__ = ["KeptTrainers"]

# Fields of a TrainSpec on which no trace depends, or only through the rows, which are compared by themselves.
FREE = (
    "batch_size", "callbacks", "checkpoint", "class_weights", "epochs", "learning_rate", "max_steps", "name",
    "patience", "restore_best", "seed", "shuffle", "stall_timeout", "stop_at_non_finite", "validation_steps",
)  # fmt: skip


class KeptTrainers:
    """The trainers that later candidates of a job can use again.

    Args:
        specs: all candidates of the job.

    Attributes:
        order: the candidates' indices in the order in which to train them: one shape after the other, so that only
            trainers of one shape are kept at a time, however many networks the grid has.
    """

    def __init__(self, specs: list[TrainSpec]) -> None:
        shapes = [_shape(spec) for spec in specs]
        self.order = sorted(range(len(specs)), key=lambda index: shapes.index(shapes[index]))
        self._left = Counter(shapes)
        self._kept: dict[tuple[Any, ...], tuple[DistributedTrainer, list[np.ndarray]]] = {}

    def take(self, spec: TrainSpec, feeds: dict[str, Feed]) -> DistributedTrainer | None:
        """A trainer for this candidate, in the state of a new one; None if the candidate needs a new one."""
        shape = _shape(spec)
        found = self._kept.get((shape, _rows(feeds)))
        self._left[shape] -= 1
        if not self._left[shape]:
            self._kept = {key: one for key, one in self._kept.items() if key[0] != shape}
        if found is None or found[0].plan.foreign:
            return None
        trainer, values = found
        random.seed(spec.seed % 2**32)
        np.random.seed(spec.seed % 2**32)  # no plain step uses TensorFlow's seed; setting it drops all traces
        trainer.plan.begin_again(spec, feeds)
        for variable, value in zip(_variables(trainer), values, strict=True):
            variable.assign(value)
        rate = _learning_rate(spec)
        if rate is not None:
            trainer.model.optimizer.learning_rate = rate
        return trainer

    def keep(self, spec: TrainSpec, trainer: DistributedTrainer) -> None:
        """Keep a new trainer, before its training, until the last candidate of its shape has taken it."""
        shape, plan = _shape(spec), trainer.plan
        if self._left[shape] and _is_plain(trainer) and (shape, _rows(plan.feeds)) not in self._kept:
            plan.known = _variables(trainer)
            self._kept[shape, _rows(plan.feeds)] = trainer, [variable.numpy() for variable in plan.known]


def _shape(spec: TrainSpec) -> str:
    """What the step of a candidate depends on."""
    plain = {name: value for name, value in asdict(spec).items() if name not in FREE}
    arguments = dict(spec.compile)
    optimizer = arguments.get("optimizer")
    if isinstance(optimizer, dict) and isinstance(optimizer.get("config"), dict):
        free = ("name",) if _own_rate(spec) is None else ("name", "learning_rate")
        config = {name: value for name, value in optimizer["config"].items() if name not in free}
        arguments["optimizer"] = optimizer | {"config": config}
    sets_rate = _learning_rate(spec) is not None
    return json.dumps(plain | {"compile": arguments, "sets_rate": sets_rate}, sort_keys=True)


def _own_rate(spec: TrainSpec) -> float | None:
    """The learning rate in the configuration of one of Keras's optimizers; None for a schedule, or where it is unknown.

    Such a rate is the value of a variable.
    """
    optimizer = spec.compile.get("optimizer")
    if not isinstance(optimizer, dict) or not str(optimizer.get("module")).startswith("keras."):
        return None
    rate = optimizer.get("config", {}).get("learning_rate")
    return rate if isinstance(rate, (int, float)) else None


def _learning_rate(spec: TrainSpec) -> float | None:
    return _own_rate(spec) if spec.learning_rate is None else spec.learning_rate


def _rows(feeds: dict[str, Feed]) -> tuple[Any, ...]:
    """What a step depends on in the rows."""
    return tuple((part, bool(one.steps), one.idle, one.equal, one.signature()) for part, one in feeds.items())


def _is_plain(trainer: DistributedTrainer) -> bool:
    """Whether nothing but variables differs between a new trainer and this one after its training.

    The user's code may keep more: in attributes of a model or a metric, or in layers that a callback changes.
    """
    plan, optimizer = trainer.plan, trainer.model.optimizer
    objects = [trainer.model, *plan.optimizers, *_metrics(trainer.model)]
    modules = [type(one).__module__ for one in objects] + [plain["class"] for plain in plan.spec.callbacks]
    ours = all(module.split(".")[0] in ("keras", "cos_ml") for module in modules)
    rate_is_free = _learning_rate(plan.spec) is None or isinstance(optimizer.learning_rate, keras.Variable)
    return ours and rate_is_free and not plan.spec.run_eagerly and plan.spec.dtype_policy is None


def _metrics(network: Any) -> list[Any]:
    """All metrics, those within Keras's containers too."""
    found = list(network.metrics)
    return found + [inner for one in found for inner in getattr(one, "metrics", ())]


def _variables(trainer: DistributedTrainer) -> list[Any]:
    """All variables of a training, each once."""
    network = trainer.model
    found = [*network.variables, *network.metrics_variables]
    found += [variable for optimizer in trainer.plan.optimizers for variable in optimizer.variables]
    return list({id(variable): variable for variable in found}.values())
