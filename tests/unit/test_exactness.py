"""n ranks compute what a loop written out by hand computes: ranks without Spark."""

import keras
import numpy as np
import pytest

from cos_ml.data.columns import Column
from cos_ml.spec import TrainSpec
from tests.support import reference
from tests.support.reference import assert_same_weights, split

pytestmark = pytest.mark.once

EPOCHS = 3
INPUTS, LABELS = (Column("features", "x0", (12,)),), (Column("label", "y0", classes=3),)


def spec_of(optimizer, **fields):
    compiled = {
        "optimizer": keras.optimizers.serialize(optimizer),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
    }
    return TrainSpec(INPUTS, LABELS, compile=compiled, shuffle=False, **{"epochs": EPOCHS} | fields)


def columns_of(part, weighted=False):
    features, labels, weights = part
    return {"x0": features, "y0": labels} | ({"w": weights} if weighted else {})


@pytest.mark.parametrize(
    ("sizes", "weighted"),
    [
        pytest.param((320, 320), False, id="even"),
        pytest.param((0, 640), False, id="an empty first partition"),
        pytest.param((333, 211), False, id="no batch divides"),
        pytest.param((5, 3), False, id="fewer rows than a batch"),
        pytest.param((320, 320), True, id="weighted"),
    ],
)
def test_two_ranks_are_the_loop_by_hand(ranks, sizes, weighted):
    features, labels, weights = reference.data(sum(sizes))
    if weighted:
        weights = np.random.default_rng(1).integers(0, 4, len(labels)).astype(np.float32)
    parts = split((features, labels, weights), *sizes)
    expected = reference.network()
    losses = reference.train(expected, parts, 32, EPOCHS, keras.optimizers.SGD(0.1, momentum=0.9))
    weight = Column("weight", "w", low=0.0) if weighted else None
    spec = spec_of(keras.optimizers.SGD(0.1, momentum=0.9), weight=weight)
    (trained,) = ranks.fit([spec], [reference.network()], [columns_of(part, weighted) for part in parts])
    assert_same_weights(trained.network, expected)
    np.testing.assert_allclose(trained.history["loss"], losses, atol=1e-5)
    assert trained.summaries[0]["rows"] == sum(sizes)
