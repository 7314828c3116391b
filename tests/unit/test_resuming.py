"""A training that is cut off and gone on with, in this process: the same weights as one that was not."""

import io
import json

import numpy as np
import pytest

from cos_ml.callbacks import callback
from cos_ml.errors import RankError
from cos_ml.network.keras_import import import_keras
from cos_ml.rank import checkpoint_store
from cos_ml.rank.checkpoint_store import CheckpointConfig
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import Feed, stored_rows
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.resume import give_back, plain_of
from tests.support.spools import inherited

from .test_training import LOSS, data_of, spec_of

keras = import_keras()


def network():
    """With all that has a state: Dropout's seeds, statistics, and an optimizer with slots."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="elu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


class CutOffError(Exception):
    """In the place of a kill."""


@pytest.fixture
def trained(spool):
    """A function that trains in this process; with ``until``, only to the first write of a later state than that."""

    def train(spec, data, until=None):
        spooled = spool(spec, data, size=7)
        task = {"rows": spooled.rows, "shapes": spooled.shapes, "dtypes": spooled.dtypes, "digest": spooled.digest}
        events = io.StringIO()
        here = RankContext(
            Communicator(1), 0, [task | {"partition": 0}], PhaseTimer(), Heartbeat(events), {"candidate": 1}
        )
        rows = {part: stored_rows(part, here.tasks, 0, inherited(spooled, part)) for part in ("train", "validation")}
        feeds = {part: Feed(part, spec, here, rows[part]) for part in rows}
        keras.utils.set_random_seed(spec.seed)
        trainer = train.make_trainer(network(), spec, here.ranks)
        try:
            with pytest.MonkeyPatch.context() as patch:
                if until:
                    write = train.CheckpointCallback._write

                    def cut(keep, epoch, step, sums):
                        if (epoch, step) > until:
                            raise CutOffError
                        write(keep, epoch, step, sums)

                    patch.setattr(train.CheckpointCallback, "_write", cut)
                told = train.fit(trainer, spec, here, feeds)
        finally:
            here.heartbeat.close()
        return (
            [variable.numpy() for variable in trainer.weights],
            told,
            list(map(json.loads, events.getvalue().splitlines())),
        )

    return train


def spec(tmp_path, **changes):
    folder = CheckpointConfig(str(tmp_path / "states"), steps=changes.pop("steps", None))
    arguments = {"optimizer": "adam", "loss": LOSS, "metrics": ["accuracy"]}
    return spec_of(
        **{"compile": arguments, "learning_rate": 0.01, "epochs": 6, "shuffle": True, "seed": 5, "checkpoint": folder}
        | changes
    )


def begin(events):
    return next((event["epoch"], event["step"]) for event in events if event["event"] == "begin")


@pytest.mark.parametrize("until", [(1, 0), (4, 0), (2, 6), (0, 3)])
def test_the_same_weights_and_history_as_undisturbed(trained, tmp_path, until):
    data = data_of(75)  # ten steps of 8, in calls of three
    steps = 3 if until[1] else None
    undisturbed, told, _ = trained(spec(tmp_path / "one", steps=steps), data)
    cut = spec(tmp_path / "two", steps=steps)
    with pytest.raises(CutOffError):
        trained(cut, data, until)
    weights, again, events = trained(cut, data)
    assert begin(events) == until
    assert again["resumed"] == list(until)
    for one, other in zip(weights, undisturbed, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert again["history"].keys() == told["history"].keys()
    for name, values in told["history"].items():
        np.testing.assert_allclose(again["history"][name], values, atol=1e-6)
    assert len(again["epoch_seconds"]) == 6


def test_a_finished_training_is_not_trained_again(trained, tmp_path):
    weights, told, _ = trained(spec(tmp_path), data_of(40))
    again, summary, events = trained(spec(tmp_path), data_of(40))
    assert begin(events) == (6, 0)
    assert [event for event in events if event["event"] in ("step", "epoch")] == []
    assert summary["history"] == told["history"]
    assert all((one == other).all() for one, other in zip(weights, again, strict=True))


def test_what_callbacks_remember(trained, tmp_path):
    """Patience, best weights and a plateau, all met before and after the cut."""
    plateau = callback("ReduceLROnPlateau", monitor="loss", factor=0.5, patience=1, min_delta=0.5, cooldown=1)
    options = {"callbacks": (plateau,), "patience": 3, "restore_best": True, "epochs": 9, "learning_rate": 0.5}
    undisturbed, told, _ = trained(spec(tmp_path / "one", **options), data_of(40))
    cut = spec(tmp_path / "two", **options)
    with pytest.raises(CutOffError):
        trained(cut, data_of(40), (2, 0))
    weights, again, _ = trained(cut, data_of(40))
    assert again["history"] == told["history"]
    assert told["history"]["learning_rate"][-1] < told["history"]["learning_rate"][2]
    for one, other in zip(weights, undisturbed, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    finished, _, events = trained(cut, data_of(40))  # early, and with the best weights
    assert [event for event in events if event["event"] == "epoch"] == []
    assert all((one == other).all() for one, other in zip(weights, finished, strict=True))


def test_other_rows_are_another_training(trained, tmp_path):
    trained(spec(tmp_path), data_of(40))
    _, _, events = trained(spec(tmp_path), data_of(40, seed=9))
    assert begin(events) == (0, 0)
    assert any("of other rows" in event.get("text", "") for event in events)


def test_storage_that_fails_later_costs_the_checkpoint_and_not_the_training(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cos_ml.rank.checkpoint_store.Checkpoint.dump", full)
    _, told, events = trained(spec(tmp_path, epochs=1), data_of(40))
    assert told["history"]["loss"]
    assert any("can't be written" in event.get("text", "") and "No space" in event["text"] for event in events)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_names_epoch_and_step(trained, tmp_path, bad):
    data = data_of(75)
    data["x0"][43] = bad  # step 6 of 10, without a shuffle
    with pytest.raises(RankError, match=r"NaN or infinite in epoch 1 at step 6\. .*handleNonFiniteLoss"):
        trained(spec(tmp_path, shuffle=False, handle_invalid="keep"), data)
    assert not list((tmp_path / "states").rglob("state-*"))
    going_on = spec(tmp_path / "on", shuffle=False, handle_invalid="keep", stop_at_non_finite=False, epochs=2)
    _, told, _ = trained(going_on, data)
    assert np.isnan(told["history"]["loss"][1])


def test_a_loss_that_breaks_later_leaves_the_good_state(trained, tmp_path):
    blown = spec(tmp_path, learning_rate=None, epochs=9, compile={"optimizer": Grows.plain(), "loss": LOSS})
    with pytest.raises(RankError, match=r"in epoch 4 at step 1"):
        trained(blown, data_of(40))
    # The last step of the third epoch had a good loss, and broke the weights behind it.
    kept = sorted(path.name for path in (tmp_path / "states").rglob("state-auto-*"))
    assert kept == ["state-auto-000001-000000000", "state-auto-000002-000000000"]
    newest = checkpoint_store.Checkpoint.load(next((tmp_path / "states").rglob(kept[-1])).read_bytes())
    assert all(np.isfinite(one).all() for name, one in newest.arrays.items() if name.startswith("weights/"))


@keras.saving.register_keras_serializable("cos_ml_tests")
class Grows(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is infinite from step 15 on."""

    def __call__(self, step):
        return keras.ops.where(step < 14, 0.0, float("inf"))

    def get_config(self):
        return {}

    @classmethod
    def plain(cls):
        return keras.saving.serialize_keras_object(keras.optimizers.SGD(cls()))


def test_plain_of():
    class Holder:
        pass

    one, other = Holder(), Holder()
    one.wait, one.best, one.op, one.seen = 3, np.float32(0.5), np.less, [1, {"a": 2.0}]
    one.weights, one.model = [np.ones(2), np.zeros((1, 3))], object()
    give_back(other, *plain_of(one))
    assert (other.wait, other.best, other.seen) == (3, 0.5, [1, {"a": 2.0}])
    assert [array.tolist() for array in other.weights] == [[1, 1], [[0, 0, 0]]]
    assert not hasattr(other, "op")
    assert not hasattr(other, "model")
