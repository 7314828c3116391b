"""Cases: losses, what they accept as labels, reductions, weights of rows, and several outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import losses as K

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, classes, compiled, floats, ids, one_hot, rows

CE = "sparse_categorical_crossentropy"
Make = Callable[[], Any]


def net(units: int, activation: Any = None, shape: tuple[int, ...] = (4,)) -> Any:
    return Seq([In(shape), L.Dense(6, "tanh"), L.Dense(units, activation=activation)])


def numbers(name: str, loss: Make, activation: Any = None, positive: bool = False, **options: Any) -> Case:
    """A case of three numbers for each row; only positive ones where asked for."""

    def data(random: Any, count: int) -> Data:
        y = floats(random, count, 3)
        return Data(floats(random, count, 4), np.abs(y) + 0.1 if positive else y)

    return Case(name, lambda: compiled(net(3, activation), loss()), data, **options)


def binary(name: str, loss: Make, activation: Any = None, low: float = 0.0, weighted: bool = False) -> Case:
    """A case of one of two classes for each row, 1 or ``low``."""

    def data(random: Any, count: int) -> Data:
        y = np.where(ids(random, count, 2, 1) == 1, 1.0, low).astype("float32")
        return Data(floats(random, count, 4), y, random.uniform(0, 3, count) if weighted else None)

    return Case(name, lambda: compiled(net(1, activation), loss()), data)


def hot(name: str, loss: Make, activation: Any = "softmax", **options: Any) -> Case:
    """A case of one of three classes for each row, as three numbers."""
    data = lambda r, n: Data(floats(r, n, 4), one_hot(r, n, 3))  # noqa: E731
    return Case(name, lambda: compiled(net(3, activation), loss()), data, **options)


def indexed(name: str, loss: Make, activation: Any = "softmax", weighted: bool = False, **options: Any) -> Case:
    """A case of one of three classes for each row, as its index."""
    return Case(name, lambda: compiled(net(3, activation), loss()), classes(3, 4, weighted=weighted), **options)


def by_step(name: str, loss: Make, low: int = 0, weighted: bool = False, **options: Any) -> Case:
    """A case of a class for each of five time steps."""

    def data(random: Any, count: int) -> Data:
        weights = random.uniform(0, 3, count).astype("float32") if weighted else None
        return Data(floats(random, count, 5, 4), random.integers(low, 3, (count, 5)), weights)

    more = {"weighted_metrics": ["accuracy"]} if weighted else {"metrics": ["accuracy"]}
    return Case(name, lambda: compiled(net(3, "softmax", (5, 4)), loss(), **more), data, **options)


def pixels(name: str, loss: Make, units: int, activation: Any, label: Callable[..., Any],
           weighted: bool = False) -> Case:  # fmt: skip
    """A case of a label for each pixel."""
    build = lambda: compiled(Seq([In((4, 4, 2)), L.Conv2D(units, 3, padding="same", activation=activation)]), loss())  # noqa: E731
    weights = lambda r, n: r.uniform(0, 3, n) if weighted else None  # noqa: E731
    return Case(name, build, lambda r, n: Data(floats(r, n, 4, 4, 2), label(r, n), weights(r, n)))


def reduced(name: str, reduction: str | None, weighted: bool = True, **options: Any) -> Case:
    """A case of a reduction of losses, beside a penalty that is none."""

    def build() -> Any:
        layers = [In((4,)), L.Dense(6, "tanh", kernel_regularizer="l2"), L.Dense(2)]
        return compiled(Seq(layers), K.MeanSquaredError(reduction=reduction), keras.optimizers.SGD(0.005))

    return Case(name, build, rows(4, out=2, weighted=weighted), **options)


# ── several outputs ───────────────────────────────────────────────────────────────────────────────────────────────────


def tower(loss: Any, **options: Any) -> Any:
    """A class for each of five steps, and a number for the row."""
    x = In((5, 4))
    hidden = L.Dense(6, "tanh")(x)
    score = L.Dense(1, name="score")(L.GlobalAveragePooling1D()(hidden))
    return compiled(keras.Model(x, [L.Dense(3, "softmax", name="tags")(hidden), score]), loss, **options)


def keyed(named: bool, loss: Any, **options: Any) -> Any:
    """Outputs in a dict, whose layers have other names where ``named``."""
    x = In((4,))
    price, kind = L.Dense(1, name="p" if named else "price"), L.Dense(3, "softmax", name="k" if named else "kind")
    return compiled(keras.Model(x, {"price": price(x), "kind": kind(x)}), loss, **options)


def two(random: Any, count: int) -> Data:
    return Data(floats(random, count, 5, 4), [ids(random, count, 3, 5), floats(random, count, 1)])


def two_weighted(random: Any, count: int) -> Data:
    made = two(random, count)
    return Data(made.x, made.y, random.uniform(0, 3, count).astype("float32"))


def by_key(random: Any, count: int) -> Data:
    return Data(floats(random, count, 4), {"price": floats(random, count, 1), "kind": ids(random, count, 3)})


def halves() -> Any:
    """Two outputs, of which only the first has a loss."""
    x = In((4,))
    return compiled(keras.Model(x, [L.Dense(1, name="a")(x), L.Dense(3, name="b")(x)]), ["mse", None])


def from_layers() -> Any:
    """A network whose only loss is that of a layer."""
    x = In((4,))
    again = L.Dense(4)(L.Dense(2, "tanh")(x))
    return compiled(keras.Model(x, userlib.Reconstruction()([again, x])), None)


def words(random: Any, count: int) -> Data:
    return Data(floats(random, count, 8, 4), random.integers(1, 4, (count, 3)))


def circle() -> Any:
    return compiled(Seq([In((4,)), L.Dense(5), L.UnitNormalization()]), K.Circle(), keras.optimizers.SGD(0.01))


def none_given() -> Any:
    """Uncompiled: the Params say loss, optimizer and metrics."""
    return net(3, "softmax")


SMOOTH = {"label_smoothing": 0.1}
CASES = [
    numbers("mean squared error, function", lambda: K.mean_squared_error),
    numbers("mean absolute error", lambda: K.MeanAbsoluteError()),
    numbers("mean squared logarithmic error", lambda: K.MeanSquaredLogarithmicError(), "softplus", positive=True),
    numbers("mean absolute percentage error", lambda: "mape", "softplus", positive=True, tolerance=2e-5),
    numbers("huber", lambda: K.Huber(0.4)),
    numbers("log cosh", lambda: K.LogCosh()),
    numbers("cosine similarity", lambda: K.CosineSimilarity()),
    numbers("poisson", lambda: K.Poisson(), "softplus", positive=True),
    binary("binary crossentropy, function", lambda: K.binary_crossentropy, "sigmoid"),
    binary("binary crossentropy, logits, smoothed", lambda: K.BinaryCrossentropy(True, **SMOOTH), weighted=True),
    binary("binary focal crossentropy", lambda: K.BinaryFocalCrossentropy(True, gamma=1.5), "sigmoid"),
    binary("hinge", lambda: K.Hinge(), "tanh", low=-1.0),
    binary("squared hinge", lambda: "squared_hinge", "tanh", low=-1.0),
    hot("categorical crossentropy", lambda: K.CategoricalCrossentropy(from_logits=True, **SMOOTH), None),
    hot("categorical focal crossentropy", lambda: K.CategoricalFocalCrossentropy(alpha=0.5, gamma=1.0)),
    hot("categorical hinge", lambda: K.CategoricalHinge()),
    hot("KL divergence", lambda: K.KLDivergence()),
    indexed("generalized crossentropy", lambda: K.CategoricalGeneralizedCrossEntropy(q=0.6)),
    indexed("sparse crossentropy, name", lambda: CE, weighted=True),
    indexed("sparse crossentropy, logits", lambda: K.SparseCategoricalCrossentropy(from_logits=True), None),
    indexed("sparse crossentropy, function", lambda: K.sparse_categorical_crossentropy),
    indexed("ignore_class, of the classes", lambda: K.SparseCategoricalCrossentropy(ignore_class=1), weighted=True),
    by_step("time steps", lambda: CE),
    by_step("time steps, weights", lambda: CE, weighted=True),
    by_step("time steps, ignore_class=-1", lambda: K.SparseCategoricalCrossentropy(ignore_class=-1), low=-1),
    pixels("pixels", lambda: "mae", 1, None, lambda r, n: floats(r, n, 4, 4, 1), weighted=True),
    pixels("pixels, classes", lambda: CE, 3, "softmax", lambda r, n: ids(r, n, 3, 4, 4)),
    pixels("dice", lambda: K.Dice(axis=(1, 2, 3)), 1, "sigmoid", lambda r, n: ids(r, n, 2, 4, 4, 1).astype("float32")),
    pixels("tversky", lambda: K.Tversky(0.3, 0.7, axis=(1, 2, 3)), 1, "sigmoid",
           lambda r, n: ids(r, n, 2, 4, 4, 1).astype("float32")),
    Case("CTC", lambda: compiled(net(5, None, (8, 4)), K.CTC(), keras.optimizers.SGD(0.01)), words),
    Case("circle", circle, lambda r, n: Data(floats(r, n, 4), ids(r, n, 3)), kind="one rank"),
    Case("own loss: quantiles of a number", lambda: compiled(net(3), userlib.Pinball()), rows(4, weighted=True)),
    Case("own loss: mean and variance", lambda: compiled(net(2), userlib.GaussianNLL()), rows(4)),
    indexed("own loss: focal, class indices", lambda: userlib.SparseFocal()),
    Case("own loss: function", lambda: compiled(net(1), userlib.squared, metrics=[userlib.MeanError()]), rows(4)),
    reduced("reduction sum", "sum"),
    reduced("reduction mean_with_sample_weight", "mean_with_sample_weight"),
    reduced("reduction None", None, weighted=False, refused="reduction"),
    Case("outputs of two ranks", lambda: tower([CE, "mae"], loss_weights=[0.3, 2.0], metrics=[["accuracy"], ["mse"]]),
         two),
    Case("outputs of two ranks, weights", lambda: tower([CE, "mae"], weighted_metrics=[["accuracy"], ["mse"]]),
         two_weighted),
    Case("outputs in a dict", lambda: keyed(False, {"price": "mse", "kind": CE}, metrics={"kind": ["accuracy"]}),
         by_key),
    Case("outputs in a dict, other names of layers", lambda: keyed(True, {"price": "mse", "kind": CE},
         loss_weights={"price": 0.5, "kind": 2.0}), by_key),
    Case("an output without a loss", halves, lambda r, n: Data(floats(r, n, 4), [floats(r, n, 1), None])),
    Case("losses of layers alone", from_layers, lambda r, n: Data(floats(r, n, 4))),
    Case("loss, optimizer and metrics as Params", none_given, classes(3, 4),
         lambda: {"loss": CE, "optimizer": "sgd", "metrics": ["accuracy"]},
         plain=lambda: compiled(none_given(), CE, "sgd", metrics=["accuracy"])),
    Case("a rank without any row", lambda: compiled(net(3, "softmax"), CE, metrics=["accuracy"]), classes(3, 4),
         split="first", train=8 + 8 + 5, valid=7),
    Case("no validation rows", lambda: compiled(net(1)), rows(4, weighted=True), valid=0, train=2 * 16 + 5),
    Case("class indices for one-hot rows", lambda: compiled(net(3, "softmax"), "categorical_crossentropy"),
         classes(3, 4), refused="sparse_categorical_crossentropy"),
]  # fmt: skip
