"""What ends a training on all ranks: ranks without Spark."""

import keras
import numpy as np
import pytest

from cos_ml import callback
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.spec import TrainSpec
from tests.support.steps import ByHand, HiddenOptimizer, LateTracker, StopOnOneRank

pytestmark = pytest.mark.once

MODULES = ("tests.support.steps",)


def spec_of(**fields):
    arguments = {"optimizer": "sgd", "loss": "mse"}
    columns = {"inputs": (Column("features", "x0", (4,)),), "labels": (Column("label", "y0", (1,)),)}
    defaults = {"compile": arguments, "batch_size": 8, "shuffle": False, "modules": MODULES, "steps_per_execution": 1}
    return TrainSpec(**columns | defaults | fields)


def network(kind=keras.Model, **options):
    inputs = keras.Input((4,), **options)
    return kind(inputs, keras.layers.Dense(1)(inputs))


def parts_of(*counts):
    random = np.random.default_rng(0)
    return [{"x0": random.normal(size=(count, 4)).astype("f4"), "y0": random.normal(size=count).astype("f4")}
            for count in counts]  # fmt: skip


def test_ranks_that_come_apart_are_an_error(ranks):
    with pytest.raises(RankError, match=r"After epoch 1 the ranks have different weights: the train_step of ByHand"):
        ranks.fit([spec_of()], [network(ByHand)], parts_of(16, 16))


def test_an_optimizer_that_nobody_finds_is_refused_on_several_ranks_alone(ranks):
    with pytest.raises(InvalidInputError, match=r"an optimizer \(SGD\) that is no attribute of the model"):
        ranks.fit([spec_of()], [network(HiddenOptimizer)], parts_of(16, 16))
    (trained,) = ranks.fit([spec_of()], [network(HiddenOptimizer)], parts_of(16))
    assert len(trained.history["loss"]) == 1


@pytest.mark.parametrize("counts", [(32,), (32, 32)])
def test_a_loss_that_is_seen_after_the_update_and_is_not_finite(ranks, counts):
    with pytest.raises(RankError, match=r"The loss is NaN or infinite in epoch 1 at step"):
        ranks.fit([spec_of(compile={"optimizer": "sgd"})], [network(LateTracker)], parts_of(*counts))


def test_a_callback_on_one_rank_ends_the_epoch_of_all(ranks):
    spec = spec_of(callbacks=(callback(StopOnOneRank),), epochs=3, compile={"optimizer": "sgd", "loss": "mse"})
    model, parts = network(), parts_of(64, 64)
    (trained,) = ranks.fit([spec], [model], parts)
    assert [len(summary["epoch_seconds"]) for summary in trained.summaries] == [1, 1]
    model.compile("sgd", "mse")
    x, y = (np.concatenate([parts[0][name][:8], parts[1][name][:8], parts[0][name][8:16], parts[1][name][8:16]])
            for name in ("x0", "y0"))  # fmt: skip
    model.fit(x, y[:, None], batch_size=16, shuffle=False, verbose=0)  # two steps
    for one, other in zip(trained.network.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_batches_of_a_fixed_size_have_to_divide_the_rows(ranks):
    with pytest.raises(InvalidInputError, match=r"batches of 8 rows, which do not divide the 12 train rows of rank 1"):
        ranks.fit([spec_of()], [network(batch_size=8)], parts_of(16, 12))


def test_sums_that_send_the_same_on_a_rank_without_rows(ranks):
    """TensorFlow merges operations that look the same: two losses with one mask."""
    ids = keras.Input((3,), dtype="int64")
    tables = [keras.layers.Embedding(9, 2, mask_zero=True)(ids) for _ in range(2)]
    outputs = [keras.layers.Dense(1, name=name)(table) for name, table in zip("ab", tables, strict=True)]
    model, random = keras.Model(ids, outputs), np.random.default_rng(0)
    labels = [Column(name, f"y{index}", (3, 1)) for index, name in enumerate("ab")]
    spec = spec_of(inputs=(Column("ids", "x0", (3,), "int64"),), labels=tuple(labels))
    parts = [
        {"x0": random.integers(0, 9, (count, 3))}
        | {one.field: random.normal(size=(count, *one.shape)).astype("f4") for one in labels}
        for count in (16, 8)
    ]
    (trained,) = ranks.fit([spec], [model], parts)
    model.compile("sgd", "mse")
    order = [np.concatenate([parts[0][name][:8], parts[1][name], parts[0][name][8:]]) for name in parts[0]]
    history = model.fit(order[0], order[1:], batch_size=16, shuffle=False, verbose=0).history
    np.testing.assert_allclose(trained.history["loss"], history["loss"], rtol=1e-5)
    for one, other in zip(trained.network.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
