"""Cases: masks, and rows of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import losses as K

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, compiled, floats, ids, ragged

CE = "sparse_categorical_crossentropy"


def tokens(random: Any, count: int, steps: int = 6) -> np.ndarray:
    """Rows of one length that end with zeros."""
    found = random.integers(1, 9, (count, steps))
    for row, length in zip(found, random.integers(1, steps + 1, count), strict=True):
        row[length:] = 0
    return found


def tagged(random: Any, count: int) -> Data:
    return Data(tokens(random, count), ids(random, count, 3, 6))


def tagged_weighted(random: Any, count: int) -> Data:
    return Data(tokens(random, count), ids(random, count, 3, 6), random.uniform(0, 3, count).astype("float32"))


def tagger(loss: Any = CE, steps: int | None = 6, **options: Any) -> Any:
    layers = [In((steps,), dtype="int32"), L.Embedding(9, 5, mask_zero=True), L.LSTM(4, return_sequences=True)]
    return compiled(Seq([*layers, L.Dense(3, "softmax")]), loss, **options or {"metrics": ["accuracy"]})


def two_outputs() -> Any:
    x = In((6,), dtype="int32")
    hidden = L.LSTM(4, return_sequences=True)(L.Embedding(9, 5, mask_zero=True)(x))
    outputs = {"tags": L.Dense(3, "softmax", name="tags")(hidden), "score": L.Dense(1, name="score")(L.LSTM(3)(hidden))}
    return compiled(keras.Model(x, outputs), {"tags": CE, "score": "mse"}, loss_weights={"tags": 1.0, "score": 0.5})


def both(random: Any, count: int) -> Data:
    return Data(tokens(random, count), {"tags": ids(random, count, 3, 6), "score": floats(random, count, 1)})


def masking(steps: int | None = 5) -> Any:
    layers = [In((steps, 3)), L.Masking(), L.GRU(4, return_sequences=True), L.Dense(2)]
    return compiled(Seq(layers), metrics=["mae"])


def zeroed(random: Any, count: int) -> Data:
    x = floats(random, count, 5, 3)
    for row, length in zip(x, random.integers(1, 6, count), strict=True):
        row[length:] = 0
    return Data(x, floats(random, count, 5, 2))


def own_mask() -> Any:
    return compiled(Seq([In((5, 3)), userlib.MaskPositive(), L.Dense(2)]))


def encoder(steps: int | None = 6) -> Any:
    """Attention whose masks come from the padding."""
    x = In((steps,), dtype="int32")
    hidden = L.Embedding(9, 4, mask_zero=True)(x)
    hidden = L.LayerNormalization()(hidden + L.MultiHeadAttention(2, 2)(hidden, hidden))
    return compiled(keras.Model(x, L.Dense(3, "softmax")(hidden)), CE, metrics=["accuracy"])


# ── rows of different lengths ─────────────────────────────────────────────────────────────────────────────────────────


def lengths(random: Any, count: int, low: int = 1, high: int = 7) -> np.ndarray:
    return random.integers(low, high + 1, count)


def of_words(random: Any, count: int) -> Data:
    return Data(ragged(lambda n: random.integers(1, 9, n), lengths(random, count)), floats(random, count, 1))


def classified() -> Any:
    return compiled(Seq([In((None,), dtype="int32"), L.Embedding(9, 5, mask_zero=True), L.LSTM(4), L.Dense(1)]))


def of_tags(random: Any, count: int) -> Data:
    sizes = lengths(random, count)
    words, tags = (ragged(lambda n, k=k: random.integers(*k, n), sizes) for k in ((1, 9), (0, 3)))
    return Data(words, tags)


def of_steps(random: Any, count: int) -> Data:
    sizes = lengths(random, count, 3)
    return Data(ragged(lambda n: random.normal(size=(n, 3)).astype("float32") + 0.1, sizes), floats(random, count, 1))


def forecaster() -> Any:
    return compiled(Seq([In((None, 3)), L.Masking(), L.Bidirectional(L.GRU(3)), L.Dense(1)]))


def convolved() -> Any:
    """No mask: the padding counts, as far as the longest row of a step goes."""
    return compiled(Seq([In((None, 3)), L.Conv1D(4, 3, padding="same"), L.GlobalAveragePooling1D(), L.Dense(1)]))


def unmasked_tags() -> Any:
    """No mask, and a loss for each step: its denominator is that of the padded batch."""
    loss = K.SparseCategoricalCrossentropy()
    return compiled(Seq([In((None,), dtype="int32"), L.Embedding(9, 5), L.Dense(3, "softmax")]), loss)


def masked(name: str, build: Callable[[], Any], data: Any = tagged, **options: Any) -> Case:
    return Case(name, build, data, **options)


CASES = [
    masked("mask", tagger),
    masked("mask, weights", lambda: tagger(weighted_metrics=["accuracy"]), tagged_weighted),
    masked("mask, ignore_class", lambda: tagger(K.SparseCategoricalCrossentropy(ignore_class=1)), tagged_weighted),
    masked("mask, reduction sum", lambda: tagger(K.SparseCategoricalCrossentropy(reduction="sum"),
           optimizer=keras.optimizers.SGD(0.002)), tagged_weighted),
    masked("mask, mean_with_sample_weight", lambda: tagger(K.SparseCategoricalCrossentropy(
           reduction="mean_with_sample_weight")), tagged_weighted),
    masked("mask, two outputs", two_outputs, both),
    masked("mask, run_eagerly", lambda: tagger(run_eagerly=True)),
    masked("mask, steps_per_execution", lambda: tagger(steps_per_execution=3)),
    masked("Masking", masking, zeroed),
    masked("own compute_mask", own_mask, lambda r, n: Data(floats(r, n, 5, 3) + 0.5, floats(r, n, 5, 2))),
    masked("mask in attention", encoder),
    masked("any length: one number", classified, of_words),
    masked("any length: tags, mask", lambda: tagger(steps=None), of_tags),
    masked("any length: tags, no mask", unmasked_tags, of_tags),
    masked("any length: numbers by step, mask", forecaster, of_steps),
    masked("any length: convolution, no mask", convolved, of_steps),
    masked("any length: attention", lambda: encoder(None), of_tags),
]  # fmt: skip
