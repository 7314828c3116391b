"""Keras callbacks of every training (rank side)."""

from __future__ import annotations

import gc
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from cos_ml.errors import RankError
from cos_ml.network.forward import reseed, seed_generators
from cos_ml.network.keras_internals import all_layers
from cos_ml.rank.checkpoint_store import Checkpoint
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import RankContext, TrainingLog, metrics_of
from cos_ml.rank.feed import Feed, Parts
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.trainer import Plan, no_stop_iteration

__all__ = [
    "AverageMovingStats", "CheckAgreement", "HeartbeatCallback", "ProgressCallback", "ReseedCallback",
    "SkippingCallbackList", "StopAtNonFinite", "SyncStopTraining",
]  # fmt: skip

EVENT_INTERVAL = 0.25  # seconds between two "step" events


class AverageMovingStats(keras.callbacks.Callback):
    """Gives what layers learn outside of gradients the same values on all ranks, after each epoch.

    Statistics of each rank's rows, such as BatchNormalization's, are averaged. Those of synchronized layers are the
    same on all ranks that have had rows in every step, as are counters: they are those of such a rank.

    Args:
        communicator: connects this rank to the others.
        feed: the training rows.
    """

    def __init__(self, communicator: Communicator, feed: Feed) -> None:
        super().__init__()
        self.communicator, self.share, self.lead = communicator, feed.share, feed.lead

    def on_train_begin(self, logs: Any = None) -> None:
        synchronized = [layer for layer in all_layers(self.model) if getattr(layer, "synchronized", False)]
        self.alike = {id(variable) for layer in synchronized for variable in layer.non_trainable_variables}
        seeds = {id(variable) for variable in seed_generators(self.model)}
        variables = [one for one in self.model.non_trainable_variables if id(one) not in seeds]
        self.before = [(variable, _numbers(variable)) for variable in variables]

    def on_test_begin(self, logs: Any = None) -> None:
        self.average()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.average()

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """After the block, which sets the variables back, their next averages are as if there had been none in it."""
        before = list(self.before)
        yield
        self.before = before

    def average(self) -> None:
        """Give these variables the same values on all ranks."""
        if self.communicator.size == 1 or not self.before:
            return
        differs = [not np.array_equal(_numbers(variable), before) for variable, before in self.before]
        changed = np.flatnonzero(self.communicator.sum(np.array(differs, np.float32))).tolist()
        for index in changed:
            variable, before = self.before[index]
            if id(variable) in self.alike or "float" not in variable.dtype:
                self.communicator.broadcast_variables([variable], self.lead)
            else:
                change = (_numbers(variable) - before) * self.share
                variable.assign(before + self.communicator.sum(change).astype(before.dtype))
            self.before[index] = (variable, _numbers(variable))


def _numbers(variable: Any) -> np.ndarray:
    """A variable's numbers; those of 16 bits as float32, which Horovod sends."""
    numbers = np.asarray(variable.numpy())
    return numbers.astype(np.float32) if "float" in variable.dtype and numbers.itemsize < 4 else numbers


class SyncStopTraining(keras.callbacks.Callback):
    """Ends the training on all ranks together when a callback on any of them has set ``stop_training``.

    At the end of an epoch and at its first step; after each step, where a callback on any rank looks at steps.

    Args:
        trainer: the training.
        communicator: connects this rank to the others.
        others: the user's callbacks on this rank.
    """

    def __init__(self, trainer: Any, communicator: Communicator, others: Iterable[Any]) -> None:
        super().__init__()
        self.trainer, self.communicator = trainer, communicator
        self.at_steps = self._any(any(map(_looks_at_steps, others)))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.first = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.at_steps or self.first:
            self.agree()
        self.first = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.agree()

    def agree(self) -> None:
        """End the training if a callback on any rank wants that; all ranks call this together."""
        self.trainer.stop_training = self._any(bool(self.model.stop_training))

    def _any(self, value: bool) -> bool:
        return bool(self.communicator.sum(np.array([float(value)]))[0])


def _looks_at_steps(callback: Any) -> bool:
    names = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
    return any(getattr(type(callback), name) is not getattr(keras.callbacks.Callback, name) for name in names)


