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
    "AverageMovingStats",
    "HeartbeatCallback",
    "ProgressCallback",
    "ReseedCallback",
    "SkippingCallbackList",
    "StopAtNonFinite",
    "SyncStopTraining",
]

EVENT_INTERVAL = 0.25  # seconds between two reports of how far an epoch is


class AverageMovingStats(keras.callbacks.Callback):
    """After each epoch, what layers as BatchNormalization learned without gradients, averaged over the ranks.

    Args:
        share: this rank's part of all rows.
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
        """Make them the same on all ranks."""
        if self.communicator.size == 1:
            return
        for index, (variable, before) in enumerate(self.before):
            # The change is what is averaged: a frozen weight stays what it was, to the bit.
            after = before + self.communicator.sum((variable.numpy() - before) * self.share).astype(before.dtype)
            variable.assign(after)
            self.before[index] = (variable, after)


class SyncStopTraining(keras.callbacks.Callback):
    """After each epoch, ends the training on all ranks when a callback on one of them asked for it."""

    def __init__(self, communicator: Communicator) -> None:
        super().__init__()
        self.communicator = communicator

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.agreed_stop = bool(self.communicator.sum(np.array([float(self.model.wants_stop)]))[0])


class HeartbeatCallback(keras.callbacks.Callback):
    """Tells the pulse what Keras's loop does after this callback: what comes next in its list, or the next steps."""

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
    """Tells the feed which epoch it is, and the barrier task how it goes.

    Args:
        feed: of the training rows.
        epochs: how many there will be.
        here: what it tells; its clock counts the first call of TensorFlow, which traces the step, as "compile".
        record: of the training, to go on with.
        done: the epochs, and the steps of the next one, that were done before.
    """

    def __init__(
        self, feed: Feed, epochs: int, context: RankContext, record: TrainingLog, done: tuple[int, int]
    ) -> None:
        super().__init__()
        self.feed, self.epochs, self.context, self.record, self.done = feed, epochs, context, record, done
        self.told = self.began = 0.0
        self.compiled = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.skipped = self.done[1] if epoch == self.done[0] else 0
        self.feed.begin(epoch, self.model.skipped)
        self.epoch = epoch
        self.began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.compiled:
            self.context.timer.lap("compile")
            self.compiled = True
        if time.monotonic() - self.told > EVENT_INTERVAL:
            self.told = time.monotonic()
            self._tell("step", batch + 1, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.monotonic() - self.began
        self.record.seconds.append(seconds)
        for name, value in (logs or {}).items():
            self.record.history.setdefault(name, []).append(float(value))
        self._tell("epoch", self.feed.steps, logs, rows_per_second=self.feed.total_rows / seconds)

    def _tell(self, event: str, step: int, logs: Any, **more: Any) -> None:
        self.context.report(
            event=event, epoch=self.epoch + 1, epochs=self.epochs, step=step, steps=self.feed.steps,
            rows=self.feed.total_rows, logs={name: float(value) for name, value in (logs or {}).items()}, **more,
        )  # fmt: skip


class SkippingCallbackList(keras.callbacks.CallbackList):
    """The callbacks of a training, which hear nothing of steps that a resumed epoch only passes by."""

    skipping = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.skipping = bool(self.model.skipped)
        if not self.skipping:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.skipping:
            super().on_train_batch_end(batch, logs)


class ReseedCallback(keras.callbacks.Callback):
    """Makes Dropout and its kin depend on seed, epoch and partition alone.

    Args:
        seed: of the training.
        partition: of the rank's rows.
        state: that the training goes on from.
    """

    def __init__(self, seed: int, partition: int, state: Checkpoint | None) -> None:
        super().__init__()
        self.seed, self.partition, self.state = seed, partition, state

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        variables = generators(self.model)
        words = np.random.SeedSequence([self.seed % 2**63, self.partition, epoch]).generate_state(len(variables) or 1)
        resumed = self.state is not None and self.state.step and self.state.epoch == epoch
        counts = self.state.plain["counts"] if resumed and self.state is not None else [0] * len(variables)
        for variable, word, count in zip(variables, words, counts, strict=False):
            variable.assign(np.array([word, count], variable.dtype))


def generators(network: Any) -> list[Any]:
    """The variables of a network that random numbers are made of: a seed and a count each."""
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
                f"The loss is NaN or infinite in epoch {self.epoch + 1} at step {step}. Look for values in the "
                "columns that are far too large or for a logarithm or division in the network or loss, lower "
                'learningRate, or give the optimizer a clipnorm. handleNonFiniteLoss="keep" trains on regardless. A '
                "checkpoint in checkpointDir, if there is one, is from before."
            )
