"""A user's own classes of models with layers in attributes, as Keras's guides write them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers as L
from keras import ops

registered = keras.saving.register_keras_serializable("subclassed")
serialize, deserialize = keras.saving.serialize_keras_object, keras.saving.deserialize_keras_object


class Composed(keras.Model):
    """A model of models, which its constructor is given by name."""

    parts: tuple[str, ...] = ()

    def __init__(self, **options: Any) -> None:
        parts = {name: options.pop(name) for name in self.parts}
        super().__init__(**options)
        for name, part in parts.items():
            setattr(self, name, part)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {name: serialize(getattr(self, name)) for name in self.parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        parts = {name: deserialize(config[name]) for name in cls.parts}
        return cls(**config | parts)

    def build(self, shape: Any) -> None:
        self.built = True  # its parts are


# ── generative models ─────────────────────────────────────────────────────────────────────────────────────────────────


class GanStep(Composed):
    """A GAN without a ``call``; the noise comes from the rows, so that any number of ranks has the same."""

    parts = ("discriminator", "generator")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.d_loss, self.g_loss = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.d_loss, self.g_loss]

    def noise(self, real: Any) -> Any:
        return ops.sin(10 * real[:, :3])

    def train_step(self, data: Any) -> dict[str, Any]:
        real = data[0] if isinstance(data, tuple) else data
        noise = self.noise(real)
        both = ops.concatenate([self.generator(noise), real], axis=0)
        labels = ops.concatenate([ops.ones_like(noise[:, :1]), ops.zeros_like(noise[:, :1])], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            answers = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(ops.zeros_like(answers), answers)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


@registered
class GuideGan(GanStep):
    """The same with optimizers and a loss that its ``compile`` takes."""

    def compile(self, d_optimizer: Any, g_optimizer: Any, loss_fn: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    def get_compile_config(self) -> dict[str, Any]:
        return {name: serialize(getattr(self, name)) for name in ("d_optimizer", "g_optimizer", "loss_fn")}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**{name: deserialize(one) for name, one in config.items()})


@registered
class NoisyGan(GuideGan):
    """The same with noise of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1337)

    def noise(self, real: Any) -> Any:
        return keras.random.normal((ops.shape(real)[0], 3), seed=self.seeds)


@registered
class ReadyGan(GanStep):
    """The same with optimizers that its constructor makes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.d_optimizer, self.g_optimizer = keras.optimizers.Adam(0.02), keras.optimizers.Adam(0.01)
        self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)


@registered
class ConditionalGan(GuideGan):
    """The same for rows with one-hot labels."""

    def train_step(self, data: Any) -> dict[str, Any]:
        real, labels = data
        return super().train_step(ops.concatenate([real, labels], axis=1))


@registered
class Sampling(L.Layer):
    """Uses (mean, log variance) to sample a code; without noise, as a test does."""

    def __init__(self, noise: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.amount = noise

    def call(self, inputs: Any) -> Any:
        mean, log_variance = inputs
        return mean + ops.exp(0.5 * log_variance) * self.amount

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"noise": self.amount}


@registered
class GuideVae(Composed):
    """A VAE of an encoder and a decoder, without a ``call``."""

    parts = ("encoder", "decoder")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names = ("total_loss", "reconstruction_loss", "kl_loss")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def losses_of(self, x: Any) -> list[Any]:
        mean, log_variance, code = self.encoder(x)
        again = ops.mean(ops.sum(ops.square(x - self.decoder(code)), axis=1))
        kl = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
        kl = ops.mean(ops.sum(kl, axis=1))
        return [again + kl, again, kl]

    def shown(self, losses: list[Any]) -> dict[str, Any]:
        for tracker, loss in zip(self.trackers, losses, strict=True):
            tracker.update_state(loss)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            losses = self.losses_of(data)
        self.optimizer.apply_gradients(
            zip(tape.gradient(losses[0], self.trainable_weights), self.trainable_weights, strict=True)
        )
        return self.shown(losses)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self.shown(self.losses_of(data))


# ── distillation, contrastive learning ────────────────────────────────────────────────────────────────────────────────


@registered
class GuideDistiller(Composed):
    """A student that learns from a teacher; ``call`` is the student's."""

    parts = ("student", "teacher")

    def compile(self, optimizer: Any, metrics: Any, student_loss: Any, alpha: float = 0.1, temperature: float = 3):  # type: ignore[no-untyped-def]
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss, self.alpha, self.temperature = student_loss, alpha, temperature

    def get_compile_config(self) -> dict[str, Any]:
        own = {"alpha": self.alpha, "temperature": self.temperature, "student_loss": serialize(self.student_loss)}
        return {"optimizer": serialize(self.optimizer), "metrics": ["accuracy"], **own}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**{name: deserialize(one) if isinstance(one, dict) else one for name, one in config.items()})

    def call(self, x: Any, training: Any = None) -> Any:
        return self.student(x, training=training)

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
                     training: bool = True) -> Any:  # fmt: skip
        taught = ops.softmax(self.teacher(x, training=False) / self.temperature, axis=1)
        learned = ops.log_softmax(y_pred / self.temperature, axis=1)
        distilled = -ops.mean(ops.sum(taught * learned, axis=1)) * self.temperature**2
        return self.alpha * self.student_loss(y, y_pred) + (1 - self.alpha) * distilled