class CheckAgreement(keras.callbacks.Callback):
    """Ends a training whose ranks have come apart, as a ``train_step`` that changes weights by itself lets them.

    Args:
        plan: the trainer's.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        digest = 0
        for variable in self.plan.variables:
            digest = zlib.crc32(np.ascontiguousarray(variable.numpy()).tobytes(), digest)
        highest, lowest = self.plan.communicator.maximum(np.array([digest, -digest])).tolist()
        if highest != -lowest:
            raise RankError(
                f"After epoch {epoch + 1} the ranks have different weights: the train_step of "
                f"{type(self.model).__name__} changes weights by itself. Change them by the apply of an optimizer that "
                "is an attribute of the model, whose gradients the ranks share."
            )


class HeartbeatCallback(keras.callbacks.Callback):
    """Sets the heartbeat's phase to what follows this callback: the next ones in the list, or the next steps."""

    def __init__(self, heartbeat: Heartbeat, phase: str) -> None:
        super().__init__()
        self.heartbeat, self.phase = heartbeat, phase

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.heartbeat.enter(f"{self.phase}, epoch {epoch + 1}")
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.heartbeat.enter(f"{self.phase}, epoch {self.epoch + 1} after step {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.heartbeat.enter(f"{self.phase}, end of epoch {epoch + 1}")

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.heartbeat.enter(f"{self.phase}, validation after step {batch + 1}")


class ProgressCallback(keras.callbacks.Callback):
    """Starts the feed's epochs, writes the training log, and reports progress to the driver.

    Args:
        plan: the trainer's; its feed of training rows is started.
        context: reports the progress; its timer counts the first call of TensorFlow, which traces the step, as
            "compile".
        log: the training log, which a resumed training continues.
        start: the number of epochs that are done, and of steps of the next one.
    """

    def __init__(self, plan: Plan, context: RankContext, log: TrainingLog, start: tuple[int, int]) -> None:
        super().__init__()
        self.plan, self.feed, self.schedule = plan, plan.feeds["train"], plan.schedule
        self.context, self.log, self.start = context, log, start
        self.last_event = 0.0
        self.compiled = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.plan.skipped = self.done = self.start[1] if epoch == self.start[0] else 0
        self.feed.begin(epoch, self.plan.skipped)
        self.plan.parts = Parts.of(self.feed, self.schedule, epoch)
        self.epoch, self.began = epoch, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.compiled:
            self.context.timer.lap("compile")
            self.compiled = True
            gc.enable()
        self.done = min(batch + 1, self.schedule.steps(self.epoch))  # Keras counts whole calls
        if time.monotonic() - self.last_event > EVENT_INTERVAL:
            self.last_event = time.monotonic()
            self.context.report_metrics("step", self.plan, self.epoch, self.done, logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self.began
        self.log.seconds.append(seconds)
        self.log.steps = epoch * self.schedule.whole + self.done
        within = self.plan.spec.validation_steps is not None
        self.log.add(metrics_of(logs or {}), self.log.steps if within else None)
        speed = int(self.feed.rows_by_rank[: self.done].sum()) / seconds
        self.context.report_metrics("epoch", self.plan, epoch, self.done, logs or {}, rows_per_second=speed)


class SkippingCallbackList(keras.callbacks.CallbackList):
    """The callbacks of a training: not called for steps that a resumed epoch skips, nor after the last step.

    Where Keras's loop runs several times, they are called once when the training begins and once when it ends.

    Args:
        trainer: the training, which calls them where it cuts a call of TensorFlow.
        callbacks: the callbacks.
    """

    skipping = False
    begun = False
    last_logs: Any = None

    def __init__(self, trainer: Any, callbacks: list[Any], **options: Any) -> None:
        self.trainer, self.plan = trainer, trainer.plan
        self.plan.callbacks = self
        super().__init__(callbacks, model=self.plan.network, **options)

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.begun:
            self.begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        self.last_logs = logs or self.last_logs

    def end(self) -> None:
        """The training has ended."""
        super().on_train_end(self.last_logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        super().on_epoch_begin(epoch, logs)

    @no_stop_iteration
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.plan.begin = batch
        self.skipping = bool(self.plan.skipped)
        if not self.skipping:
            super().on_train_batch_begin(batch, logs)

    @no_stop_iteration
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.skipping:
            return
        schedule = self.plan.schedule
        last = schedule.steps(self.epoch)
        if last < schedule.whole:
            batch = min(batch, last - 1)  # Keras counts whole calls
        if schedule.is_due(self.epoch, batch + 1):
            logs = self.trainer.logs_of_all_ranks(logs)
        super().on_train_batch_end(batch, logs)
        if last < schedule.whole and batch + 1 == last:
            self.trainer.stop_training = True

    @no_stop_iteration
    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_test_batch_begin(batch, logs)

    @no_stop_iteration
    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_test_batch_end(batch, logs)


class ReseedCallback(keras.callbacks.Callback):
    """Makes the random numbers of Dropout and other layers depend on seed, epoch, partition and step alone.

    Args:
        seed: the training's seed.
        partition: the partition whose rows the rank has.
        checkpoint: the checkpoint from which the training resumes, if any.
    """

    def __init__(self, seed: int, partition: int, checkpoint: Checkpoint | None) -> None:
        super().__init__()
        self.seed, self.partition, self.checkpoint = seed, partition, checkpoint

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        counts: list[int] = []
        if self.checkpoint is not None and self.checkpoint.step and self.checkpoint.epoch == epoch:
            counts = self.checkpoint.plain["counts"]
        reseed(seed_generators(self.model), (self.seed, self.partition, epoch), counts)


class StopAtNonFinite(keras.callbacks.Callback):
    """Ends the training on all ranks, at the same step, when the loss is NaN or infinite."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        self.plan.finite.begin(self.plan.skipped)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self.plan.finite.failed_at()
        if step:
            raise RankError(
                f"The loss is NaN or infinite in epoch {self.epoch + 1} at step {step}. Look for values in the columns "
                "that are far too large or for a logarithm or division in the network or loss, lower learningRate, or "
                'give the optimizer a clipnorm. handleNonFiniteLoss="keep" continues the training regardless. '
                "Checkpoints in checkpointDir, if there are any, were written before this step."
            )
