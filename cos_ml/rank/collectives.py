"""The collectives that Keras 3 needs, on Horovod, whose own Keras layer supports Keras 2 only (rank side).

With one rank every method returns its argument, and Horovod is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from cos_ml.data import blobs

__all__ = ["Communicator"]


class Communicator:
    """Connects the ranks of one training.

    Args:
        size: the number of ranks; Horovod's environment variables describe them.

    Attributes:
        threads: identifiers of Horovod's threads, which poll a thousand times a second for other ranks' tensors.
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
        """Average tensors over the ranks, inside a training step.

        Args:
            gradients: float tensors, or None for variables that the step does not use. The last one is the loss, which
                is never compressed.
            compression: "fp16" sends gradients in half the bytes, with three digits; or "none".

        Returns:
            list[Any]: the averages in the same order; None stays None.
        """
        if self.size == 1:
            return list(gradients)
        import tensorflow as tf

        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        dense = [tf.convert_to_tensor(gradients[index]) for index in used]  # an embedding's is a set of rows
        if compression == "fp16":
            half = self._hvd.grouped_allreduce(dense[:-1], op=self._hvd.Average, compression=self._hvd.Compression.fp16)
            means = [*half, self._hvd.allreduce(dense[-1], op=self._hvd.Average)]
        else:
            means = self._hvd.grouped_allreduce(dense, op=self._hvd.Average)
        averaged = dict(zip(used, means, strict=True))
        return [averaged.get(index) for index in range(len(gradients))]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The elementwise sum of an array over the ranks."""
        return values if self.size == 1 else self._hvd.allreduce(values, op=self._hvd.Sum).numpy()

    def sum_variables(self, variables: Sequence[Any]) -> None:
        """Assign to each of these Keras variables its sum over the ranks."""
        if self.size > 1 and variables:
            sums = self._hvd.grouped_allreduce([variable.value for variable in variables], op=self._hvd.Sum)
            for variable, total in zip(variables, sums, strict=True):
                variable.assign(total)

    def broadcast_variables(self, variables: Sequence[Any]) -> None:
        """Assign to these Keras variables, on every rank, the values that they have on rank 0."""
        if self.size > 1 and variables:
            values = [variable.value for variable in variables]
            # In place, because AutoGraph translates the other way, which takes 0.2 s. That operation lacks two types,
            # and distinguishes variables by their names, which need not be unique.
            unique = len({value.name for value in values}) == len(values)
            inplace = unique and not any(value.dtype.name in ("int16", "uint16") for value in values)
            self._hvd.broadcast_variables(values, root_rank=0, inplace=inplace)

    def broadcast(self, items: Mapping[str, Any] | None, root: int) -> dict[str, Any]:
        """The named bytes and arrays of rank ``root``, on every rank; those of other ranks are ignored.

        Horovod's own broadcast of objects unpickles what it receives.
        """
        if self.size == 1:
            return dict(items or {})
        data = np.frombuffer(b"".join(blobs.dump(items or {})), np.uint8)
        length = self._hvd.broadcast(np.array([len(data)], np.int64), root_rank=root, name="length").numpy()[0]
        sent = np.resize(data, length)  # the root's keeps its length; the others' is overwritten
        return blobs.load(self._hvd.broadcast(sent, root_rank=root, name="items").numpy().tobytes())

    def close(self) -> None:
        """Disconnect from the other ranks, once all have called this."""
        if self.size > 1:
            self._hvd.shutdown()


def _threads() -> frozenset[int]:
    """The identifiers of this process's threads."""
    return frozenset(thread.id for thread in psutil.Process().threads())
