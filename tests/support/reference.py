"""Training written out by hand, in one process: what any number of ranks has to compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml import DeepNetEstimator

Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, labels, weights


def data(rows: int, seed: int = 0, size: int = 12, classes: int = 3) -> Part:
    """Rows that a small network can learn, of weight one."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, size)).astype(np.float32)
    labels = (features @ random.normal(size=(size, classes))).argmax(axis=1)
    return features, labels.astype(np.float32), np.ones(rows, np.float32)


def network(size: int = 12, classes: int = 3) -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((size,)),
            keras.layers.Dense(16, activation="tanh", name="hidden", kernel_regularizer=keras.regularizers.L2(1e-3)),
            keras.layers.Dense(classes, activation="softmax", name="out"),
        ]
    )


def global_batches(parts: Sequence[Part], size: int) -> Iterator[Part]:
    """Each step's rows of all ranks: ``size`` of each, fewer or none of one that runs out."""
    steps = max(-(-len(features) // size) for features, _, _ in parts)
    for step in range(steps):
        rows = slice(step * size, (step + 1) * size)
        yield tuple(np.concatenate([part[index][rows] for part in parts]) for index in range(3))  # type: ignore[misc]


def train(model: Any, parts: Sequence[Part], size: int, epochs: int, optimizer: Any) -> list[float]:
    """Train ``model`` on the global batches, in order; returns the mean loss of each epoch's rows.

    Row weights are scaled so that their mean over all rows is 1.
    """
    scale = 1 / np.mean(np.concatenate([weights for _, _, weights in parts]), dtype=np.float64)
    history = []
    for _ in range(epochs):
        losses, counts = [], []
        for features, labels, weights in global_batches(parts, size):
            with tf.GradientTape() as tape:
                each = keras.losses.sparse_categorical_crossentropy(labels, model(features, training=True))
                loss = tf.reduce_mean(each * np.float32(weights * scale)) + sum(model.losses)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            losses.append(float(loss))
            counts.append(len(weights))
        history.append(float(np.average(losses, weights=counts)))
    return history


def estimator(model: Any, **params: Any) -> DeepNetEstimator:
    defaults = {
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
        "batchSize": 32,
        "epochs": 3,
        "shuffle": False,
        "numTrainWorkers": 2,
        "progress": False,
    }
    return DeepNetEstimator(model=model, **defaults | params)


def split(part: Part, *sizes: int) -> list[Part]:
    edges = np.cumsum(sizes)[:-1]
    return list(zip(*(np.split(array, edges) for array in part), strict=True))


def assert_same_weights(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
