"""No weight that is NaN or infinite leaves a training, and no such loss chooses the best ones."""

import io

import keras
import numpy as np
import pyarrow as pa
import pytest

from cos_ml.data.columns import Column
from cos_ml.errors import RankError
from cos_ml.rank.finite import FiniteEarlyStopping, check_weights, lasting
from cos_ml.spec import TrainSpec
from tests.support.training import train_alone

pytestmark = pytest.mark.once

HUGE = 3e38  # times a gradient of more than 1.2 it is no float32


def network(**options):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="only", **options)])


def spec_of(**fields):
    columns = {"inputs": (Column("features", "x0", (2,)),), "labels": (Column("label", "y0", (1,)),)}
    defaults = {"compile": {"optimizer": "sgd", "loss": "mse"}, "batch_size": 4, "shuffle": False}
    return TrainSpec(**columns | defaults | fields)


def data_of(count=4, held=()):
    rows = np.random.default_rng(0).uniform(1, 2, (count, 2)).astype(np.float32)
    rows[list(held)] = 1e30  # finite, and its square is not
    marks = np.isin(np.arange(count), held)
    return {"x0": rows, "y0": np.full(count, -9, np.float32)} | ({"v": pa.array(marks)} if len(held) else {})


@pytest.fixture
def trained(spool):
    def train(spec, data, model=None):
        return train_alone(model or network(), spec, spool(spec, data), io.StringIO())

    return train


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_step_of_a_fit(trained, steps):
    rows = data_of(4 * steps)
    rows["y0"][:-4] = rows["x0"][:-4].sum(axis=1)  # what the network computes: no gradient before
    with pytest.raises(
        RankError, match=r"After the last step the weights '(\w+/)?only/kernel' and 1 others are NaN or inf"
    ):
        trained(spec_of(learning_rate=HUGE), rows, network(kernel_initializer="ones"))
    spec = spec_of(learning_rate=HUGE, stop_at_non_finite=False)
    model, summary = trained(spec, rows, network(kernel_initializer="ones"))
    assert np.isfinite(summary["history"]["loss"]).all()
    assert not np.isfinite(model.get_weights()[0]).any()


def test_several_ranks(ranks):
    parts = [data_of(), data_of()]
    with pytest.raises(RankError, match=r"After the last step the weights '(\w+/)?only/kernel'"):
        ranks.fit([spec_of(learning_rate=HUGE)], [network()], parts)


def test_a_validation_loss_that_is_not_finite(trained):
    spec = {"validation": Column("held", "v", dtype="bool"), "learning_rate": 1e-3, "epochs": 2}
    with pytest.raises(RankError, match=r"validation loss is NaN or infinite after epoch 1.*handleNonFiniteLoss"):
        trained(spec_of(**spec), data_of(6, held=[4, 5]))
    summary = trained(spec_of(**spec, stop_at_non_finite=False), data_of(6, held=[4, 5]))[1]
    assert summary["history"]["val_loss"] == [np.inf] * 2


@pytest.mark.parametrize(
    ("losses", "best", "stopped"),
    [
        ([np.nan, 3.0, 2.0, np.inf, np.nan], 2, 4),
        ([3.0, np.nan, 2.0, 5.0, 4.0], 2, 4),
        ([np.nan, np.nan, 9.0], None, 1),
        ([np.inf, 1.0, np.nan, np.nan, 0.5], 1, 3),
    ],
)
def test_the_best_epoch_has_a_finite_loss(losses, best, stopped):
    model = network()
    stopping = FiniteEarlyStopping("val_loss", patience=2, mode="min", restore_best_weights=True)
    stopping.set_model(model)
    stopping.on_train_begin()
    model.stop_training = False
    for epoch, loss in enumerate(losses):
        model.layers[0].bias.assign([epoch])
        stopping.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            break
    assert epoch == stopped
    stopping.on_train_end()
    assert model.get_weights()[1].tolist() == [float(stopped if best is None else best)]


def test_weights_that_are_not_finite_are_never_the_best():
    model = network()
    stopping = FiniteEarlyStopping("loss", patience=5, mode="min", restore_best_weights=True)
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, (bias, loss) in enumerate([(1.0, 3.0), (np.nan, 2.0), (np.inf, 1.0)]):
        model.layers[0].bias.assign([bias])
        stopping.on_epoch_end(epoch, {"loss": loss})
    stopping.on_train_end()
    assert model.get_weights()[1].tolist() == [1.0]


def test_constants_may_be_infinite():
    model = network()
    layer = model.layers[0]
    layer.trainable = False
    layer.bias.assign([-np.inf])
    allowed = lasting(model)
    check_weights(model, allowed)
    layer.kernel.assign([[np.nan], [0.0]])
    with pytest.raises(RankError, match=r"'(\w+/)?only/kernel' are"):
        check_weights(model, allowed)
    layer.trainable = True
    assert lasting(model) == set()
