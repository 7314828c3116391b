"""The loss and metrics of a step, exact over any split of its rows (rank and scoring side).

Keras divides the loss of a batch by the batch's own rows. Here a step's rows may be split among n ranks: each row's
weight w becomes w·B·n/W, where B is the number of rows of this rank and W the total weight of the step on all ranks, so
that the mean of the ranks' losses is the weighted mean over all rows. Metrics are sums and counts, which add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml.network import keras_internals
from cos_ml.network.forward import pack_inputs
from cos_ml.spec import TrainSpec

__all__ = ["ExactStep", "GlobalMean", "batch_data", "compile_network"]


class GlobalMean(keras.metrics.Mean):
    """A mean over steps, each weighted by its rows on all ranks; Keras would count those of this rank alone."""

    weight: Any = 1.0  # set to a tensor while a step is traced

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add the value of one step."""
        super().update_state(values, sample_weight=self.weight)


class ExactStep(keras.Model if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixin for a ``keras.Model``: steps on data ``(inputs, labels, weights, scale, weight, num_valid)``.

    ``weights`` are row weights [B], ``scale`` is the factor B·n/W by which they are multiplied, ``weight`` is W, and
    ``num_valid`` is the number of rows that count: all, or none.
    """

    def test_step(self, data: Any) -> dict[str, Any]:
        """One step of evaluation."""
        _, outputs = self.compute_step_loss(data, training=False)
        return self.compute_step_metrics(data, outputs)

    def compute_step_loss(self, data: Any, training: bool) -> tuple[Any, Any]:
        """The loss of this rank's rows, scaled to the whole step, and the outputs."""
        inputs, labels, weights, scale, weight, _ = data
        outputs = self(pack_inputs(self, inputs), training=training)
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        tracker = keras_internals.loss_tracker(self)
        for metric in (tracker, *keras_internals.output_loss_trackers(self, labels, outputs, GlobalMean)):
            metric.weight = weight
        loss = self.compute_loss(inputs, labels, outputs, weights * scale, training=training)
        tracker.update_state(loss)
        return loss, outputs

    def compute_step_metrics(self, data: Any, outputs: Any) -> dict[str, Any]:
        """Add the valid rows to the metrics; return their results so far."""
        inputs, labels, weights, _, _, num_valid = data
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        inputs, labels, outputs, weights = tf.nest.map_structure(
            lambda rows: rows[:num_valid], (inputs, labels, outputs, weights)
        )
        return self.compute_metrics(inputs, labels, outputs, weights)


def compile_network(network: Any, mixin: type, spec: TrainSpec, **options: Any) -> None:
    """Compile ``network`` with the arguments of ``spec`` and the steps of ``mixin``.

    The mixin comes first in a new subclass, so that Keras finds its steps whatever the model's own class is.
    """
    arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in spec.compile.items()}
    optimizer = keras.optimizers.get(arguments.pop("optimizer"))
    if spec.learning_rate is not None:
        optimizer.learning_rate = spec.learning_rate
    if spec.accumulation > 1:
        optimizer.gradient_accumulation_steps = spec.accumulation
    network.__class__ = type(mixin.__name__ + type(network).__name__, (mixin, type(network)), {})
    network.compile(optimizer=optimizer, **arguments, jit_compile=False, **options)
    keras_internals.loss_tracker(network).__class__ = GlobalMean


def batch_data(
    spec: TrainSpec, arrays: dict[str, np.ndarray], num_valid: int, size: int = 1, total: float | None = None
) -> Any:
    """One step's rows in the form that ``ExactStep`` expects.

    Args:
        spec: the columns.
        arrays: field -> array of B rows.
        num_valid: the number of rows that count: B or 0.
        size: the number of ranks.
        total: the weight of the step's rows on all ranks; None if there is only this rank.
    """
    count = len(next(iter(arrays.values())))
    weights = arrays.get("w", np.ones(count, np.float32)) if num_valid else np.zeros(count, np.float32)
    total = float(weights.sum()) if total is None else total
    scale = count * size / total if num_valid and total else 0.0
    inputs = tuple(arrays[column.field] for column in spec.inputs)
    labels = tuple(arrays[column.field] for column in spec.labels)
    structure = labels if len(labels) > 1 else labels[0]
    return inputs, structure, weights, np.float32(scale), np.float32(total), np.int32(num_valid)
