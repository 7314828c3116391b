"""A user's own module of layers, losses, metrics, models and callbacks, as executors import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

registered = keras.saving.register_keras_serializable("conformance")


# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@registered
def squared(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@registered
def largest_error(y_true: Any, y_pred: Any) -> Any:
    return ops.max(ops.abs(y_true - y_pred), axis=-1)


@registered
def soft(x: Any) -> Any:
    return 1.5 * ops.tanh(x)


@registered
def small(shape: Any, dtype: Any = None) -> Any:
    return keras.random.uniform(shape, -0.1, 0.1, dtype=dtype, seed=1)


@registered
def bounded(weights: Any) -> Any:
    return ops.clip(weights, -0.3, 0.3)


@registered
def halved(epoch: int, rate: float) -> float:
    return rate * 0.5


# ── losses, metrics, schedules, optimizers ────────────────────────────────────────────────────────────────────────────


@registered
class Pinball(keras.losses.Loss):
    """Three quantiles of one number."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        quantiles = ops.array([0.1, 0.5, 0.9])
        error = ops.reshape(y_true, (-1, 1)) - y_pred
        return ops.mean(ops.maximum(quantiles * error, (quantiles - 1) * error), axis=-1)


@registered
class GaussianNLL(keras.losses.Loss):
    """Mean and log-variance of one number."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        mean, log_variance = y_pred[:, 0], y_pred[:, 1]
        return 0.5 * (log_variance + ops.square(ops.reshape(y_true, (-1,)) - mean) * ops.exp(-log_variance))


@registered
class SparseFocal(keras.losses.Loss):
    """Class indices and probabilities of classes."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        chosen = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), y_pred.shape[-1])
        probability = ops.sum(y_pred * chosen, axis=-1)
        return -ops.square(1 - probability) * ops.log(ops.clip(probability, 1e-7, 1.0))


