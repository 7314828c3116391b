"""The training step that all ranks share (rank side)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml.network.forward import pack_inputs
from cos_ml.rank.collectives import Ranks
from cos_ml.spec import TrainSpec

__all__ = []


def make_trainer(network: Any, spec: TrainSpec, ranks: Ranks) -> Any:
    """Compile ``network`` for ``fit``, with every variable as rank 0 has it."""
    arguments = {name: keras.saving.deserialize_keras_object(value) for name, value in spec.compile.items()}
    optimizer = keras.optimizers.get(arguments.pop("optimizer"))
    if spec.learning_rate is not None:
        optimizer.learning_rate = spec.learning_rate
    if spec.accumulation > 1:
        optimizer.gradient_accumulation_steps = spec.accumulation
    # A subclass made here, so that the step sits where Keras looks for it, whatever kind of model this is.
    network.__class__ = type("Shared" + type(network).__name__, (SharedSteps, type(network)), {})
    network.ranks, network.finite, network.compression = ranks, FirstFailure(), spec.compression
    network.compiled_gradients = tf.function(network.gradients, jit_compile=True) if spec.jit_compile else None
    network.compile(optimizer=optimizer, **arguments, jit_compile=False, steps_per_execution=spec.steps_per_execution)
    network._loss_tracker.__class__ = StepMean
    network.optimizer.build(network.trainable_variables)
    ranks.broadcast_variables([*network.weights, *network.optimizer.variables])
    return network


def network_of(trainer: Any) -> Any:
    """The plain network in a trainer, as Keras saves it."""
    trainer.__class__ = type(trainer).__mro__[2]
    del trainer.finite, trainer.compression, trainer.compiled_gradients
    return trainer


class StepMean(keras.metrics.Mean):
    """A mean over steps, each weighing as much as its rows on all ranks.

    Keras would weigh it by the rows of its own batch, which says nothing about the other ranks'.
    """

    weight: Any = 1.0  # a tensor of the step being traced

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        super().update_state(values, sample_weight=self.weight)


class FirstFailure:
    """Counts the steps of an epoch, inside TensorFlow, up to the first one whose loss is not finite."""

    def __init__(self) -> None:
        self._steps, self._failed = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)

    def begin(self, passed: int) -> None:
        """An epoch begins, behind ``passed`` steps."""
        self._steps.assign(passed)
        self._failed.assign(0)

    def count(self, loss: Any) -> None:
        """One more step, with this loss over all ranks."""
        step = self._steps.assign_add(1)
        fails = tf.logical_and(tf.equal(self._failed, 0), tf.logical_not(tf.math.is_finite(loss)))
        self._failed.assign(tf.where(fails, step, self._failed))

    def failed_at(self) -> int:
        """The first step, from 1, whose loss was not finite; 0 where there was none."""
        return int(self._failed.numpy())


class SharedSteps(keras.Model if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mixin for a ``keras.Model``: training and test steps whose loss, gradients and metrics are those of all ranks.

    A step's data are ``(inputs, labels, weights, scale, weight, real)``: row weights [B], the factor B·n/W that makes
    them this step's, W itself, and how many of the rows are real (all, or none).
    """

    ranks: Ranks
    finite: FirstFailure
    compression: str
    compiled_gradients: Callable[[Any], tuple[list[Any], Any, Any]] | None
    wants_stop = agreed_stop = False
    passed = 0  # steps that a resumed epoch has to pass before it computes again

    @property
    def stop_training(self) -> bool:
        """Whether Keras's loop shall end; one rank that ended by itself would leave the others waiting."""
        return self.agreed_stop

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.wants_stop = bool(value)
        self.agreed_stop &= self.wants_stop

    def make_train_function(self, force: bool = False) -> None:
        """Keras's own, which only takes steps out of the feed where a resumed epoch has done them already."""
        super().make_train_function(force)
        compute: Callable[[Any], dict[str, Any]] = vars(self)["train_function"]

        def execute(iterator: Any) -> dict[str, Any]:
            if not self.passed:
                return compute(iterator)
            for _ in range(self.steps_per_execution):
                next(iterator)
            self.passed -= self.steps_per_execution
            return {}

        self.train_function = execute

    def train_step(self, data: Any) -> dict[str, Any]:
        gradients, loss, outputs = (self.compiled_gradients or self.gradients)(data)
        *gradients, loss = self.ranks.average_gradients([*gradients, loss], self.compression)
        self.finite.count(loss)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self._metrics_of(data, outputs)

    def gradients(self, data: Any) -> tuple[list[Any], Any, Any]:
        """Of this rank's rows: the gradients of all trainable variables, the loss, and the outputs."""
        with tf.GradientTape() as tape:
            loss, outputs = self._loss_of(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        return tape.gradient(scaled, self.trainable_variables), loss, outputs

    def test_step(self, data: Any) -> dict[str, Any]:
        _, outputs = self._loss_of(data, training=False)
        return self._metrics_of(data, outputs)

    def get_metrics_result(self) -> dict[str, Any]:
        """Keras asks for this eagerly once, when an epoch or a validation is over: then over all ranks."""
        if tf.executing_eagerly():
            self.ranks.sum_variables([variable for metric in self.metrics for variable in metric.variables])
        return super().get_metrics_result()

    def _loss_of(self, data: Any, training: bool) -> tuple[Any, Any]:
        inputs, labels, weights, scale, weight, _ = data
        outputs = self(pack_inputs(self, inputs), training=training)
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        trackers = [self._loss_tracker, *self._losses_by_output(labels, outputs)]
        for tracker in trackers:
            tracker.weight = weight
        loss = self.compute_loss(inputs, labels, outputs, weights * scale, training=training)
        self._loss_tracker.update_state(loss)
        return loss, outputs

    def _losses_by_output(self, labels: Any, outputs: Any) -> list[Any]:
        """Keras's means of each output's loss, made exact as that of the whole is."""
        if not self._compile_loss.built:
            self._compile_loss.build(labels, outputs)
        for tracker in self._compile_loss.metrics:
            tracker.__class__ = StepMean
        return self._compile_loss.metrics

    def _metrics_of(self, data: Any, outputs: Any) -> dict[str, Any]:
        inputs, labels, weights, _, _, real = data
        labels = tf.nest.pack_sequence_as(outputs, tf.nest.flatten(labels))
        inputs, labels, outputs, weights = tf.nest.map_structure(
            lambda rows: rows[:real], (inputs, labels, outputs, weights)
        )
        return self.compute_metrics(inputs, labels, outputs, weights)


def step_data(
    spec: TrainSpec, arrays: dict[str, np.ndarray], real: int, size: int = 1, total: float | None = None
) -> Any:
    """One step's rows in the form that ``SharedSteps`` takes.

    Args:
        arrays: by field, of B rows.
        real: how many of the rows count: B or 0.
        size: the number of ranks.
        total: the weight of the step's rows on all of them; None for that of these rows.
    """
    count = len(next(iter(arrays.values())))
    weights = arrays.get("w", np.ones(count, np.float32)) if real else np.zeros(count, np.float32)
    total = float(weights.sum()) if total is None else total
    scale = count * size / total if real and total else 0.0
    inputs = tuple(arrays[column.field] for column in spec.inputs)
    labels = tuple(arrays[column.field] for column in spec.labels)
    return (
        inputs,
        labels if len(labels) > 1 else labels[0],
        weights, np.float32(scale), np.float32(total), np.int32(real),
    )  # fmt: skip
