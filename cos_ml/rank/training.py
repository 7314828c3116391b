"""One training of a network: Keras's loop over this rank's rows, which can pause between epochs (rank side)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cos_ml import callbacks
from cos_ml.errors import InvalidInputError
from cos_ml.network.losses import compares_rows, each_loss, loss_name
from cos_ml.rank.callbacks import (
    AverageMovingStats,
    CheckAgreement,
    HeartbeatCallback,
    ProgressCallback,
    ReseedCallback,
    SkippingCallbackList,
    StopAtNonFinite,
    SyncStopTraining,
)
from cos_ml.rank.checkpoint_store import Checkpoint
from cos_ml.rank.context import RankContext, TrainingLog
from cos_ml.rank.copied_files import CopyFilesCallback, with_local_path
from cos_ml.rank.finite import CheckFinite, FiniteEarlyStopping
from cos_ml.rank.heartbeat import TRAINING
from cos_ml.rank.interleave import InterleavedValidation
from cos_ml.rank.resume import CheckpointCallback, TrainerState
from cos_ml.rank.trainer import DistributedTrainer, Plan

__all__ = ["Training"]

STATELESS = (keras.callbacks.CSVLogger, CopyFilesCallback)  # their state is in files


class Training:
    """A training by Keras's own loop over the feeds, from its beginning or from a checkpoint; close it in the end.

    Args:
        trainer: the trainer, in its first state.
        context: what this rank knows.

    Attributes:
        finished: whether nothing is left to train: all epochs are done, or a callback has stopped it.
    """

    def __init__(self, trainer: DistributedTrainer, context: RankContext) -> None:
        self.trainer, self.context = trainer, context
        plan, spec = trainer.plan, trainer.plan.spec
        self.spec, self.feeds, self.schedule = spec, plan.feeds, plan.schedule
        self.log, statistics = TrainingLog(), AverageMovingStats(context.communicator, plan.feeds["train"])
        user_callbacks = _user_callbacks(plan, context)
        self.writer, checkpoint = None, None
        if spec.checkpoint:
            context.heartbeat.enter("looking for a checkpoint")
            kept = {name: one for name, one in user_callbacks.items() if not isinstance(one, STATELESS)}
            state = TrainerState(plan, kept | {"log": self.log})
            average, finite = statistics.average, spec.stop_at_non_finite
            self.writer = CheckpointCallback(state, spec.checkpoint, context, average, finite)
            checkpoint = self.writer.checkpoint
        self.resumed = (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)
        self.epoch = self.resumed[0]
        _continue_files(user_callbacks.values(), self.epoch)
        context.report(event="begin", epoch=self.epoch, step=self.resumed[1], kept=self.writer is not None)
        plan.feeds["validation"].begin(0)
        _report_pairs(plan, context)
        ordered = _ordered(trainer, context, user_callbacks, statistics, self.log, checkpoint)
        if self.writer is not None:
            ordered += [HeartbeatCallback(context.heartbeat, "checkpoint"), self.writer]
            ordered.append(HeartbeatCallback(context.heartbeat, TRAINING))
        self.finished = checkpoint is not None and checkpoint.plain["stopped"] and not self.resumed[1]
        epochs, steps = self.schedule.epochs, plan.feeds["train"].steps
        self.callbacks = SkippingCallbackList(trainer, ordered, add_history=True, epochs=epochs, steps=steps)

    def advance(self, epochs: int) -> None:
        """Train on until so many epochs are done, or the training has finished."""
        plan, validation = self.trainer.plan, self.feeds["validation"]
        plan.until = self.epoch if self.finished else max(min(epochs, self.schedule.epochs), self.epoch)
        self.trainer.fit(
            self.feeds["train"].dataset(), epochs=plan.until, initial_epoch=self.epoch, callbacks=self.callbacks,
            validation_data=validation.dataset() if validation.steps else None,
            shuffle=False, verbose=0,  # the feed shuffles
        )  # fmt: skip
        self.epoch = max(self.epoch, len(self.log.seconds))
        self.finished = self.finished or plan.stopped or self.epoch >= self.schedule.epochs

    def end(self) -> None:
        """End the training: the weights get their final values, and callbacks are told."""
        self.trainer.finalize()
        self.callbacks.end()

    def close(self) -> None:
        """End what is being written, also where the training has failed."""
        if self.writer is not None:
            self.writer.close()

    def loss_after(self, epochs: int) -> float:
        """The loss of the network that the training would return after so many epochs; infinite if it is not a number.

        It is that of the validation rows, if there are any: the last one, or the best so far with ``restore_best``.

        Raises:
            InvalidInputError: the steps of the network do not report it.
        """
        name, history = _monitor(self.feeds), self.log.history
        if name not in history:
            raise InvalidInputError(
                f"Param halvingFactor: candidates are compared by {name!r}, but the network's own steps report "
                f"{sorted(history)}. Return it from train_step and test_step, or unset halvingFactor."
            )
        steps = history.get("step", self.schedule.whole * np.arange(1, len(history[name]) + 1))
        done = np.asarray(history[name], float)[np.asarray(steps) <= epochs * self.schedule.whole]
        values = np.where(np.isfinite(done), done, np.inf)
        return float(values.min() if self.spec.restore_best else values[-1])

    def summary(self) -> dict[str, Any]:
        """What the driver is told.

        Returns:
            dict[str, Any]: "history" by metric; "rows", "validation_rows" and "steps" of an epoch; "total_steps";
            "epoch_seconds"; "resumed", the epochs and steps that a checkpoint already contained; "checkpoint", whether
            there are any.
        """
        training, validation, log = self.feeds["train"], self.feeds["validation"], self.log
        return {
            "history": log.history, "rows": training.total_rows, "validation_rows": validation.total_rows,
            "steps": training.steps, "total_steps": log.steps, "epoch_seconds": log.seconds,
            "resumed": list(self.resumed), "checkpoint": self.writer is not None,
        }  # fmt: skip


def _monitor(feeds: dict[str, Any]) -> str:
    """The metric by which epochs, and candidates, are compared."""
    return "val_loss" if feeds["validation"].steps else "loss"


def _ordered(
    trainer: DistributedTrainer, context: RankContext, user_callbacks: dict[str, Any], statistics: AverageMovingStats,
    log: TrainingLog, checkpoint: Checkpoint | None,
) -> list[Any]:  # fmt: skip
    """The callbacks of a training, up to the one that writes checkpoints, in the order in which they are called."""
    plan, start = trainer.plan, (checkpoint.epoch, checkpoint.step) if checkpoint else (0, 0)
    stop = SyncStopTraining(trainer, context.communicator, user_callbacks.values())
    finite = [CheckFinite(plan.network)] if plan.spec.stop_at_non_finite else []
    ordered = [
        statistics, *finite, HeartbeatCallback(context.heartbeat, "callbacks"), *user_callbacks.values(),
        HeartbeatCallback(context.heartbeat, TRAINING), ReseedCallback(plan.spec.seed, context.partition, checkpoint),
        stop, ProgressCallback(plan, context, log, start),
    ]  # fmt: skip
    if plan.own_step and context.communicator.size > 1:
        ordered.append(CheckAgreement(plan))
    if plan.spec.stop_at_non_finite:
        ordered.append(StopAtNonFinite(plan))
    if plan.spec.validation_steps is not None:
        early = user_callbacks.get("early stopping")
        ordered.append(InterleavedValidation(trainer, context, log, statistics, stop, early))
    return ordered


def _user_callbacks(plan: Plan, context: RankContext) -> dict[str, Any]:
    """The callbacks that the user asked for on this rank, by a name that is the same in every attempt."""
    spec = plan.spec
    made: dict[str, Any] = {}
    for index, plain in enumerate(spec.callbacks):
        if plain["ranks"] == "all" or context.rank == 0:
            local, copies = with_local_path(plain, context.report)
            made[f"callback {index}"] = callbacks.make(local)
            made |= {f"files of callback {index}": copies} if copies else {}
    if spec.patience is not None or spec.restore_best:  # all ranks see the same loss, so they decide alike
        patience = plan.schedule.total if spec.patience is None else spec.patience
        made["early stopping"] = FiniteEarlyStopping(
            _monitor(plan.feeds), patience=patience, mode="min", restore_best_weights=spec.restore_best
        )
    return made


def _report_pairs(plan: Plan, context: RankContext) -> None:
    """Note a loss whose pairs of rows do not cross the ranks."""
    names = [loss_name(loss) for loss in each_loss(plan.spec.compile.get("loss")) if compares_rows(loss)]
    if names and context.communicator.size > 1:
        text = (
            f"{names[0]} compares rows with each other. Pairs do not cross the ranks: each has those of its own rows."
        )
        context.report(event="note", text=text)


def _continue_files(user_callbacks: Iterable[Any], epoch: int) -> None:
    """Let the tables of a training that resumes keep the epochs before, and only those."""
    for one in user_callbacks:
        if not epoch or not isinstance(one, keras.callbacks.CSVLogger):
            continue
        one.append, path = True, Path(one.filename)
        if path.is_file():
            rows = [(row.split(one.sep)[0], row) for row in path.read_text().splitlines(keepends=True)]
            path.write_text("".join(row for first, row in rows if not first.isdecimal() or int(first) < epoch))
