"""Successive halving: which candidates can be compared, and where their checkpoints are (driver side)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from cos_ml.callbacks import path_of
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

__all__ = ["check_candidates", "with_own_checkpoints"]

SAME_JOB = (
    "train in jobs of their own, because they differ in columns, validation rows (with validationFraction, also by "
    "seed), number of ranks, halvingFactor or halvingMinEpochs, or in how rows reach the ranks"
)

logger = logging.getLogger(__name__)


def check_candidates(specs: Sequence[TrainSpec], jobs: Sequence[Hashable]) -> None:
    """Check that successive halving, if any candidate wants it, can compare the candidates by their losses.

    Args:
        specs: all candidates of a grid.
        jobs: by candidate, what tells its job from others.

    Raises:
        InvalidInputError: they need several jobs, have different losses, write to the same files, or are too short.
    """
    first = specs[0]
    if all(spec.halving_factor is None for spec in specs):
        return
    if len(specs) == 1:
        logger.info("halvingFactor: there is one candidate, so none is dropped")
        return
    for spec, job in zip(specs, jobs, strict=True):
        reason = SAME_JOB if job != jobs[0] else _difference(first, spec)
        if reason:
            raise InvalidInputError(
                f"Param halvingFactor: {first.name} and {spec.name} {reason}. Expected candidates whose losses can be "
                "compared: unset halvingFactor, or make a grid of those that differ."
            )
    longest = max(spec.epochs for spec in specs)
    if longest <= first.halving_min_epochs:
        raise InvalidInputError(
            f"Param halvingMinEpochs: expected fewer than epochs, received {first.halving_min_epochs} and {longest}. "
            "All candidates would train to their end: lower halvingMinEpochs, raise epochs, or unset halvingFactor."
        )
    _check_files(specs)


def _difference(one: TrainSpec, other: TrainSpec) -> str:
    """Why the losses of two candidates can't be compared, or "". Validation losses have no weights of classes."""
    if any(_json(one.compile.get(name)) != _json(other.compile.get(name)) for name in ("loss", "loss_weights")):
        return "have different losses or lossWeights"
    if one.class_weights != other.class_weights and one.validation is None and not one.validation_fraction:
        return "have different classWeights and no validation rows"
    return ""


def _check_files(specs: Sequence[TrainSpec]) -> None:
    """Raises InvalidInputError if callbacks of two candidates, which take turns, write to the same files."""
    writers: dict[str, str] = {}
    for spec in specs:
        for path in set(filter(None, map(path_of, spec.callbacks))):
            if path in writers:
                raise InvalidInputError(
                    f"Param halvingFactor: callbacks of {writers[path]} and {spec.name} both write to {path!r}, but "
                    "these train in turns. Give each its own path, with the Param callbacks in the grid."
                )
            writers[path] = spec.name


def with_own_checkpoints(specs: Sequence[TrainSpec]) -> tuple[TrainSpec, ...]:
    """The specs of a job, with checkpoints that belong to exactly these candidates, where halving compares them.

    A candidate that another grid has trained further could not go back to where this one drops it.
    """
    if len(specs) == 1 or specs[0].halving_factor is None:
        return tuple(specs)
    halving = [specs[0].halving_factor, specs[0].halving_min_epochs]
    urls = [spec.checkpoint.url for spec in specs if spec.checkpoint]  # each ends with a digest of its identity
    digest = hashlib.sha256(json.dumps([halving, sorted(urls)]).encode()).hexdigest()[:16]
    return tuple(_with_suffix(spec, digest) for spec in specs)


def _with_suffix(spec: TrainSpec, suffix: str) -> TrainSpec:
    config = spec.checkpoint
    return spec if config is None else replace(spec, checkpoint=replace(config, url=f"{config.url}-{suffix}"))


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
