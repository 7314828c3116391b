"""What user code raises on one of two ranks ends the fit, and is in its error: ranks without Spark."""

import os

import keras
import numpy as np
import pytest

from cos_ml import callback
from cos_ml.data.columns import Column
from cos_ml.errors import RankError
from cos_ml.rank import __main__ as rank_main
from cos_ml.spec import TrainSpec
from tests.support.raising import EXCEPTIONS, RaisingCallback, RaisingLayer, RaisingLoss, RaisingMetric, fail

pytestmark = pytest.mark.once
plain = keras.saving.serialize_keras_object


def fit(ranks, layers=(), **fields):
    """A training whose validation takes part, on two ranks."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), *layers])
    defaults = {
        "inputs": (Column("features", "x0", (4,)),), "labels": (Column("label", "y0", (1,)),),
        "validation": Column("held", "v", dtype="bool"), "compile": {"optimizer": "sgd", "loss": "mse"},
        "batch_size": 8, "modules": ("tests.support.raising",), "epochs": 2,
    }  # fmt: skip
    part = {"x0": np.ones((24, 4), "f4"), "y0": np.ones(24, "f4"), "v": np.arange(24) < 8}
    return ranks.fit([TrainSpec(**defaults | fields)], [network], [part] * 2)


def error_of(ranks, *arguments, **fields):
    with pytest.raises(RankError) as caught:
        fit(ranks, *arguments, **fields)
    assert str(caught.value).startswith("Rank 1 on ")  # the cause, and not its consequence on rank 0
    return str(caught.value)


def result_of(monkeypatch, function):
    monkeypatch.setattr(rank_main, "Heartbeat", lambda events: events.close())
    monkeypatch.setattr(rank_main, "_function", lambda name: function)
    return rank_main._result({"function": "", "events": os.open(os.devnull, os.O_WRONLY)}, None)


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_whatever_ends_a_rank_is_in_its_result(monkeypatch, kind):
    assert kind in result_of(monkeypatch, lambda *_: fail(kind))["traceback"].decode()


def test_half_a_character_in_an_error(monkeypatch):
    def function(*_):
        raise RankError("a file named \udc80")

    assert result_of(monkeypatch, function) == {"rank_error": b"a file named ?"}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("on_train_batch_end", "StopIteration"), ("on_test_batch_begin", "StopIteration"),
        ("on_train_batch_begin", "GeneratorExit"), ("on_epoch_end", "SystemExit"), ("on_train_end", "StopIteration"),
    ],
)  # fmt: skip
def test_a_callback(ranks, method, kind):
    found = (callback(RaisingCallback, name_of_error=kind, method=method),)
    assert kind in error_of(ranks, callbacks=found)


@pytest.mark.parametrize("when", ["traced", "computed"])
def test_a_layer(ranks, when):
    assert "StopIteration: " in error_of(ranks, [RaisingLayer("StopIteration", when)])


def test_a_loss(ranks):
    found = {"optimizer": "sgd", "loss": plain(RaisingLoss("StopIteration"))}
    assert "StopIteration: on purpose" in error_of(ranks, compile=found)


def test_a_metric(ranks):
    found = {"optimizer": "sgd", "loss": "mse", "metrics": [plain(RaisingMetric("StopIteration"))]}
    assert "StopIteration: on purpose" in error_of(ranks, compile=found)
