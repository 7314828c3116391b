"""What Keras 3 needs of Horovod, and Horovod's own Keras layer can't do (rank side).

With one rank every function here returns what it was given, and Horovod is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from cos_ml.data import blobs

__all__ = ["Communicator"]


class Communicator:
    """The ranks of one training, connected.

    Args:
        size: how many there are; Horovod's environment variables say where.

    Attributes:
        threads: Horovod's own, which look a thousand times a second for what other ranks have ready.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.threads: frozenset[int] = frozenset()
        if size > 1:
            import horovod.tensorflow as hvd

            before = _threads()
            hvd.init()
            self.threads = _threads() - before
            self._hvd = hvd
            self.sum(np.zeros(1))  # returns when every rank is connected to every other

    def average_gradients(self, gradients: Sequence[Any], compression: str = "none") -> list[Any]:
        """Tensors averaged over the ranks, inside a training step; None, for a variable without part in it, stays.

        Args:
            gradients: float tensors. The last one travels as it is: it is the loss.
            compression: "fp16" lets the others travel with half the bytes, and three digits; "none".
        """
        if self.size == 1:
            return list(gradients)
        import tensorflow as tf

        there = [index for index, gradient in enumerate(gradients) if gradient is not None]
        dense = [tf.convert_to_tensor(gradients[index]) for index in there]  # embeddings: from rows to the whole
        if compression == "fp16":
            half = self._hvd.grouped_allreduce(dense[:-1], op=self._hvd.Average, compression=self._hvd.Compression.fp16)
            means = [*half, self._hvd.allreduce(dense[-1], op=self._hvd.Average)]
        else:
            means = self._hvd.grouped_allreduce(dense, op=self._hvd.Average)
        averaged = dict(zip(there, means, strict=True))
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

    def broadcast(self, arrays: Mapping[str, np.ndarray] | None, root: int) -> dict[str, np.ndarray]:
        """Give every rank the named arrays that rank ``root`` has; the others' are not looked at.

        Horovod's own broadcast of objects unpickles what comes from the network.
        """
        if self.size == 1:
            return dict(arrays or {})
        data = np.frombuffer(b"".join(blobs.dump(arrays or {})), np.uint8)
        length = self._hvd.broadcast(np.array([len(data)], np.int64), root_rank=root, name="length").numpy()[0]
        sent = np.resize(data, length)  # of the root's own it is all; the others' is overwritten
        return blobs.load(self._hvd.broadcast(sent, root_rank=root, name="arrays").numpy().tobytes())

    def close(self) -> None:
        """Part from the others, when all have come this far."""
        if self.size > 1:
            self._hvd.shutdown()


def _threads() -> frozenset[int]:
    """Of this process."""
    return frozenset(thread.id for thread in psutil.Process().threads())
