"""Successive halving: candidates train in turns of epochs, and after each rung the worse ones are dropped (rank side).

All ranks go the same way: the losses that decide are those of rank 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from cos_ml.rank.candidate import Candidate
from cos_ml.rank.collectives import Communicator

__all__ = ["best", "race"]


def race(
    candidates: Sequence[Candidate], factor: int, min_epochs: int, communicator: Communicator
) -> Iterator[tuple[Candidate, int | None]]:
    """Train candidates in turns, the last one that is left to its end.

    One that is over before, because of its patience for example, is compared with the others by its last loss.

    Args:
        candidates: what to train, each for the first time.
        factor: the best 1 / factor of the candidates stay after each rung.
        min_epochs: the number of epochs of the first rung; each further rung is ``factor`` times as many.
        communicator: connects this rank to the others.

    Yields:
        Each candidate once, when its training is to end, and the rung after which it was dropped (1, 2, ...), or None.
    """
    left, over = list(candidates), dict[Candidate, float]()
    rung, epochs = 1, min_epochs
    while running := [one for one in left if one not in over]:
        alone = len(left) == 1
        for one in running:
            one.advance(sys.maxsize if alone else epochs)
            if not alone:
                one.pause()
        own = [0.0 if alone else over[one] if one in over else one.score(epochs) for one in left]
        scores = communicator.broadcast({"scores": np.array(own)}, 0)["scores"].tolist()
        stay = [left[index] for index in best(scores, factor)]
        for one, score in zip(left, scores, strict=True):
            if one in over:
                continue
            if one.over:
                over[one] = score
                yield one, None
            elif one not in stay:
                yield one, rung
        left, rung, epochs = stay, rung + 1, epochs * factor


def best(scores: Sequence[float], factor: int) -> list[int]:
    """The indices of the smallest 1 / factor of the scores, at least one, in order; of equal ones the first count."""
    kept = math.ceil(len(scores) / factor)
    return sorted(sorted(range(len(scores)), key=scores.__getitem__)[:kept])
