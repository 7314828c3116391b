"""A training that is interrupted and resumed, in this process: the same weights as one that is not interrupted."""

import io
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from cos_ml.callbacks import callback
from cos_ml.errors import RankError
from cos_ml.network.keras_import import import_keras
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore
from cos_ml.spec import CheckpointConfig
from tests.support.training import LOSS, data_of, events_of, spec_of, train_alone

pytestmark = pytest.mark.once

keras = import_keras()


def network():
    """A network with every kind of state: Dropout's seeds, statistics, and an optimizer with slots."""
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


class InterruptedTraining(BaseException):
    """Stands for a kill: a failure of the storage would not end the training."""


@pytest.fixture
def trained(spool):
    """A function that trains in this process; with ``until``, up to the first later checkpoint than that."""

    def train(spec, data, until=None):
        spooled, written, write = spool(spec, data, size=7), io.StringIO(), CheckpointStore.write

        def interrupt(store, checkpoint):
            if (checkpoint.epoch, checkpoint.step) > until:
                raise InterruptedTraining
            write(store, checkpoint)

        keras.utils.set_random_seed(spec.seed)
        with pytest.MonkeyPatch.context() as patch:
            if until:
                patch.setattr(CheckpointStore, "write", interrupt)
            trained, summary = train_alone(network(), spec, spooled, written)
        return trained.get_weights(), summary, events_of(written)

    return train


def spec(tmp_path, **changes):
    config = CheckpointConfig(str(tmp_path / "checkpoints"), steps=changes.pop("steps", None))
    arguments = {"optimizer": "adam", "loss": LOSS, "metrics": ["accuracy"]}
    return spec_of(
        **{"compile": arguments, "learning_rate": 0.01, "epochs": 6, "shuffle": True, "seed": 5, "checkpoint": config}
        | changes
    )


def checkpoints(tmp_path):
    return sorted((tmp_path / "checkpoints").rglob("checkpoint-*"))


def begin(events):
    return next((event["epoch"], event["step"]) for event in events if event["event"] == "begin")


@pytest.mark.parametrize(
    ("until", "beside"),
    [
        pytest.param((1, 0), False, marks=pytest.mark.more),
        pytest.param((4, 0), False, marks=pytest.mark.more),
        pytest.param((2, 6), False, marks=pytest.mark.more),
        ((0, 3), False),
        ((2, 6), True),
    ],
)
def test_the_same_weights_and_history_as_without_interruption(trained, tmp_path, until, beside):
    """Also where checkpoints are written beside the training, as no disk of this host keeps them."""
    data = data_of(75)  # ten steps of 8, in calls of three
    steps = 3 if until[1] else None
    expected, summary, _ = trained(spec(tmp_path / "one", steps=steps), data)
    cut = spec(tmp_path / "two", steps=steps)
    if beside:
        cut = replace(cut, checkpoint=replace(cut.checkpoint, url=f"memory://{tmp_path}"))
    with pytest.raises(InterruptedTraining):
        trained(cut, data, until)
    weights, again, events = trained(cut, data)
    assert begin(events) == until
    assert again["resumed"] == list(until)
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert again["history"].keys() == summary["history"].keys()
    for name, values in summary["history"].items():
        np.testing.assert_allclose(again["history"][name], values, atol=1e-6)
    assert len(again["epoch_seconds"]) == 6


def test_a_finished_training_is_not_trained_again(trained, tmp_path):
    weights, first, _ = trained(spec(tmp_path), data_of(40))
    again, second, events = trained(spec(tmp_path), data_of(40))
    assert begin(events) == (6, 0)
    assert [event for event in events if event["event"] in ("step", "epoch")] == []
    assert second["history"] == first["history"]
    assert all((one == other).all() for one, other in zip(weights, again, strict=True))


def test_the_state_of_callbacks(trained, tmp_path):
    """Patience, best weights and a plateau, each of them before and after the interruption."""
    plateau = callback("ReduceLROnPlateau", monitor="loss", factor=0.5, patience=1, min_delta=0.5, cooldown=1)
    options = {"callbacks": (plateau,), "patience": 3, "restore_best": True, "epochs": 9, "learning_rate": 0.5}
    expected, summary, _ = trained(spec(tmp_path / "one", **options), data_of(40))
    cut = spec(tmp_path / "two", **options)
    with pytest.raises(InterruptedTraining):
        trained(cut, data_of(40), (2, 0))
    weights, again, _ = trained(cut, data_of(40))
    assert again["history"] == summary["history"]
    assert summary["history"]["learning_rate"][-1] < summary["history"]["learning_rate"][2]
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    finished, _, events = trained(cut, data_of(40))  # it stopped early, with the best weights
    assert [event for event in events if event["event"] == "epoch"] == []
    assert all((one == other).all() for one, other in zip(weights, finished, strict=True))


def test_checkpoints_of_other_rows_are_ignored(trained, tmp_path):
    trained(spec(tmp_path), data_of(40))
    _, _, events = trained(spec(tmp_path), data_of(40, seed=9))
    assert begin(events) == (0, 0)
    assert any("belong to other rows" in event.get("text", "") for event in events)


