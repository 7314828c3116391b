"""Which steps a training has, and which of them a validation follows (rank side)."""

from __future__ import annotations

from dataclasses import dataclass

from cos_ml.spec import TrainSpec

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """The steps of a training: a function of the spec and the number of steps alone, so that all ranks agree on it.

    Args:
        spec: the training.
        whole: the number of steps of a whole epoch.
    """

    spec: TrainSpec
    whole: int

    @property
    def epochs(self) -> int:
        """The number of epochs, of which the last can be partial."""
        needed = None if self.spec.max_steps is None else -(-self.spec.max_steps // self.whole)
        return self.spec.epochs if needed is None else min(self.spec.epochs, needed)

    @property
    def total(self) -> int:
        """The number of steps of all epochs."""
        steps = self.spec.epochs * self.whole
        return steps if self.spec.max_steps is None else min(steps, self.spec.max_steps)

    def steps(self, epoch: int) -> int:
        """The number of steps of an epoch, counted from 0: fewer than those of a whole one only in the last."""
        return min(self.whole, self.total - epoch * self.whole)

    def is_due(self, epoch: int, step: int) -> bool:
        """Whether a validation follows ``step`` steps of an epoch; at its end there is one anyway."""
        every = self.spec.validation_steps
        return every is not None and not (epoch * self.whole + step) % every and step < self.steps(epoch)

    def cuts(self, epoch: int) -> list[int]:
        """After which steps of an epoch a call of TensorFlow ends early, so that what follows is exactly there."""
        call, last = self.spec.steps_per_execution, self.steps(epoch)
        due = [] if self.spec.validation_steps is None else self._due(epoch)
        return [step for step in (*due, *([last] if last < self.whole else [])) if step % call]

    def _due(self, epoch: int) -> range:
        every = self.spec.validation_steps or 1
        return range(every - epoch * self.whole % every, self.steps(epoch), every)
