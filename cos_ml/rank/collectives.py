"""The collectives that Keras 3 needs, on Horovod, whose own Keras layer supports Keras 2 only (rank side).

With one rank every method returns its argument, and Horovod is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from cos_ml.data import blobs

__all__ = ["Communicator"]

# Types of variables that Horovod does not broadcast in place, or not at all, and those of strings.
NOT_IN_PLACE = ("bfloat16", "int16", "uint16", "uint32", "uint64", "int4", "uint4", "float8_e4m3fn", "float8_e5m2")


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
            import tensorflow as tf

            before = _threads()
            hvd.init()
            self.threads = _threads() - before
            self._hvd = hvd
            self.anchor = tf.Variable(0.0, trainable=False)  # what sums that nobody uses end in
            self.sum(np.zeros(1))  # returns when every rank is connected to every other

    def sum_tensors(
        self, tensors: Sequence[Any], name: str, mean: bool = False, compression: str = "none", anchored: bool = False,
        additive: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Sum tensors over the ranks, inside a step: one message for each dtype, and two for all sparse tensors.

        Those of dtypes one after the other: TensorFlow would merge two that send the same, on ranks whose tensors are
        the same alone.

        Args:
            tensors: dense tensors, whose shapes are the same on all ranks, or ``tf.IndexedSlices``, which stay sparse:
                their slices on all ranks one after the other.
            name: identifies the sum on all ranks.
            mean: whether to compute the means of dense tensors instead; the slices of sparse ones are divided alike.
            compression: "fp16" sends float32 in half the bytes, with three digits; or "none".
            anchored: whether the sum is computed even if nobody uses it.
            additive: whether slices of the same index may be added up, so that each is sent once, and all of them as a
                dense tensor where that is less.
        """
        if self.size == 1 or not tensors:
            return list(tensors)
        import tensorflow as tf

        sums: dict[int, Any] = {}
        kinds = [None if isinstance(one, tf.IndexedSlices) else _wide(one).dtype for one in tensors]
        previous: list[Any] = []
        if sparse := [at for at, kind in enumerate(kinds) if kind is None]:
            gathered = self._gathered([tensors[at] for at in sparse], f"{name}.slices", mean, compression, additive)
            sums |= dict(zip(sparse, gathered, strict=True))
        for kind in sorted({kind for kind in kinds if kind is not None}, key=lambda kind: kind.name):
            places = [at for at, one in enumerate(kinds) if one == kind]
            with tf.control_dependencies(previous):
                summed = self._reduced([tensors[at] for at in places], f"{name}.{kind.name}", mean, compression)
            sums |= dict(zip(places, summed, strict=True))
            previous = [summed[0]]
            if anchored:
                self.anchor.assign(tf.cast(tf.reshape(summed[0], [-1])[0], tf.float32))
        return [sums[at] for at in range(len(tensors))]

    def _reduced(self, tensors: Sequence[Any], name: str, mean: bool, compression: str) -> list[Any]:
        """The sums, or means, of dense tensors that are sent in the same type."""
        import tensorflow as tf

        hvd = self._hvd
        summed = hvd.grouped_allreduce(
            [_wide(one) for one in tensors], op=hvd.Average if mean else hvd.Sum,
            compression=hvd.Compression.fp16 if compression == "fp16" else hvd.Compression.none,
            name=name, ignore_name_scope=True,
        )  # fmt: skip
        return [tf.cast(one, tensor.dtype) for one, tensor in zip(summed, tensors, strict=True)]

    def _gathered(self, tensors: Sequence[Any], name: str, mean: bool, compression: str, additive: bool) -> list[Any]:
        """The slices of sparse gradients on all ranks, as one process would have them."""
        import tensorflow as tf

        here = [_added_up(one) if additive else (one.indices, _wide(one.values)) for one in tensors]
        indices = self._hvd.grouped_allgather(
            [_narrow(of, one) for (of, _), one in zip(here, tensors, strict=True)],
            name=f"{name}.indices", ignore_name_scope=True,
        )  # fmt: skip
        sent = [values for _, values in here]
        if compression == "fp16":
            sent = [tf.cast(one, tf.float16) if one.dtype.is_floating else one for one in sent]
        # Two ranks never have more rows than the two copies of the table that summing a dense one moves.
        large = additive and self.size > 2
        dense = [self._dense_is_less(of, one) if large else None for of, one in zip(indices, tensors, strict=True)]
        values = self._hvd.grouped_allgather(
            [one if which is None else one[: tf.where(which, 0, tf.shape(one)[0])]
             for one, which in zip(sent, dense, strict=True)],
            name=f"{name}.values", ignore_name_scope=True,
        )  # fmt: skip
        found: list[Any] = []
        for at, one in enumerate(tensors):
            if dense[at] is not None:
                with tf.control_dependencies([one.values for one in found[-1:]]):
                    indices[at], values[at] = self._either(
                        dense[at], (indices[at], values[at]), here[at][0], sent[at], one, f"{name}.{at}"
                    )
            rows = tf.cast(values[at], one.values.dtype)
            of = tf.cast(indices[at], one.indices.dtype)
            found.append(tf.IndexedSlices(rows / self.size if mean else rows, of, one.dense_shape))
        return found

    def _dense_is_less(self, indices: Any, slices: Any) -> Any:
        """Whether the ranks have so many rows that a dense tensor, of which a sum moves two copies, is less.

        A boolean tensor, the same on all ranks; None if the shape is not known, so that the rows stay as they are.
        """
        import tensorflow as tf

        count = slices.shape[0] if slices.shape.rank else None
        return None if count is None else tf.shape(indices)[0] > 2 * count

    def _either(
        self, dense: Any, gathered: tuple[Any, Any], indices: Any, values: Any, slices: Any, name: str
    ) -> tuple[Any, Any]:
        """The indices and values on all ranks: those that were gathered, or all rows of a dense sum."""
        import tensorflow as tf

        def summed() -> tuple[Any, Any]:
            table = tf.math.unsorted_segment_sum(values, indices, slices.shape[0])
            total = self._hvd.allreduce(table, op=self._hvd.Sum, name=f"{name}.dense", ignore_name_scope=True)
            return tf.range(slices.shape[0], dtype=gathered[0].dtype), total

        found: tuple[Any, Any] = tf.cond(dense, summed, lambda: gathered)
        return found

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The elementwise sum of an array over the ranks."""
        return values if self.size == 1 else self._hvd.allreduce(values, op=self._hvd.Sum).numpy()

    def maximum(self, values: np.ndarray) -> np.ndarray:
        """The elementwise maximum of an array of at least one axis over the ranks."""
        if self.size == 1 or not values.size:
            return values
        each = self._hvd.allgather(values[np.newaxis]).numpy()
        return np.asarray(each.max(axis=0))

    def exact_sum(self, value: float) -> float:
        """The sum of a number over the ranks, rounded once, so that it does not depend on their order."""
        return value if self.size == 1 else math.fsum(self._hvd.allgather(np.array([value])).numpy())

    def merge_variables(self, variables: Sequence[Any]) -> None:
        """Assign to these Keras variables what they are over the ranks, as the ``aggregation`` of each says."""
        if self.size == 1:
            return
        import tensorflow as tf

        merged = [variable for variable in variables if variable.aggregation in ("sum", "mean")]
        sums = self.sum_tensors([tf.convert_to_tensor(variable.value) for variable in merged], "merged")
        for variable, total in zip(merged, sums, strict=True):
            variable.assign(total if variable.aggregation == "sum" else total / self.size)
        self.broadcast_variables([one for one in variables if one.aggregation == "only_first_replica"])

    def broadcast_variables(self, variables: Sequence[Any], root: int = 0) -> None:
        """Assign to these Keras variables, on every rank, the values that they have on rank ``root``."""
        if self.size == 1:
            return
        # In place, because AutoGraph translates the other way, which takes 0.2 s. That operation lacks some types, and
        # distinguishes variables by their names, which need not be unique.
        known = [variable for variable in variables if variable.value.dtype.name not in NOT_IN_PLACE]
        names = {variable.value.name for variable in known}
        in_place = known if len(names) == len(known) else []
        if in_place:
            self._hvd.broadcast_variables([variable.value for variable in in_place], root_rank=root, inplace=True)
        rest = [variable for variable in variables if all(variable is not one for one in in_place)]
        for index, variable in enumerate(rest):
            wide = _wide(variable.value)
            variable.assign(self._hvd.broadcast(wide, root_rank=root, name=f"variable.{index}"))

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


def _wide(tensor: Any) -> Any:
    """A tensor in a type that Horovod sends: 16-bit floats as 32, small integers as 32, booleans as integers."""
    import tensorflow as tf

    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype in (tf.float32, tf.float64, tf.int32, tf.int64):
        return tensor
    if tensor.dtype.is_integer or tensor.dtype.is_bool:
        return tf.cast(tensor, tf.int64 if tensor.dtype.size > 2 else tf.int32)
    return tf.cast(tensor, tf.float32)


def _added_up(slices: Any) -> tuple[Any, Any]:
    """The indices of a sparse tensor, each once, and the sums of their slices, in a type that Horovod sends."""
    import tensorflow as tf

    indices, places = tf.unique(slices.indices)
    return indices, tf.math.unsorted_segment_sum(_wide(slices.values), places, tf.size(indices))


def _narrow(indices: Any, slices: Any) -> Any:
    """The indices of a sparse tensor in half the bytes, if its shape says that they fit."""
    import tensorflow as tf

    count = slices.shape[0] if slices.shape.rank else None
    return _wide(indices) if count is None or count > tf.int32.max else tf.cast(indices, tf.int32)


def _threads() -> frozenset[int]:
    """The identifiers of this process's threads."""
    return frozenset(thread.id for thread in psutil.Process().threads())