@registered
class Contrastive(keras.losses.Loss):
    """A distance, and whether it is between two of a kind."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true = ops.cast(y_true, y_pred.dtype)
        apart = ops.square(ops.maximum(1.0 - y_pred, 0.0))
        return ops.mean(y_true * ops.square(y_pred) + (1 - y_true) * apart, axis=-1)


@registered
class Hits(keras.metrics.Metric):
    """A metric whose state is a whole number."""

    def __init__(self, name: str = "hits", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", dtype="int32")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.count.assign_add(ops.sum(ops.cast(ops.reshape(y_true, (-1,)) > 0, "int32")))

    def result(self) -> Any:
        return self.count


@registered
class MeanError(keras.metrics.Metric):
    """A metric as Keras's guide shows it: a sum and a count."""

    def __init__(self, name: str = "mean_error", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        error = ops.abs(ops.cast(y_true, y_pred.dtype) - y_pred)
        self.total.assign_add(ops.sum(error))
        self.count.assign_add(ops.cast(ops.size(error), "float32"))

    def result(self) -> Any:
        return self.total / self.count


@registered
class Stairs(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, start: float = 0.1) -> None:
        self.start = start

    def __call__(self, step: Any) -> Any:
        return self.start / (1.0 + ops.cast(step // 2, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {"start": self.start}


@registered
class SignSGD(keras.optimizers.SGD):
    """An optimizer with an update of its own."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ops.tanh(10 * ops.cast(gradient, variable.dtype)))


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@registered
class Scale(keras.layers.Layer):
    """A layer with weights, and with a loss, of its own."""

    def __init__(self, penalty: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.penalty = penalty

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        if self.penalty:
            self.add_loss(self.penalty * ops.mean(ops.square(x)))
        return x * self.scale

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"penalty": self.penalty}


@registered
class SecondOrder(keras.layers.Layer):
    """The products of all pairs of fields, summed, as a factorization machine computes them."""

    def call(self, fields: Any) -> Any:
        total = ops.square(ops.sum(fields, axis=1)) - ops.sum(ops.square(fields), axis=1)
        return 0.5 * ops.sum(total, axis=-1, keepdims=True)


@registered
class MaskPositive(keras.layers.Layer):
    """A mask of its own: steps whose first number is positive are valid."""

    supports_masking = True

    def call(self, x: Any) -> Any:
        return x

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return x[..., 0] > 0


@registered
class Positions(keras.layers.Layer):
    """Adds a vector of its own to each step."""

    supports_masking = True

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(name="table", shape=(shape[1], shape[2]), initializer="uniform")

    def call(self, x: Any) -> Any:
        return x + self.table


@registered
class Distance(keras.layers.Layer):
    """The distance of two vectors."""

    def call(self, pair: Any) -> Any:
        return ops.sqrt(ops.sum(ops.square(pair[0] - pair[1]), axis=-1, keepdims=True) + 1e-6)


@registered
class Reconstruction(keras.layers.Layer):
    """Passes its first input on, and adds its mean squared distance from the second to the loss."""

    def call(self, pair: Any) -> Any:
        self.add_loss(ops.mean(ops.square(pair[0] - pair[1])))
        return pair[0]


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@registered
class OwnStep(keras.Model):
    """A train_step as in Keras's guide, whose loss is half of the compiled one."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = 0.5 * self.compute_loss(x, y, self(x, training=True), weight)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"half": loss}


@registered
class OldStep(keras.Model):
    """The same with apply_gradients and the metrics of the model."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, weight)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


@registered
class FunctionStep(keras.Model):
    """A train_step that is a tf.function."""

    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@registered
class OwnTest(keras.Model):
    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"own": ops.mean(ops.abs(self(x, training=False) - y))}


@registered
class OwnLoss(keras.Model):
    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:  # fmt: skip
        return super().compute_loss(x, y, y_pred, sample_weight, training) + 0.1 * ops.mean(ops.square(y_pred))


@registered
class OwnMetrics(keras.Model):
    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        result = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**result, "twice": 2 * result["loss"]}


@registered
class GradientPenalty(keras.Model):
    """A loss with the gradient of the output by the input: a tape within a tape."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data[:2]
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y_pred = self(x, training=True)
            slope = inner.gradient(y_pred, x)
            loss = self.compute_loss(x, y, y_pred) + 0.1 * ops.mean(ops.square(slope))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@registered
class TwoOptimizers(keras.Model):
    """The head learns faster than the body; the optimizers are a dict of the model's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.each = {"body": keras.optimizers.SGD(0.02), "head": keras.optimizers.Adam(0.05)}

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data[:2]
        body, head = self.trainable_variables[:2], self.trainable_variables[2:]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, body + head)
        self.each["body"].apply(gradients[:2], body)
        self.each["head"].apply(gradients[2:], head)
        return {"loss": loss}


@registered
class OwnCompile(keras.Model):
    """compile() with an argument of its own, which its configuration keeps."""

    def compile(self, *arguments: Any, factor: float = 1.0, **options: Any) -> None:
        super().compile(*arguments, **options)
        self.factor = factor

    def get_compile_config(self) -> dict[str, Any]:
        return {**super().get_compile_config(), "factor": self.factor}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        made = keras.saving.deserialize_keras_object(config)
        self.compile(**{name: value for name, value in made.items() if value is not None})

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:  # fmt: skip
        return self.factor * super().compute_loss(x, y, y_pred, sample_weight, training)


@registered
class Gan(keras.Model):
    """Inputs: noise and real rows. Outputs: the generator's rows, and the discriminator's view of the real ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = [keras.metrics.Mean(name="d"), keras.metrics.Mean(name="g")]
        self.entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def get_compile_config(self) -> dict[str, Any]:
        each = {"d_optimizer": self.d_optimizer, "g_optimizer": self.g_optimizer}
        return keras.saving.serialize_keras_object(each)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self) -> list[Any]:
        return self.seen

    def losses_of(self, noise: Any, real: Any) -> tuple[Any, Any]:
        generator, discriminator = self.get_layer("generator"), self.get_layer("discriminator")
        fake, true = discriminator(generator(noise)), discriminator(real)
        of_both = 0.5 * (self.entropy(ops.zeros_like(fake), fake) + self.entropy(ops.ones_like(true), true))
        return of_both, self.entropy(ops.ones_like(fake), fake)

    def train_step(self, data: Any) -> dict[str, Any]:
        noise, real = keras.utils.unpack_x_y_sample_weight(data)[0]
        generator, discriminator = self.get_layer("generator"), self.get_layer("discriminator")
        with tf.GradientTape() as tape:
            d_loss, _ = self.losses_of(noise, real)
        weights = discriminator.trainable_variables
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            _, g_loss = self.losses_of(noise, real)
        weights = generator.trainable_variables
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        return self.shown(d_loss, g_loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.shown(*self.losses_of(*keras.utils.unpack_x_y_sample_weight(data)[0]))

    def shown(self, *losses: Any) -> dict[str, Any]:
        for metric, loss in zip(self.seen, losses, strict=True):
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.seen}


@registered
class Vae(keras.Model):
    """Inputs: rows, and the noise of the sampling. Outputs: mean and log-variance of the code, and the rows again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total, self.kl = keras.metrics.Mean(name="total"), keras.metrics.Mean(name="kl")

    @property
    def metrics(self) -> list[Any]:
        return [self.total, self.kl]

    def loss_of(self, data: Any, training: bool) -> tuple[Any, Any]:
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        mean, log_variance, again = self(x, training=training)
        kl = -0.5 * ops.mean(ops.sum(1 + log_variance - ops.square(mean) - ops.exp(log_variance), axis=1))
        return ops.mean(ops.sum(ops.square(x[0] - again), axis=1)) + kl, kl

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss, kl = self.loss_of(data, training=True)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return self.shown(loss, kl)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.shown(*self.loss_of(data, training=False))

    def shown(self, loss: Any, kl: Any) -> dict[str, Any]:
        self.total.update_state(loss)
        self.kl.update_state(kl)
        return {"total": self.total.result(), "kl": self.kl.result()}


@registered
class Distiller(keras.Model):
    """Trains its layer "student" to answer as its frozen layer "teacher" does, and as the labels say."""

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:  # fmt: skip
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        taught = ops.stop_gradient(ops.softmax(self.get_layer("teacher")(x, training=False) / 2))
        learned = ops.log_softmax(self.get_layer("student")(x, training=training) / 2)
        return 0.5 * own - 2.0 * ops.mean(ops.sum(taught * learned, axis=-1))


# ── callbacks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watcher(keras.callbacks.Callback):
    """What people do with their network between epochs: each must leave the training as it is."""

    def __init__(self, what: str, path: str, width: int = 4) -> None:
        super().__init__()
        self.what, self.path, self.width = what, path, width

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        x, model = np.ones((3, self.width), "float32"), self.model
        if self.what == "predict":
            seen: Any = model.predict(x, verbose=0).tolist()
        elif self.what == "evaluate":
            seen = model.evaluate(x, np.ones((3, 1), "float32"), verbose=0)
        elif self.what == "save":
            model.save(Path(self.path, "net.keras"))
            seen = keras.saving.load_model(Path(self.path, "net.keras")).predict(x, verbose=0).tolist()
        elif self.what == "weights":
            model.save_weights(Path(self.path, "net.weights.h5"))
            seen = sorted(model.get_config())
        else:
            clone = keras.models.clone_model(model)
            clone.set_weights(model.get_weights())
            seen = [type(model).__name__, type(model.optimizer).__name__, clone(x).numpy().tolist()]
        with open(Path(self.path, "seen.txt"), "a") as file:
            print(seen, file=file)


class Cooling(keras.callbacks.Callback):
    """A learning rate that depends on the losses so far."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate, self.losses = rate, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])
        self.model.optimizer.learning_rate = self.rate / (1 + len(self.losses) * min(1.0, self.losses[-1]))


class StopsAtOnce(keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = True
