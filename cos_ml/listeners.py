"""Listeners: objects in the driver that are told of fits while they run (driver side).

``cos_ml.mlflow`` is one, and so is the progress bar. They learn of epochs by the channel of progress, so executors
need not reach whatever a listener reports to.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from cos_ml.estimator import DeepNetEstimator
    from cos_ml.model import DeepNetModel

__all__ = ["Fit", "FitListener", "Progress", "TrainBegin", "add", "deliver", "during", "remove"]

PATIENCE = 10.0  # seconds that a fit's end waits for a listener that takes no event
PROGRESS = ("epoch", "epochs", "step", "steps", "total_steps", "rows", "arrays", "rows_per_second", "candidates")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Fit:
    """One job that trains a network or, for a grid of Params, one after the other, or in turns with ``halvingFactor``.

    Attributes:
        estimators: the estimator of each candidate, with its Params; one, except in a grid.
        positions: for a grid, the index of each candidate in the list of param maps; otherwise None.
        dataset: the training data; for ``fitParquet`` without rows.
    """

    estimators: tuple[DeepNetEstimator, ...]
    positions: tuple[int, ...] | None
    dataset: DataFrame


@dataclass(frozen=True)
class TrainBegin:
    """A candidate's training begins: anew, or again after ranks were lost.

    Attributes:
        candidate: the index of the candidate in ``Fit.estimators``.
        epoch: the number of epochs that a checkpoint provided.
        step: the number of steps of the next one that it provided.
        kept: whether checkpoints are written.
    """

    candidate: int
    epoch: int
    step: int
    kept: bool


@dataclass(frozen=True)
class Progress:
    """Where the training of a candidate is, and its metrics there, over the rows of all ranks.

    Attributes:
        candidate: the index of the candidate in ``Fit.estimators``.
        epoch: the number of the epoch, from 1.
        epochs: the number of epochs.
        step: the number of steps of this epoch that are done.
        steps: the number of steps of a whole epoch.
        total_steps: the number of steps of the training.
        rows: the number of training rows of an epoch.
        metrics: the loss and the metrics so far in this epoch; those of validation rows start with "val_".
        arrays: the metrics with several numbers, such as F1Score, as nested lists; those with up to 100.
        rows_per_second: the speed of the epoch, validation included; None before its end.
        candidates: the number of candidates.
    """

    candidate: int
    epoch: int
    epochs: int
    step: int
    steps: int
    total_steps: int
    rows: int
    metrics: dict[str, float]
    arrays: dict[str, Any] = field(default_factory=dict)
    rows_per_second: float | None = None
    candidates: int = 1

    @property
    def steps_so_far(self) -> int:
        """The number of steps of the training that are done."""
        return (self.epoch - 1) * self.steps + self.step


class FitListener:
    """What is told of fits; every method does nothing here.

    ``on_fit_begin`` and ``on_fit_end`` are called by the thread that fits. The others are called one after the other by
    a thread of this listener's own for the fit, so a slow one does not slow the fit. What a method raises is logged,
    once per fit, and does not fail the fit; a listener whose ``on_fit_begin`` has failed is told no more of that fit.
    """

    def on_fit_begin(self, fit: Fit) -> None:
        """A fit begins, after the checks of Params and columns."""

    def on_train_begin(self, fit: Fit, begin: TrainBegin) -> None:
        """The ranks begin to train a candidate."""

    def on_step(self, fit: Fit, progress: Progress) -> None:
        """Steps are done; called up to four times a second."""

    def on_validation_end(self, fit: Fit, progress: Progress) -> None:
        """A validation within an epoch has ended (Param validationSteps)."""

    def on_epoch_end(self, fit: Fit, progress: Progress) -> None:
        """An epoch has ended, with its validation."""

    def on_note(self, fit: Fit, text: str) -> None:
        """A rank has something to say that is no error, such as that memory is little."""

    def on_fit_end(self, fit: Fit, models: Sequence[DeepNetModel] | None, error: BaseException | None) -> None:
        """The fit has ended: with a model for each candidate, or with an error.

        If this listener takes no event for 10 s, it is called all the same, and gets no more events.
        """


_listeners: list[FitListener] = []


def add(listener: FitListener) -> None:
    """Tell ``listener`` of all fits of this process that begin from now on; once, however often it is added."""
    if listener not in _listeners:
        _listeners.append(listener)


def remove(listener: FitListener) -> None:
    """Tell ``listener`` of no more fits; of those that run, it still learns."""
    with contextlib.suppress(ValueError):
        _listeners.remove(listener)


def during(
    fit: Fit,
    own: Sequence[FitListener],
    train: Callable[[Callable[[dict[str, Any]], None] | None], list[DeepNetModel]],
) -> list[DeepNetModel]:
    """Return what ``train`` returns, and tell listeners of it: those that were added, and the fit's ``own``.

    ``train`` gets what takes the events that ranks send; None if nobody listens.
    """
    inboxes: list[Inbox] = []

    def take(event: dict[str, Any]) -> None:
        for one in inboxes:
            one.events.put(event)

    def end(models: Sequence[DeepNetModel] | None, error: BaseException | None) -> None:
        with contextlib.ExitStack() as stack:  # which calls all of them, also where Ctrl-C ends one
            for one in reversed(inboxes):
                stack.callback(one.close, models, error)

    try:
        for listener in (*own, *_listeners):
            if (inbox := Inbox(fit, listener)).open():
                inboxes.append(inbox)
        models = train(take if inboxes else None)
    except BaseException as error:
        end(None, error)
        raise
    end(models, None)
    return models


class Inbox:
    """The events of a fit that a listener has not taken yet, and the thread that hands them over one by one."""

    def __init__(self, fit: Fit, listener: FitListener) -> None:
        self.fit, self.listener = fit, listener
        self.events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.taken, self.abandoned, self.warned = 0, False, False
        self.thread = threading.Thread(target=self._run, name=f"cos_ml {type(listener).__name__}", daemon=True)

    def open(self) -> bool:
        """Tell the listener that the fit begins; returns whether it listens."""
        if self._call(self.listener.on_fit_begin, self.fit):
            self.thread.start()
            return True
        return False

    def close(self, models: Sequence[DeepNetModel] | None, error: BaseException | None) -> None:
        """Wait for the events to be taken, as long as some are, and tell the listener that the fit has ended."""
        self.events.put(None)
        taken = -1
        while self.thread.is_alive() and taken < self.taken:
            taken = self.taken
            self.thread.join(PATIENCE)
        self.abandoned = self.thread.is_alive()
        if self.abandoned:
            self._warn(f"has taken no event for {PATIENCE:.0f} s: it gets no more of this fit")
        self._call(self.listener.on_fit_end, self.fit, models, error)

    def _run(self) -> None:
        while (event := self.events.get()) is not None and not self.abandoned:
            self._call(deliver, self.listener, self.fit, event)
            self.taken += 1

    def _call(self, method: Callable[..., None], *arguments: Any) -> bool:
        """Whether it has not failed."""
        try:
            method(*arguments)
        except Exception as error:
            self._warn(f"failed: {type(error).__name__}: {error}")
            return False
        return True

    def _warn(self, text: str) -> None:
        """Log a warning, the first of a fit alone."""
        if not self.warned:
            self.warned = True
            logger.warning("The listener %s %s.", type(self.listener).__name__, text.rstrip("."))


def deliver(listener: FitListener, fit: Fit, event: Mapping[str, Any]) -> None:
    """Call the method of ``listener`` for an event as ranks send it; none for an unknown kind."""
    kind, candidate = event["event"], event.get("candidate", 1) - 1
    if kind == "note":
        listener.on_note(fit, event["text"])
    elif kind == "begin":
        listener.on_train_begin(fit, TrainBegin(candidate, event["epoch"], event["step"], event["kept"]))
    elif kind in ("step", "validation", "epoch"):
        hooks = {"step": listener.on_step, "validation": listener.on_validation_end, "epoch": listener.on_epoch_end}
        known = {name: event[name] for name in PROGRESS if name in event}
        hooks[kind](fit, Progress(candidate, metrics=event["logs"], **known))
