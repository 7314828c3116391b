"""What a rank knows about itself and the other ranks (rank side)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cos_ml.rank.collectives import Communicator
from cos_ml.rank.heartbeat import Heartbeat

__all__ = ["PhaseTimer", "RankContext", "TrainingLog", "metrics_of"]

MAX_VALUES = 100  # numbers of a metric in an event: F1Score has one per class


@dataclass
class RankContext:
    """This rank and its connections.

    Attributes:
        communicator: connects this rank to the others.
        rank: the number of this rank.
        tasks: rank -> what its barrier task sent to the others.
        timer: measures the seconds of each phase.
        heartbeat: sends events to this rank's task.
        candidate: the number of the candidate being trained, and the number of candidates.
    """

    communicator: Communicator
    rank: int
    tasks: list[dict[str, Any]]
    timer: PhaseTimer
    heartbeat: Heartbeat
    candidate: dict[str, int] = field(default_factory=dict)

    @property
    def partition(self) -> int:
        """The partition whose rows this rank has; unlike the rank, it does not depend on where Spark runs tasks."""
        return self.tasks[self.rank]["partition"]

    @property
    def digest(self) -> list[Any]:
        """The digests of all ranks' rows, by partition."""
        return [task["digest"] for task in sorted(self.tasks, key=lambda task: task["partition"])]

    def report(self, **event: Any) -> None:
        """Send an event to the driver; only rank 0 does, for all ranks."""
        if self.rank == 0:
            self.heartbeat.send(**event, **self.candidate)

    def report_metrics(self, event: str, plan: Any, epoch: int, step: int, logs: dict[str, Any], **more: Any) -> None:
        """Send the metrics after ``step`` steps of an epoch, counted from 0, to the driver."""
        feed, schedule = plan.feeds["train"], plan.schedule
        numbers = {name: float(value) for name, value in logs.items() if not np.ndim(value)}
        arrays = {name: value for name, value in logs.items() if np.ndim(value) and np.size(value) <= MAX_VALUES}
        self.report(
            event=event, epoch=epoch + 1, epochs=schedule.epochs, step=step, steps=schedule.whole,
            total_steps=schedule.total, rows=feed.total_rows, logs=numbers, arrays=metrics_of(arrays), **more,
        )  # fmt: skip


@dataclass
class TrainingLog:
    """The epochs of a training so far.

    Attributes:
        history: metric -> its value after each epoch: a number, or a list of them for a metric with several. With
            validations within epochs it also has their values, and "step", the number of steps before each.
        seconds: the duration of each epoch.
        steps: the number of steps so far.
    """

    history: dict[str, list[Any]] = field(default_factory=dict, init=False)
    seconds: list[float] = field(default_factory=list, init=False)
    steps: int = field(default=0, init=False)

    def add(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Add the metrics at the end of an epoch, or of ``step`` steps, where they replace those of the same step."""
        if step is None:
            for name, value in metrics.items():
                self.history.setdefault(name, []).append(value)
            return
        if self.history.get("step", [])[-1:] == [step]:
            for values in self.history.values():
                del values[-1]
        rows = len(self.history.setdefault("step", []))
        self.history["step"].append(step)
        for name, value in metrics.items():
            self.history.setdefault(name, [_missing(value)] * rows).append(value)
        for values in self.history.values():  # some callbacks add theirs at the ends of epochs only
            values.extend([_missing(values[0])] * (rows + 1 - len(values)))


def metrics_of(logs: dict[str, Any]) -> dict[str, Any]:
    """The metrics in Keras's logs as plain values: numbers, or lists of them."""
    return {name: np.asarray(value).tolist() for name, value in logs.items()}


def _missing(like: Any) -> Any:
    return np.full(np.shape(like), np.nan).tolist()


class PhaseTimer:
    """Seconds spent in each phase.

    Attributes:
        seconds: phase -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to ``phase``."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
