"""A candidate of a job, which trains in one turn or, with successive halving, in several (rank side)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from cos_ml.data.spool import PARTS, SpooledRows
from cos_ml.network.policies import training_settings
from cos_ml.rank.context import RankContext
from cos_ml.rank.feed import Feed
from cos_ml.rank.grid import KeptTrainers
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.rank.trainer import DistributedTrainer, make_trainer
from cos_ml.rank.training import Training
from cos_ml.spec import TrainSpec

__all__ = ["Candidate"]


class Candidate:
    """A training that can pause between epochs while others train; close it in the end.

    Candidates of one shape share a trainer (see ``grid.py``), so one that pauses keeps the values of its variables.

    Args:
        load: loads its network, if no trainer is kept for it.
        spec: what to train.
        context: what this rank knows, with the candidate's number.
        rows: the rank's rows, by part.
        kept: the trainers of other candidates.
    """

    def __init__(
        self, load: Callable[[], Any], spec: TrainSpec, context: RankContext,
        rows: Mapping[str, SpooledRows | ShardRows], kept: KeptTrainers,
    ) -> None:  # fmt: skip
        self.spec, self.context = spec, context
        self._load, self._rows, self._kept = load, rows, kept
        self._feeds: dict[str, Feed] = {}
        self._trainer: DistributedTrainer | None = None
        self._training: Training | None = None
        self._paused: tuple[list[np.ndarray], Any, Any] | None = None
        self._seconds = Counter[str]()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self._training is not None and self._training.finished

    def advance(self, epochs: int) -> None:
        """Train on until so many epochs are done, or the training has finished."""
        if not self.finished:
            with self._turn() as training:
                training.advance(epochs)

    def pause(self) -> None:
        """Keep what another candidate may replace: the variables of a shared trainer, and random numbers."""
        if self._paused is None:
            trainer: Any = self._trainer
            values = [variable.numpy() for variable in trainer.plan.known or []]
            self._paused = values, random.getstate(), np.random.get_state()

    def loss_after(self, epochs: int) -> float:
        """The loss by which candidates are compared; see ``Training.loss_after``."""
        training: Any = self._training
        with self._named():
            return training.loss_after(epochs)

    def end(self) -> tuple[Any, dict[str, Any]]:
        """End the training; returns its network and the summary of ``Training`` with the seconds of its phases."""
        with self._turn() as training:
            training.end()
        network, summary = training.trainer.model, training.summary()
        self.close()
        return network, summary | {"seconds": self.context.timer.seconds | self._seconds}

    def close(self) -> None:
        """Let go of the trainer, also where the training has failed."""
        if self._training is not None:
            self._training.close()
        self._trainer = self._training = self._paused = None
        self._feeds = {}

    @contextmanager
    def _turn(self) -> Iterator[Training]:
        """A turn of this candidate: its state is in its trainer, and its settings are the network's."""
        with self._named():
            if self._training is None:
                self._feeds = {part: Feed(part, self.spec, self.context, self._rows[part]) for part in PARTS}
                self._trainer = self._kept.take(self.spec, self._feeds)
            elif self._paused is not None:
                self._resume(*self._paused)
            network = self._load() if self._trainer is None else self._trainer.model
            with training_settings(network, self.spec.dtype_policy, self.spec.frozen, self.spec.layer_rates):
                if self._training is None:
                    self._training = self._begin(network)
                try:
                    yield self._training
                except tf.errors.OpError as error:
                    errors = (feed.error for feed in self._feeds.values() if feed.error is not None)
                    raise next(errors, error) from None
            timer = self.context.timer
            timer.lap("train")
            self._seconds.update({phase: timer.seconds.pop(phase, 0.0) for phase in ("compile", "train")})

    def _begin(self, network: Any) -> Training:
        if self._trainer is None:
            self._trainer = make_trainer(network, self.spec, self.context.communicator, self._feeds)
            self._kept.keep(self.spec, self._trainer)
        return Training(self._trainer, self.context)

    def _resume(self, values: list[np.ndarray], numbers: Any, more_numbers: Any) -> None:
        """Take the trainer back, which others may have used."""
        training: Any = self._training
        plan = training.trainer.plan
        plan.begin_again(self.spec, self._feeds)
        plan.callbacks = training.callbacks
        for variable, value in zip(plan.known or [], values, strict=True):
            variable.assign(value)
        random.setstate(numbers)
        np.random.set_state(more_numbers)
        self._paused = None

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Within the block errors say which candidate they are about."""
        try:
            yield
        except Exception as error:
            if self.spec.name:
                error.add_note(f"This was {self.spec.name}.")
            raise
