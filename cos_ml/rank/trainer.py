"""The training step that all ranks share (rank side)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cos_ml.network.exact_step import ExactStep, compile_network
from cos_ml.rank.collectives import Communicator
from cos_ml.spec import TrainSpec

__all__ = ["DistributedTrainer", "make_trainer", "network_of"]


def make_trainer(network: Any, spec: TrainSpec, communicator: Communicator) -> Any:
    """Compile ``network`` for ``fit``, and give its variables the values that they have on rank 0."""
    compile_network(network, DistributedTrainer, spec, steps_per_execution=spec.steps_per_execution)
    network.communicator, network.finite, network.compression = communicator, NonFiniteTracker(), spec.compression
    network.compiled_gradients = tf.function(network.gradients, jit_compile=True) if spec.jit_compile else None
    network.optimizer.build(network.trainable_variables)
    communicator.broadcast_variables([*network.weights, *network.optimizer.variables])
    return network


def network_of(trainer: Any) -> Any:
    """The plain network in a trainer, as Keras saves it."""
    trainer.__class__ = type(trainer).__bases__[1]
    del trainer.finite, trainer.compression, trainer.compiled_gradients
    return trainer


class NonFiniteTracker:
    """Counts the steps of an epoch, inside TensorFlow, up to the first one whose loss is not finite."""

    def __init__(self) -> None:
        self._steps, self._failed = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)

    def begin(self, passed: int) -> None:
        """Begin an epoch of which ``passed`` steps are done."""
        self._steps.assign(passed)
        self._failed.assign(0)

    def count(self, loss: Any) -> None:
        """Count one step with this loss over all ranks."""
        step = self._steps.assign_add(1)
        fails = tf.logical_and(tf.equal(self._failed, 0), tf.logical_not(tf.math.is_finite(loss)))
        self._failed.assign(tf.where(fails, step, self._failed))

    def failed_at(self) -> int:
        """The first step, from 1, whose loss was not finite; 0 where there was none."""
        return int(self._failed.numpy())


class DistributedTrainer(ExactStep):
    """Mixin for a ``keras.Model``: steps whose loss, gradients and metrics are those of all ranks.

    Attributes:
        communicator: connects this rank to the others.
        finite: finds the first step whose loss is not finite.
        compression: "fp16" halves the bytes of gradients between ranks; or "none".
        compiled_gradients: ``gradients`` compiled by XLA, or None to run it as it is.
        skipped: the number of steps that a resumed epoch has still to skip.
    """

    communicator: Communicator
    finite: NonFiniteTracker
    compression: str
    compiled_gradients: Callable[[Any], tuple[list[Any], Any, Any]] | None
    wants_stop = agreed_stop = False
    skipped = 0

    @property
    def stop_training(self) -> bool:
        """Whether Keras's loop ends, as all ranks agreed: a rank that ended alone would leave the others waiting."""
        return self.agreed_stop

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.wants_stop = bool(value)
        self.agreed_stop &= self.wants_stop

    def make_train_function(self, force: bool = False) -> None:
        """Make Keras's own train function skip, not compute, the completed steps of a resumed epoch."""
        super().make_train_function(force)
        compute: Callable[[Any], dict[str, Any]] = vars(self)["train_function"]

        def execute(iterator: Any) -> dict[str, Any]:
            if not self.skipped:
                return compute(iterator)
            for _ in range(self.steps_per_execution):
                next(iterator)
            self.skipped -= self.steps_per_execution
            return {}

        self.train_function = execute

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of training, shared with all ranks."""
        gradients, loss, outputs = (self.compiled_gradients or self.gradients)(data)
        *gradients, loss = self.communicator.average_gradients([*gradients, loss], self.compression)
        self.finite.count(loss)
        self.optimizer.apply(gradients, self.trainable_variables)
        return self.compute_step_metrics(data, outputs)

    def gradients(self, data: Any) -> tuple[list[Any], Any, Any]:
        """The gradients of all trainable variables, the loss and the outputs for this rank's rows."""
        with tf.GradientTape() as tape:
            loss, outputs = self.compute_step_loss(data, training=True)
            scaled = self.optimizer.scale_loss(loss)
        return tape.gradient(scaled, self.trainable_variables), loss, outputs

    def get_metrics_result(self) -> dict[str, Any]:
        """The metrics; over all ranks when called eagerly, as Keras does at the end of an epoch or a validation."""
        if tf.executing_eagerly():
            self.communicator.sum_variables([variable for metric in self.metrics for variable in metric.variables])
        return super().get_metrics_result()
