"""One step whose rows are a part of those that belong together (rank and scoring side).

What belongs together is split: the rows of a training step among the ranks, those of an evaluation among batches and
partitions. Each part weighs p = its rows / all rows. Keras's own code is then right for whatever is a mean over rows or
does not depend on rows. The rest is mended where Keras computes it, and only while a step is traced:

- losses with a mask, ``ignore_class``, the reduction "sum" or "mean_with_sample_weight": the sum over this part is
  divided by the count of all parts;
- means over steps (the loss of each output, a tracker in a ``train_step``): a part counts p, so that a step counts 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import keras
import tensorflow as tf

from cos_ml.network.keras_internals import loss_module, take_module

__all__ = ["PartialStep", "Step", "install_hooks"]

Reduce = Callable[..., Any]
COUNTED = ("mean", "sum_over_batch_size")  # reductions that divide by the number of valid elements if there is a mask


class Step:
    """A step while it is traced, or run eagerly.

    Args:
        share: float64 scalar, the part p of the step's rows that are here; None if all are.

    Attributes:
        losses: the scalars that Keras's means over steps have received so far, in order.
    """

    current: ClassVar[Step | None] = None

    def __init__(self, share: Any = None) -> None:
        self.share = share
        self.losses: list[Any] = []

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Within the block the hooks act for this step."""
        before, Step.current = Step.current, self
        try:
            yield self
        finally:
            Step.current = before

    def p(self, like: Any) -> Any:
        """The share in the type of a tensor."""
        return tf.cast(self.share, like.dtype)

    def whole_count(self, count: Any) -> Any:
        """The sum of a scalar over all parts."""
        return count

    def element_weights(self, weights: Any) -> Any:
        """The weights of a metric's elements, of which Keras takes the mean in each row."""
        return weights


class PartialStep(Step):
    """A batch of an evaluation, all of whose rows count as one step.

    Args:
        share: float64 scalar, the part of all rows that are in the batch.
        counts: float64 [losses], the counts of all batches; [0] if they are not known yet.

    Attributes:
        found: the counts of this batch, each a float64 scalar.
    """

    def __init__(self, share: Any, counts: Any) -> None:
        super().__init__(share)
        self.counts = counts
        self.found: list[Any] = []

    def whole_count(self, count: Any) -> Any:
        """The count of all batches, where it is known; else 1."""
        self.found.append(tf.cast(count, tf.float64))
        index = len(self.found) - 1
        known = tf.pad(self.counts, [[0, tf.maximum(0, len(self.found) - tf.size(self.counts))]], constant_values=1)
        return tf.cast(known[index], count.dtype)

    def element_weights(self, weights: Any) -> Any:
        """The weights times the length of a row, so that batches that are padded to different lengths add up."""
        length = tf.cast(tf.size(weights) / tf.maximum(tf.shape(weights)[0], 1), tf.float32)
        return tf.cast(weights, tf.float32) * length


def install_hooks() -> None:
    """Hook Keras's losses and means, for good; outside of a step they compute what they always did."""
    module = loss_module()
    if hasattr(module.reduce_weighted_values, "__wrapped__"):
        return
    module.reduce_weighted_values = _hooked_reduction(module.reduce_weighted_values)
    for metric in (keras.metrics.Mean, keras.metrics.Sum):
        metric.update_state = _hooked_update(metric.update_state, metric is keras.metrics.Mean)
    lookups = take_module()
    if lookups is not None:
        lookups.take = _hooked_take(lookups.take)


def _hooked_reduction(reduce: Reduce) -> Reduce:
    """Keras's reduction of a loss's values to a number, over all parts of a step."""

    @functools.wraps(reduce)
    def reduce_weighted_values(
        values: Any, sample_weight: Any = None, mask: Any = None, reduction: Any = COUNTED[1], dtype: Any = None
    ) -> Any:
        step = Step.current
        if step is None or not len(values.shape):
            return reduce(values, sample_weight, mask, reduction, dtype)
        sample_weight = _aligned(sample_weight, values if mask is None else mask)
        weighed = reduction == "mean_with_sample_weight" and sample_weight is not None
        by_rows = reduction in (None, "none") or (mask is None and not weighed and reduction != "sum")
        if step.share is None or by_rows:
            return reduce(values, sample_weight, mask, reduction, dtype)
        total = reduce(values, sample_weight, mask, "sum", dtype)
        if reduction == "sum":
            return total / step.p(total)
        if weighed:
            count = reduce(sample_weight, None, mask, "sum", dtype)
        else:  # valid elements of the mask, brought to the size of the values
            scale = tf.cast(tf.size(values), total.dtype) / tf.cast(tf.size(mask), total.dtype)
            count = tf.reduce_sum(tf.cast(mask, total.dtype)) * scale
        return tf.math.divide_no_nan(total, step.whole_count(count) * step.p(total))

    return reduce_weighted_values


def _aligned(weights: Any, values: Any) -> Any:
    """Row weights [B, 1, ...] with as many axes as ``values``; other weights as they are."""
    if weights is None or not len(values.shape) or len(weights.shape) == len(values.shape):
        return weights
    if any(side != 1 for side in weights.shape[1:]):
        return weights
    return tf.reshape(weights, [-1] + [1] * (len(values.shape) - 1))


def _hooked_update(update: Callable[..., Any], is_mean: bool) -> Callable[..., Any]:
    """The update of a metric that adds up: a scalar without a weight counts as much as the part that it is of."""

    @functools.wraps(update)
    def update_state(self: Any, values: Any, sample_weight: Any = None) -> None:
        step = Step.current
        if step is not None and not len(tf.convert_to_tensor(values).shape):
            step.losses.append(values)
            if step.share is not None and sample_weight is None:
                sample_weight = tf.cast(step.share, self.dtype)
        elif step is not None and is_mean and sample_weight is not None and len(sample_weight.shape) > 1:
            sample_weight = step.element_weights(sample_weight)
        update(self, values, sample_weight)

    return update_state


def _hooked_take(take: Callable[..., Any]) -> Callable[..., Any]:
    """Let a lookup read only its rows: Keras reads the whole table, which TensorFlow copies once rows of it change."""

    @functools.wraps(take)
    def rows(x: Any, indices: Any, axis: Any = None) -> Any:
        table = x.value if Step.current is not None and isinstance(x, keras.Variable) and axis == 0 else None
        if (
            not isinstance(table, tf.Variable)
            or not isinstance(indices, tf.Tensor)
            or indices.dtype not in (tf.int32, tf.int64)
        ):
            return take(x, indices, axis)
        return tf.gather(table, tf.where(indices < 0, indices + table.shape[0], indices))

    return rows
