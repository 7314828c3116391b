"""Models with steps of their own, and callbacks, in a module that ranks can import."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

registered = keras.saving.register_keras_serializable("cos_ml_steps")
HIDDEN = keras.optimizers.SGD(0.1)  # nobody finds it in the model


@registered
class ByHand(keras.Model):
    """Trains each rank by itself, without an optimizer."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), weights)
        for variable in self.trainable_variables:
            variable.assign_sub(0.1 * tape.gradient(loss, [variable])[0])
            break
        return {"loss": loss}


@registered
class HiddenOptimizer(keras.Model):
    """Has an optimizer that is no attribute of it."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), weights)
        HIDDEN.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@registered
class LateTracker(keras.Model):
    """Updates its tracker after its optimizer, with a loss that is not finite from the third step on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tracker, self.steps = keras.metrics.Mean(name="mine"), tf.Variable(0.0, trainable=False)

    @property
    def metrics(self) -> list[Any]:
        return [self.tracker]

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(y, tf.float32) - self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.tracker.update_state(loss / tf.cast(self.steps.assign_add(1.0) < 3, tf.float32))
        return {"mine": self.tracker.result()}


class StopOnOneRank(keras.callbacks.Callback):
    """Ends the training after the second step, on rank 1 alone."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1 and os.environ.get("HOROVOD_RANK", "1") == "1":
            self.model.stop_training = True
