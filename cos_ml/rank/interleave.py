"""Validations within an epoch, which leave the training as it is (rank side)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from cos_ml.rank.callbacks import AverageMovingStats, SyncStopTraining
from cos_ml.rank.context import RankContext, TrainingLog, metrics_of
from cos_ml.rank.finite import FiniteEarlyStopping, check_validation
from cos_ml.rank.heartbeat import TRAINING
from cos_ml.rank.trainer import DistributedTrainer, set_back

__all__ = ["InterleavedValidation"]


class InterleavedValidation(keras.callbacks.Callback):
    """Validates every so many steps, and adds a row to the training log. The training goes on as if there were none.

    It comes before a callback that writes checkpoints, so that a training that resumes repeats no validation.

    Args:
        trainer: the training.
        context: reports the metrics.
        log: the training log.
        statistics: gives moving statistics the same values on all ranks when a validation begins.
        stop: ends the training on all ranks, if a callback wants that after a validation.
        early: counts validations for patience and keeps the best weights, if that is wanted.
    """

    def __init__(
        self, trainer: DistributedTrainer, context: RankContext, log: TrainingLog,
        statistics: AverageMovingStats, stop: SyncStopTraining, early: FiniteEarlyStopping | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.trainer, self.plan, self.context, self.log = trainer, trainer.plan, context, log
        self.statistics, self.stop, self.early = statistics, stop, early

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step, schedule = batch + 1, self.plan.schedule
        if not schedule.is_due(self.epoch, step):
            return
        found = metrics_of(logs or {})
        if self.plan.feeds["validation"].steps:
            place = f"epoch {self.epoch + 1} after step {step}"
            self.context.heartbeat.enter(f"{TRAINING}, {place}: validation")
            found |= self._validate(place)
            self.context.heartbeat.enter(f"{TRAINING}, {place}")
        self.log.add(found, self.epoch * schedule.whole + step)
        self.context.report_metrics("validation", self.plan, self.epoch, step, found)

    def _validate(self, place: str) -> dict[str, Any]:
        """The metrics of the validation rows; ``place`` is where in the training this is."""
        network, dataset = self.plan.network, self.plan.feeds["validation"].dataset()
        with self.statistics.set_back(), set_back(network.non_trainable_variables), set_back_metrics(network):
            logs = self.trainer.evaluate(dataset, callbacks=self.plan.callbacks, return_dict=True, verbose=0)
            found = {f"val_{name}": value for name, value in metrics_of(logs).items()}
            if self.plan.spec.stop_at_non_finite:
                check_validation(found, f"in {place}")
            if self.early is not None:
                self.early.on_validation(found)
        self.stop.agree()
        return found


@contextmanager
def set_back_metrics(network: Any) -> Iterator[None]:
    """After the block the metrics have counted what they had counted before; new ones have counted nothing."""
    with set_back(network.metrics_variables):
        yield
        for metric in network.metrics:
            metric.reset_state()
