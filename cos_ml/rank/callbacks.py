"""Keras callbacks of every training (rank side)."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np

from cos_ml.errors import RankError
from cos_ml.rank.checkpoint_store import Checkpoint
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import RankContext, TrainingLog
from cos_ml.rank.feed import Feed
from cos_ml.rank.heartbeat import Heartbeat

__all__ = [
    "AverageMovingStats", "HeartbeatCallback", "ProgressCallback", "ReseedCallback", "SkippingCallbackList",
    "StopAtNonFinite", "SyncStopTraining", "seed_generators",
]  # fmt: skip

EVENT_INTERVAL = 0.25  # seconds between two "step" events


class AverageMovingStats(keras.callbacks.Callback):
    """Averages non-trainable weights, such as BatchNormalization's statistics, over the ranks after each epoch.

    Args:
        communicator: connects this rank to the others.
        share: this rank's fraction of all rows.
    """

    def __init__(self, communicator: Communicator, share: float) -> None:
        super().__init__()
        self.communicator, self.share = communicator, share

    def on_train_begin(self, logs: Any = None) -> None:
        floats = [variable for variable in self.model.non_trainable_weights if "float" in variable.dtype]
        self.before = [(variable, variable.numpy()) for variable in floats]

    def on_test_begin(self, logs: Any = None) -> None:
        self.average()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.average()

    def average(self) -> None:
        """Give these weights the same values on all ranks."""
        if self.communicator.size == 1:
            return
        for index, (variable, before) in enumerate(self.before):
            # The change is averaged, not the value, so that a frozen weight keeps every bit.
            after = before + self.communicator.sum((variable.numpy() - before) * self.share).astype(before.dtype)
            variable.assign(after)
            self.before[index] = (variable, after)


class SyncStopTraining(keras.callbacks.Callback):
    """Ends the training on all ranks after an epoch in which a callback on any of them set ``stop_training``."""

    def __init__(self, communicator: Communicator) -> None:
        super().__init__()
        self.communicator = communicator

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.agreed_stop = bool(self.communicator.sum(np.array([float(self.model.wants_stop)]))[0])


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
        feed: the training rows.
        epochs: the number of epochs to train.
        context: reports the progress; its timer counts the first call of TensorFlow, which traces the step, as
            "compile".
        log: the training log, which a resumed training continues.
        start: the number of epochs that are done, and of steps of the next one.
    """

    def __init__(self, feed: Feed, epochs: int, context: RankContext, log: TrainingLog, start: tuple[int, int]) -> None:
        super().__init__()
        self.feed, self.epochs, self.context, self.log, self.start = feed, epochs, context, log, start
        self.last_event = 0.0
        self.compiled = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.skipped = self.start[1] if epoch == self.start[0] else 0
        self.feed.begin(epoch, self.model.skipped)
        self.epoch, self.began = epoch, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.compiled:
            self.context.timer.lap("compile")
            self.compiled = True
        if time.monotonic() - self.last_event > EVENT_INTERVAL:
            self.last_event = time.monotonic()
            self._report("step", batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self.began
        self.log.seconds.append(seconds)
        for name, value in (logs or {}).items():
            self.log.history.setdefault(name, []).append(float(value))
        self._report("epoch", self.feed.steps, logs, rows_per_second=self.feed.total_rows / seconds)

    def _report(self, event: str, step: int, logs: Any, **more: Any) -> None:
        self.context.report(
            event=event, epoch=self.epoch + 1, epochs=self.epochs, step=step, steps=self.feed.steps,
            rows=self.feed.total_rows, logs={name: float(value) for name, value in (logs or {}).items()}, **more,
        )  # fmt: skip


class SkippingCallbackList(keras.callbacks.CallbackList):
    """The callbacks of a training; they are not called for steps that a resumed epoch skips."""

    skipping = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.skipping = bool(self.model.skipped)
        if not self.skipping:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.skipping:
            super().on_train_batch_end(batch, logs)


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
        variables = seed_generators(self.model)
        words = np.random.SeedSequence([self.seed % 2**63, self.partition, epoch]).generate_state(len(variables) or 1)
        counts = [0] * len(variables)
        if self.checkpoint is not None and self.checkpoint.step and self.checkpoint.epoch == epoch:
            counts = self.checkpoint.plain["counts"]
        for variable, word, count in zip(variables, words, counts, strict=False):
            variable.assign(np.array([word, count], variable.dtype))


def seed_generators(network: Any) -> list[Any]:
    """The variables, each of a seed and a count, from which a network makes random numbers."""
    variables = network.non_trainable_variables
    return [one for one in variables if "seed_generator" in one.path and len(one.shape) == 1]


class StopAtNonFinite(keras.callbacks.Callback):
    """Ends the training on all ranks, at the same step, when the loss is NaN or infinite."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        self.model.finite.begin(self.model.skipped)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self.model.finite.failed_at()
        if step:
            raise RankError(
                f"The loss is NaN or infinite in epoch {self.epoch + 1} at step {step}. Look for values in the columns "
                "that are far too large or for a logarithm or division in the network or loss, lower learningRate, or "
                'give the optimizer a clipnorm. handleNonFiniteLoss="keep" continues the training regardless. '
                "Checkpoints in checkpointDir, if there are any, were written before this step."
            )
