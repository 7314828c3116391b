"""Cases: models with layers in attributes, as Keras's guides write GANs, VAEs and their like."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import optimizers as O

from tests.conformance import usermodels
from tests.conformance.case import Case, Data, In, L, Seq, classes, compiled, floats, ids, one_hot, ragged, rows

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def gan(kind: type = usermodels.GuideGan, width: int = 4) -> Any:
    model = kind(
        discriminator=Seq([In((width,)), L.Dense(6, "leaky_relu"), L.Dense(1)], name="discriminator"),
        generator=Seq([In((3,)), L.Dense(6, "leaky_relu"), L.Dense(width)], name="generator"),
    )
    model.build((None, 4))
    if kind is usermodels.ReadyGan:
        model.compile(optimizer="sgd")
    else:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(d_optimizer=O.Adam(0.02), g_optimizer=O.Adam(0.01), loss_fn=loss)
    return model


def vae() -> Any:
    x, code = In((6,)), In((2,))
    hidden = L.Dense(5, "tanh")(x)
    mean, log_variance = L.Dense(2, name="z_mean")(hidden), L.Dense(2, name="z_log_var")(hidden)
    encoder = keras.Model(x, [mean, log_variance, usermodels.Sampling(0.3)([mean, log_variance])], name="encoder")
    decoder = keras.Model(code, L.Dense(6)(L.Dense(5, "tanh")(code)), name="decoder")
    model = usermodels.GuideVae(encoder=encoder, decoder=decoder)
    model.build((None, 6))
    model.compile(optimizer=O.Adam(0.02))
    return model


def distiller() -> Any:
    teacher = Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(3)], name="teacher")
    teacher.trainable = False
    student = Seq([In((4,)), L.Dense(4, "tanh"), L.Dense(3)], name="student")
    model = usermodels.GuideDistiller(student=student, teacher=teacher)
    model(In((4,)))
    model.compile(O.Adam(0.02), ["accuracy"], LOGITS, alpha=0.3)
    return model


def contrastive() -> Any:
    model = usermodels.Contrastive(encoder=Seq([In((4,)), L.Dense(6, "tanh"), L.Dense(3)]))
    model.build((None, 4))
    model.compile(O.SGD(0.1))
    return model


def called(kind: type, tensors: Any, loss: Any, metrics: Any = None, **options: Any) -> Any:
    """A model that was called once on these tensors, as a user does it."""
    model = kind(**options)
    model(tensors)
    return compiled(model, loss, metrics=metrics)


def classifier(**options: Any) -> Any:
    return called(usermodels.Classifier, np.zeros((2, 4), "float32"), LOGITS, ["accuracy"], **options)


def by_keys(policy: str = "float32") -> Any:
    inputs = {"a": np.zeros((2, 4), "float32"), "ids": np.zeros((2, 3), "int32")}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    return called(usermodels.ByKeys, inputs, losses, {"kind": ["accuracy"], "size": ["mae"]}, dtype=policy)


def keyed(random: Any, count: int) -> Data:
    return Data({"a": floats(random, count, 4), "ids": ids(random, count, 20, 3)},
                {"kind": ids(random, count, 3), "size": floats(random, count, 1)})  # fmt: skip


def in_float64(random: Any, count: int) -> Data:
    return Data(random.normal(size=(count, 4)), random.integers(0, 3, count))


def alike(random: Any, count: int) -> Data:
    return Data([floats(random, count, 6), floats(random, count, 6)], floats(random, count, 1))


def tags(random: Any, count: int) -> Data:
    lengths = random.integers(1, 7, (count, 1))
    return Data(np.where(np.arange(6) < lengths, random.integers(1, 9, (count, 6)), 0), ids(random, count, 3, 6))


def ragged_tags(random: Any, count: int) -> Data:
    lengths = random.integers(1, 7, count)
    words = ragged(lambda length: random.integers(1, 9, length), lengths)
    return Data(words, ragged(lambda length: random.integers(0, 3, length), lengths))


def within() -> Any:
    """A functional model with a class of the user's own as a layer."""
    x = In((4,))
    return compiled(keras.Model(x, L.Dense(1)(usermodels.Classifier(name="inner")(x))))


CASES = [
    Case("subclassed GAN", gan, lambda r, n: Data(floats(r, n, 4)), valid=0),
    Case("subclassed GAN, optimizers in its constructor", lambda: gan(usermodels.ReadyGan),
         lambda r, n: Data(floats(r, n, 4)), valid=0),
    Case("subclassed GAN, noise of its own", lambda: gan(usermodels.NoisyGan), lambda r, n: Data(floats(r, n, 4)),
         valid=0, kind="one rank", reseeded=True),
    Case("subclassed GAN, labels", lambda: gan(usermodels.ConditionalGan, 7),
         lambda r, n: Data(floats(r, n, 4), one_hot(r, n, 3)), valid=0),
    Case("subclassed VAE", vae, lambda r, n: Data(floats(r, n, 6))),
    Case("subclassed distiller", distiller, classes(3, 4)),
    Case("subclassed contrastive", contrastive, lambda r, n: Data(floats(r, n, 4), floats(r, n, 4)), valid=0,
         kind="one rank"),
    Case("subclassed classifier", classifier, classes(3, 4)),
    Case("subclassed classifier, weights", classifier, classes(3, 4, weighted=True)),
    Case("subclassed classifier, add_loss", lambda: classifier(penalty=0.5), classes(3, 4)),
    Case("subclassed classifier, float64", lambda: classifier(dtype="float64"), in_float64),
    Case("subclassed, dicts", by_keys, keyed),
    Case("subclassed, list", lambda: called(usermodels.Siamese, [np.zeros((2, 6), "float32")] * 2, "mse"), alike),
    Case("subclassed, mask", lambda: called(usermodels.Tagger, np.zeros((2, 6), "int32"), LOGITS), tags),
    Case("subclassed, any length", lambda: called(usermodels.Tagger, In((None,), dtype="int32"), LOGITS), ragged_tags),
    Case("subclassed within functional", within, rows(4)),
    Case("subclassed GAN, validation", gan, lambda r, n: Data(floats(r, n, 4)), refused="has no call()"),
]  # fmt: skip
