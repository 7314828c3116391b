"""Cases: models with a ``train_step``, ``test_step``, ``compute_loss`` or ``compute_metrics`` of their own."""

from __future__ import annotations

from typing import Any

import keras
from keras import optimizers as O

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, classes, compiled, floats, rows


def of(kind: type, loss: Any = "mse", **options: Any) -> Any:
    """A model of the user's class."""
    x = In((4,))
    return compiled(kind(x, L.Dense(1)(L.Dense(6, "tanh")(x))), loss, **options)


def gan() -> Any:
    generator = Seq([In((3,)), L.Dense(6, "leaky_relu"), L.Dense(4)], name="generator")
    discriminator = Seq([In((4,)), L.Dense(6, "leaky_relu"), L.Dense(1)], name="discriminator")
    noise, real = In((3,)), In((4,))
    model = userlib.Gan([noise, real], [generator(noise), discriminator(real)])
    model.compile(O.SGD(0.05), O.SGD(0.1))
    return model


def vae() -> Any:
    x, noise = In((6,)), In((2,))
    hidden = L.Dense(5, "tanh")(x)
    mean, log_variance = L.Dense(2)(hidden), L.Dense(2)(hidden)
    code = mean + keras.ops.exp(0.5 * log_variance) * noise
    again = L.Dense(6)(L.Dense(5, "tanh")(code))
    model = userlib.Vae([x, noise], [mean, log_variance, again])
    model.compile(O.SGD(0.02))
    return model


def distilled() -> Any:
    x = In((4,))
    student = Seq([In((4,)), L.Dense(4, "tanh"), L.Dense(3)], name="student")
    teacher = Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(3)], name="teacher")
    teacher.trainable = False
    model = userlib.Distiller(x, [student(x), teacher(x)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compiled(model, [loss, None])


def of_classes(random: Any, count: int) -> Data:
    made = classes(3, 4)(random, count)
    return Data(made.x, [made.y, None])


CASES = [
    Case("own train_step", lambda: of(userlib.OwnStep), rows(4)),
    Case("own train_step, weights", lambda: of(userlib.OwnStep), rows(4, weighted=True)),
    Case("own train_step, apply_gradients", lambda: of(userlib.OldStep, metrics=[userlib.MeanError()]), rows(4)),
    Case("own train_step, tf.function", lambda: of(userlib.FunctionStep), rows(4)),
    Case("own test_step", lambda: of(userlib.OwnTest), rows(4)),
    Case("own compute_loss", lambda: of(userlib.OwnLoss), rows(4, weighted=True)),
    Case("own compute_metrics", lambda: of(userlib.OwnMetrics, metrics=["mae"]), rows(4)),
    Case("own compile", lambda: of(userlib.OwnCompile, factor=0.5), rows(4)),
    Case("gradient penalty", lambda: of(userlib.GradientPenalty), rows(4)),
    Case("two optimizers", lambda: of(userlib.TwoOptimizers), rows(4)),
    Case("GAN", gan, lambda r, n: Data([floats(r, n, 3), floats(r, n, 4)])),
    Case("VAE", vae, lambda r, n: Data([floats(r, n, 6), floats(r, n, 2)])),
    Case("distillation", distilled, of_classes),
]
