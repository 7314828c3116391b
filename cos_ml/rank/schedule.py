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
        return -(-self.total // self.whole)

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
        return step in self._due(epoch)

    def cuts(self, epoch: int) -> list[int]:
        """After which steps of an epoch a call of TensorFlow ends early, so that what follows is exactly there."""
        call, last = self.spec.steps_per_execution, self.steps(epoch)
        end = [last] if last < self.whole else []
        return [step for step in (*self._due(epoch), *end) if step % call]

    def _due(self, epoch: int) -> range:
        every = self.spec.validation_steps
        return range(every - epoch * self.whole % every, self.steps(epoch), every) if every else range(0)