@registered
class Contrastive(Composed):
    """Two views of each row are to be more alike than those of different rows of the batch."""

    parts = ("encoder",)

    def train_step(self, data: Any) -> dict[str, Any]:
        first, second = data
        with tf.GradientTape() as tape:
            one, other = (ops.normalize(self.encoder(view), axis=1) for view in (first, second))
            alike = ops.matmul(one, ops.transpose(other)) / 0.5
            loss = -ops.mean(ops.diagonal(ops.log_softmax(alike, axis=1)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"contrast": loss}


# ── with call, compiled as usual ──────────────────────────────────────────────────────────────────────────────────────


@registered
class Classifier(keras.Model):
    """Layers in attributes and lists, with names that are Keras's elsewhere."""

    def __init__(self, units: int = 3, penalty: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.units, self.penalty = units, penalty
        self.blocks = [L.Dense(6, "tanh"), L.Dense(5, "tanh", kernel_regularizer="l2")]
        self.inputs, self.outputs = L.LayerNormalization(), L.Dense(units)

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.inputs(x)
        for block in self.blocks:
            x = block(x)
        if self.penalty:
            self.add_loss(self.penalty * ops.mean(ops.square(x)))
        return self.outputs(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units, "penalty": self.penalty}


@registered
class ByKeys(keras.Model):
    """A dict in, with ids among it, and a dict out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.words, self.numbers = L.Embedding(20, 4), L.Dense(4, "tanh")
        self.kind, self.size = L.Dense(3, "softmax"), L.Dense(1)

    def call(self, inputs: Any) -> Any:
        x = ops.mean(self.words(inputs["ids"]), axis=1) + self.numbers(inputs["a"])
        return {"size": self.size(x), "kind": self.kind(x)}


@registered
class Siamese(keras.Model):
    """A list of two in, the distance out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tower = keras.Sequential([L.Dense(6, "tanh"), L.Dense(4)])

    def call(self, pair: Any) -> Any:
        one, other = pair
        return ops.sqrt(ops.sum(ops.square(self.tower(one) - self.tower(other)), axis=1, keepdims=True) + 1e-6)


@registered
class Tagger(keras.Model):
    """A mask that its layers make, and pass on to the loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.words, self.steps = L.Embedding(9, 5, mask_zero=True), L.GRU(6, return_sequences=True)
        self.tags = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.tags(self.steps(self.words(x)))


@registered
class TwoArguments(Classifier):
    def call(self, x: Any, z: Any) -> Any:
        return super().call(x + z)
