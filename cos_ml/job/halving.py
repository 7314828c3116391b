"""Successive halving: which candidates can be compared, and whose checkpoints belong together (driver side)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cos_ml.callbacks import path_of
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

if TYPE_CHECKING:
    from cos_ml.job.fit import Candidate

__all__ = ["check_comparable", "with_rivals"]

COMPARED = ("loss", "loss_weights")  # arguments of keras.Model.compile on which a validation loss depends

logger = logging.getLogger(__name__)


def check_comparable(candidates: Sequence[Candidate], jobs: Sequence[Any]) -> None:
    """Check that successive halving, where it is wanted, can compare candidates by their losses.

    Args:
        candidates: all of them.
        jobs: what tells the job of each from those of others.

    Raises:
        InvalidInputError: they need several jobs, or have different losses, or would write to the same files in turns.
    """
    factors = [candidate.spec.halving_factor for candidate in candidates]
    if not any(factors):
        return
    if len(candidates) == 1:
        logger.info("halvingFactor: there is one candidate, so none is dropped")
    first = candidates[0].spec
    for candidate, job in zip(candidates, jobs, strict=True):
        spec, reason = candidate.spec, ""
        if job != jobs[0]:
            reason = "train in jobs of their own, because they read other columns, or differ in the number of ranks, "
            reason += "in halvingFactor, or in how rows reach the ranks"
        elif any(_plain(spec.compile.get(name)) != _plain(first.compile.get(name)) for name in COMPARED):
            reason = "have different losses or lossWeights"
        if reason:
            raise InvalidInputError(
                f"Param halvingFactor: {first.name} and {spec.name} {reason}. Expected candidates whose losses can be "
                "compared: unset halvingFactor, or make a grid of those that differ."
            )
    written: dict[str, str] = {}
    for spec in (candidate.spec for candidate in candidates):
        for path in filter(None, map(path_of, spec.callbacks)):
            if path in written:
                raise InvalidInputError(
                    f"Param halvingFactor: callbacks of {written[path]} and {spec.name} both write to {path!r}, but "
                    "these train in turns. Give each its own path, with the Param callbacks in the grid."
                )
            written[path] = spec.name


def with_rivals(specs: Sequence[TrainSpec]) -> tuple[TrainSpec, ...]:
    """The specs of a job, with checkpoints that belong to these candidates together, where halving compares them.

    A candidate that another grid has trained further could not go back to where this one drops it.
    """
    if len(specs) == 1 or specs[0].halving_factor is None:
        return tuple(specs)
    halving = [specs[0].halving_factor, specs[0].halving_min_epochs]
    urls = [spec.checkpoint.url for spec in specs if spec.checkpoint]  # each ends with a digest of its identity
    rivals = hashlib.sha256(json.dumps([halving, sorted(urls)]).encode()).hexdigest()[:16]
    return tuple(_with_rivals(spec, rivals) for spec in specs)


def _with_rivals(spec: TrainSpec, rivals: str) -> TrainSpec:
    config = spec.checkpoint
    return spec if config is None else replace(spec, checkpoint=replace(config, url=f"{config.url}-{rivals}"))


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
