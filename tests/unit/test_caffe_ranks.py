"""Caffe's losses and statistics on two ranks: as plain Keras on the same batches."""

import keras
import numpy as np
import pytest

from cos_ml.caffe.losses import (
    CaffeContrastiveLoss,
    CaffeEuclideanLoss,
    CaffeHingeLoss,
    CaffeSigmoidCrossEntropy,
    CaffeSoftmaxLoss,
    ComputedLoss,
    Pair,
)
from cos_ml.data.columns import Column
from cos_ml.network.archive import Network
from cos_ml.network.outputs import OutputKind, output_kinds
from cos_ml.spec import TrainSpec
from tests.support.reference import assert_same_weights

pytestmark = pytest.mark.once

SIZES, BATCH = (24, 13), 8
IGNORED = 3

LOSSES = {
    "softmax, BATCH_SIZE": (4, CaffeSoftmaxLoss("batch_size", IGNORED)),
    "softmax, FULL": (4, CaffeSoftmaxLoss("full", IGNORED)),
    "softmax, NONE": (4, CaffeSoftmaxLoss("none", IGNORED)),
    "sigmoid, VALID": (0, CaffeSigmoidCrossEntropy("valid", IGNORED)),
    "sigmoid, BATCH_SIZE": (0, CaffeSigmoidCrossEntropy("batch_size", IGNORED)),
    "sequences": (0, CaffeSigmoidCrossEntropy("batch_size", IGNORED, time_first=True)),
    "euclidean": (0, CaffeEuclideanLoss()),
}


def network(classes: int) -> keras.Model:
    inputs = keras.Input((12,))
    start = keras.initializers.RandomUniform(-0.3, 0.3, seed=classes + 1)
    scores = keras.layers.Dense(6 * max(classes, 1), kernel_initializer=start)(inputs)
    return keras.Model(inputs, keras.layers.Reshape((6, classes))(scores) if classes else scores)


def spec_of(loss, label) -> TrainSpec:
    compiled = {"optimizer": keras.optimizers.serialize(keras.optimizers.SGD(0.05, momentum=0.9))}
    if loss is not None:
        compiled["loss"] = keras.saving.serialize_keras_object(loss)
    return TrainSpec(
        (Column("x", "x0", (12,)),), (label,) if label else (), compile=compiled, epochs=2, batch_size=BATCH,
        shuffle=False, modules=("cos_ml.caffe.losses",),
    )  # fmt: skip


def parts_of(*arrays):
    """The rows of each rank."""
    return [[array[: SIZES[0]] for array in arrays], [array[SIZES[0] :] for array in arrays]]


def by_hand(model, loss, parts):
    """What plain Keras trains, in one process, on the batches of both ranks together."""
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, run_eagerly=True)
    for _ in range(2):
        for start in range(0, max(SIZES), BATCH):
            batch = [np.concatenate([part[at][start : start + BATCH] for part in parts]) for at in range(len(parts[0]))]
            model.train_on_batch(*batch)
    return model


def test_losses_on_two_ranks(ranks):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(sum(SIZES), 12)).astype(np.float32)
    y = rng.choice([0, 1, IGNORED], (sum(SIZES), 6)).astype(np.float32)
    y[: SIZES[0] // 2, :4] = IGNORED  # the ranks have different counts of valid labels
    parts = parts_of(x, y)
    columns = [{"x0": features, "y0": labels} for features, labels in parts]
    for classes in (4, 0):
        losses = [loss for wanted, loss in LOSSES.values() if wanted == classes]
        specs = [spec_of(loss, Column("y", "y0", (6,))) for loss in losses]
        trained = ranks.fit(specs, [network(classes) for _ in losses], columns)
        for loss, one in zip(losses, trained, strict=True):
            assert_same_weights(one.network, by_hand(network(classes), loss, parts))


def test_losses_of_pairs_and_of_two_blobs_on_two_ranks(ranks):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(sum(SIZES), 12)).astype(np.float32)
    y = rng.integers(0, 2, sum(SIZES)).astype(np.float32)

    def pairs():
        inputs = keras.Input((12,))
        branch = keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomUniform(-0.3, 0.3, seed=1))
        return keras.Model(inputs, Pair()([branch(inputs), keras.layers.Dense(4, "tanh", kernel_initializer=keras.
                                           initializers.RandomUniform(-0.3, 0.3, seed=2))(inputs)]))  # fmt: skip

    def autoencoder():
        inputs = keras.Input((12,))
        start = keras.initializers.RandomUniform(-0.3, 0.3, seed=3)
        decoded = keras.layers.Dense(12, kernel_initializer=start)(
            keras.layers.Dense(3, kernel_initializer=start)(inputs)
        )
        return keras.Model(inputs, ComputedLoss(CaffeEuclideanLoss(), 0.5)([decoded, inputs]))

    parts = parts_of(x, y)
    columns = [{"x0": features, "y0": labels} for features, labels in parts]
    loss = CaffeContrastiveLoss(2.0)
    (trained,) = ranks.fit([spec_of(loss, Column("y", "y0", ()))], [pairs()], columns)
    assert_same_weights(trained.network, by_hand(pairs(), loss, parts))
    (trained,) = ranks.fit([spec_of(None, None)], [autoencoder()], [{"x0": part[0]} for part in parts])
    assert_same_weights(trained.network, by_hand(autoencoder(), None, parts_of(x)))


@pytest.mark.parametrize(
    ("loss", "units", "kind"),
    [
        (CaffeSoftmaxLoss("batch_size", 9), 3, OutputKind.CLASS_LOGITS),
        (CaffeHingeLoss(), 3, OutputKind.CLASS_LOGITS),
        (CaffeSigmoidCrossEntropy("batch_size"), 1, OutputKind.LOGIT),
        (CaffeSigmoidCrossEntropy("batch_size"), 4, OutputKind.VECTOR),
        (CaffeEuclideanLoss(), 1, OutputKind.NUMBER),
        (CaffeContrastiveLoss(), 3, OutputKind.VECTOR),
    ],
)
def test_kinds_of_predictions(loss, units, kind):
    inputs = keras.Input((4,))
    told = Network.of(keras.Model(inputs, keras.layers.Dense(units)(inputs)))
    assert output_kinds(told.outputs, keras.saving.serialize_keras_object(loss)) == (kind,)