def resealed(path, change):
    """Change a checkpoint, and give it the hash that is right again."""
    found = Checkpoint.load(path.read_bytes())
    change(found)
    path.write_bytes(b"".join(map(bytes, found.dump())))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(
            lambda one: one.arrays.pop("weights/1"), "its weights are not those of the network", marks=pytest.mark.more
        ),
        (lambda one: one.arrays.update({"weights/0": np.zeros((9, 9))}), "its weights are not those of the network"),
        (lambda one: one.plain.pop("counts"), "it lacks counts"),
        (lambda one: one.plain["stateful"]["log"].update(history={"type": "array"}), "what it says of callbacks"),
    ],
)
def test_a_checkpoint_with_a_right_hash_that_lacks_something(trained, tmp_path, change, why):
    expected, _, _ = trained(spec(tmp_path), data_of(40))
    resealed(checkpoints(tmp_path)[-1], change)
    weights, _, events = trained(spec(tmp_path), data_of(40))
    assert begin(events) == (5, 0)
    assert any(why in event.get("text", "") for event in events)
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_a_failing_storage_costs_the_checkpoint_and_not_the_training(trained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "write", full)
    _, summary, events = trained(spec(tmp_path, epochs=1), data_of(40))
    assert summary["history"]["loss"]
    assert any("could not be written" in event.get("text", "") and "No space" in event["text"] for event in events)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_loss_is_an_error_with_epoch_and_step(trained, tmp_path, bad):
    data = data_of(75)
    data["x0"][43] = bad  # step 6 of 10, without a shuffle
    with pytest.raises(RankError, match=r"NaN or infinite in epoch 1 at step 6\. .*handleNonFiniteLoss"):
        trained(spec(tmp_path, shuffle=False, handle_invalid="keep"), data)
    assert checkpoints(tmp_path) == []
    keep = spec(tmp_path / "keep", shuffle=False, handle_invalid="keep", stop_at_non_finite=False, epochs=2)
    _, summary, _ = trained(keep, data)
    assert np.isnan(summary["history"]["loss"][1])


def test_non_finite_weights_are_not_written(trained, tmp_path):
    blown = spec(tmp_path, learning_rate=None, epochs=9, compile={"optimizer": Grows.plain(), "loss": LOSS})
    with pytest.raises(RankError, match=r"in epoch 4 at step 1"):
        trained(blown, data_of(40))
    # The loss of the third epoch's last step was finite; the weights after it were not.
    older, newer = checkpoints(tmp_path)
    assert (older.name, newer.name) == ("checkpoint-auto-000001-000000000", "checkpoint-auto-000002-000000000")
    weights = Checkpoint.load(newer.read_bytes()).arrays_under("weights/")
    assert weights
    assert all(np.isfinite(array).all() for array in weights.values())


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


class Remembering(keras.callbacks.Callback):
    """Keeps losses in all that a checkpoint holds; sets the learning rate by all of them."""

    def __init__(self):
        super().__init__()
        self.by_key, self.in_tuple, self.newest, self.in_array = {}, (), deque(maxlen=3), np.zeros(0)

    def on_epoch_end(self, epoch, logs=None):
        self.by_key[epoch, "loss"] = np.float32(logs["loss"])
        self.in_tuple = (*self.in_tuple, logs["loss"])
        self.newest.append(logs["loss"])
        self.in_array = np.append(self.in_array, logs["loss"])
        seen = (self.by_key.values(), self.in_tuple, self.newest, self.in_array)
        self.model.optimizer.learning_rate = 0.1 / (1 + sum(map(sum, seen)))


def test_a_table_of_logs_has_each_epoch_once(trained, tmp_path):
    logger = callback("CSVLogger", filename=str(tmp_path / "log.csv"))
    cut = spec(tmp_path, callbacks=(logger,), epochs=5)
    with pytest.raises(InterruptedTraining):
        trained(cut, data_of(40), (2, 0))  # the third epoch is logged, and has no checkpoint
    _, summary, _ = trained(cut, data_of(40))
    header, *rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert header[0] == "epoch"
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    column = header.index("loss")
    np.testing.assert_allclose([float(row[column]) for row in rows], summary["history"]["loss"], rtol=1e-6)


def test_what_a_callback_remembers(trained, tmp_path):
    options = {"callbacks": (callback(Remembering),), "epochs": 5, "learning_rate": 0.1}
    expected, _, _ = trained(spec(tmp_path / "one", **options), data_of(40))
    cut = spec(tmp_path / "two", **options)
    with pytest.raises(InterruptedTraining):
        trained(cut, data_of(40), (2, 0))
    weights, _, events = trained(cut, data_of(40))
    assert begin(events) == (2, 0)
    assert [event for event in events if event["event"] == "note"] == []
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


class Holding(keras.callbacks.Callback):
    """Keeps an object that is no data."""

    def on_epoch_end(self, epoch, logs=None):
        self.thing, self.count = object(), epoch


def test_a_note_names_what_a_checkpoint_lacks(trained, tmp_path):
    _, _, events = trained(spec(tmp_path, callbacks=(callback(Holding),)), data_of(40))
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert "Checkpoints do not contain Holding.thing:" in note
