"""What Keras 3 needs of Horovod, and Horovod's own Keras layer can't do (rank side).

With one rank every function here returns what it was given, and Horovod is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["Ranks"]


class Ranks:
    """The ranks of one training, connected.

    Args:
        size: how many there are; Horovod's environment variables say where.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        if size > 1:
            import horovod.tensorflow as hvd

            hvd.init()
            self._hvd = hvd
            self.sum(np.zeros(1))  # returns when every rank is connected to every other

    def average_gradients(self, gradients: Sequence[Any]) -> list[Any]:
        """Tensors averaged over the ranks, inside a training step; None, for a variable without part in it, stays."""
        if self.size == 1:
            return list(gradients)
        import tensorflow as tf

        there = [index for index, gradient in enumerate(gradients) if gradient is not None]
        dense = [tf.convert_to_tensor(gradients[index]) for index in there]  # embeddings: from rows to the whole
        averaged = dict(zip(there, self._hvd.grouped_allreduce(dense, op=self._hvd.Average), strict=True))
        return [averaged.get(index) for index in range(len(gradients))]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum of an array over the ranks, element by element."""
        return values if self.size == 1 else self._hvd.allreduce(values, op=self._hvd.Sum).numpy()

    def sum_variables(self, variables: Sequence[Any]) -> None:
        """Replace each of these Keras variables by its sum over the ranks."""
        if self.size > 1 and variables:
            sums = self._hvd.grouped_allreduce([variable.value for variable in variables], op=self._hvd.Sum)
            for variable, total in zip(variables, sums, strict=True):
                variable.assign(total)

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Give every rank the values that rank 0 has in these Keras variables."""
        if self.size > 1 and variables:
            self._hvd.broadcast_variables([variable.value for variable in variables], root_rank=0)

    def broadcast(self, value: Any, root: int) -> Any:
        """Give every rank the plain object that rank ``root`` has (arrays in a dict, say)."""
        if self.size == 1:
            return value
        return self._hvd.broadcast_object(value, root_rank=root)

    def close(self) -> None:
        """Part from the others, when all have come this far."""
        if self.size > 1:
            self._hvd.shutdown()
