"""Successive halving: candidates train in turns of epochs, and after each rung the worse ones are dropped (rank side).

All ranks drop the same candidates: the losses that decide are those of rank 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator

__all__ = ["best", "train_in_turns"]


def train_in_turns(
    candidates: Sequence[Candidate], factor: int, min_epochs: int, communicator: Communicator
) -> Iterator[tuple[Candidate, int | None]]:
    """Train candidates in turns, those that are left in the end to their own end.

    One that has finished before, because of its patience for example, is compared with the others by its last loss.

    Args:
        candidates: what to train, each for the first time.
        factor: the best 1 / factor of the candidates stay after each rung.
        min_epochs: the number of epochs of the first rung; each further rung is ``factor`` times as many.
        communicator: connects this rank to the others.

    Yields:
        Each candidate once, when its training is to end, and the rung after which it was dropped (1, 2, ...), or None
        if it had finished.
    """
    left, rung, epochs = list(candidates), 1, min_epochs
    while len(left) > 1 and not all(one.finished for one in left):
        for one in left:
            one.advance(epochs)
            one.pause()
        losses = np.array([one.loss_after(epochs) for one in left])
        losses = communicator.broadcast({"losses": losses}, 0)["losses"]
        stay = [left[index] for index in best(losses.tolist(), factor)]
        for one in left:
            if one not in stay:
                yield one, None if one.finished else rung
        left, rung, epochs = stay, rung + 1, epochs * factor
    for one in left:
        one.advance(sys.maxsize)
        yield one, None


def best(losses: Sequence[float], factor: int) -> list[int]:
    """The indices of the smallest 1 / factor of the losses, at least one, in order; of equal ones the first count."""
    kept = math.ceil(len(losses) / factor)
    return sorted(sorted(range(len(losses)), key=losses.__getitem__)[:kept])
