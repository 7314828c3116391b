"""maxSteps and validationSteps: what plain Keras computes in as many batches, on ranks without Spark."""

import io
import json

import keras
import numpy as np
import pytest

from cos_ml import callback
from cos_ml.data.columns import Column
from cos_ml.errors import RankError
from cos_ml.rank.checkpoint_store import CheckpointStore
from cos_ml.rank.schedule import Schedule
from cos_ml.spec import CheckpointConfig
from tests.support.training import LOSS, data_of, events_of, spec_of, train_alone

pytestmark = pytest.mark.once

VALIDATION = Column("held", "v", dtype="bool")


def network(seed=1):
    """A network with every kind of state: Dropout's seeds, statistics, and an optimizer with slots."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8, activation="elu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.4)]
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3, activation="softmax")])


def simple(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])


def rows(count, held=0, seed=0):
    data = data_of(count + held, seed)
    return data | ({"v": np.arange(count + held) >= count} if held else {})


def spec(**changes):
    held = {"validation": VALIDATION} if changes.pop("held", False) else {}
    arguments = {"optimizer": "adam", "loss": LOSS, "metrics": ["accuracy"]}
    return spec_of(**{"compile": arguments, "learning_rate": 0.01, "epochs": 100} | held | changes)


def first(data, count):
    """Training rows in order, as many times as there are epochs, up to ``count`` rows."""
    kept = ~data["v"] if "v" in data else slice(None)
    return [np.concatenate([data[name][kept]] * 10)[:count] for name in ("x0", "y0")]


@pytest.fixture
def alone(spool):
    """A function that trains as the only rank; with ``until``, up to the first later checkpoint than that."""

    def train(model, one, data, until=None):
        written, write = io.StringIO(), CheckpointStore.write

        def interrupt(store, checkpoint):
            if (checkpoint.epoch, checkpoint.step) > until:
                raise KeyboardInterrupt
            write(store, checkpoint)

        keras.utils.set_random_seed(one.seed)
        with pytest.MonkeyPatch.context() as patch:
            if until:
                patch.setattr(CheckpointStore, "write", interrupt)
            trained, summary = train_alone(model, one, spool(one, data, size=7), written)
        return trained, summary, events_of(written)

    return train


def same(one, other, atol=1e-6):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def identical(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ── which steps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_schedule():
    one = Schedule(spec_of(epochs=9, max_steps=25, validation_steps=4, steps_per_execution=3), 10)
    assert (one.epochs, one.total, [one.steps(epoch) for epoch in range(3)]) == (3, 25, [10, 10, 5])
    due = [[step for step in range(1, 11) if one.is_due(epoch, step)] for epoch in range(3)]
    assert due == [[4, 8], [2, 6], [4]]
    assert [one.cuts(epoch) for epoch in range(3)] == [[4, 8], [2], [4, 5]]
    plain = Schedule(spec_of(epochs=9), 10)
    assert (plain.epochs, plain.total, plain.steps(8), plain.cuts(0), plain.is_due(0, 4)) == (9, 90, 10, [], False)
    assert Schedule(spec_of(epochs=2, max_steps=25), 10).total == 20  # whichever comes first


# ── maxSteps ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("steps", "call"), [(7, 1), (7, 3), (2, 16), (10, 3), (5, 5), (10, 5), (1, 4)])
def test_a_training_ends_after_exactly_so_many_steps(alone, steps, call):
    data, model, twin = data_of(40), simple(), simple()  # five steps an epoch
    _, summary, events = alone(model, spec(max_steps=steps, steps_per_execution=call), data)
    twin.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    x, y = first(data, steps * 8)
    twin.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    same(model, twin)
    assert summary["total_steps"] == steps
    assert len(summary["epoch_seconds"]) == len(summary["history"]["loss"]) == -(-steps // 5)
    assert "step" not in summary["history"]
    last = [event for event in events if event["event"] == "epoch"][-1]
    assert (last["epochs"], last["total_steps"]) == (-(-steps // 5), steps)
    assert last["step"] == (steps - 1) % 5 + 1


def test_the_metrics_of_the_last_epoch_are_those_of_its_steps(alone):
    data, twin = data_of(40), simple()
    _, summary, _ = alone(simple(), spec(max_steps=7, steps_per_execution=3), data)
    twin.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    x, y = first(data, 56)
    losses = [twin.fit(x[part], y[part], batch_size=8, shuffle=False, verbose=0).history["loss"][0]
              for part in (slice(0, 40), slice(40, 56))]  # fmt: skip
    np.testing.assert_allclose(summary["history"]["loss"], losses, atol=1e-6)


@pytest.mark.parametrize("counts", [pytest.param((40,), marks=pytest.mark.more), (40, 24), (40, 0)])
def test_ranks_end_together(ranks, counts):
    made, parts, start = spec(max_steps=7, steps_per_execution=3), [], 0
    data, twin = data_of(sum(counts)), simple()
    for count in counts:
        parts.append({name: values[start : start + count] for name, values in data.items()})
        start += count
    (trained,) = ranks.fit([made], [simple()], parts)
    twin.compile(keras.optimizers.Adam(0.01), LOSS)
    for step in range(7):
        at = slice(step % 5 * 8, step % 5 * 8 + 8)
        twin.train_on_batch(*(np.concatenate([part[name][at] for part in parts]) for name in ("x0", "y0")))
    same(trained.network, twin, atol=2e-6)
    assert [one["total_steps"] for one in trained.summaries] == [7] * len(counts)


def test_rows_that_validate_do_so_at_the_end(alone):
    """And the best weights are chosen among the epochs, of which the last is partial."""
    data = rows(40, held=12)
    model, summary, _ = alone(simple(), spec(max_steps=7, held=True, restore_best=True), data)
    assert len(summary["history"]["val_loss"]) == 2
    model.compile("sgd", LOSS)
    x, y = (data[name][40:] for name in ("x0", "y0"))
    np.testing.assert_allclose(
        np.ravel(model.evaluate(x, y, verbose=0))[0], min(summary["history"]["val_loss"]), atol=1e-6
    )


# ── validationSteps ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("call", [1, 3, 16])
def test_validations_within_epochs(alone, call):
    data = rows(40, held=12)
    _, summary, events = alone(
        simple(), spec(held=True, max_steps=13, validation_steps=4, steps_per_execution=call), data
    )
    history, twin = summary["history"], simple()
    assert history["step"] == [4, 5, 8, 10, 12, 13]
    assert {len(values) for values in history.values()} == {6}
    twin.compile(keras.optimizers.Adam(0.01), LOSS, metrics=["accuracy"])
    x, y = first(data, 13 * 8)
    held, batches, expected = [data[name][40:] for name in ("x0", "y0")], [], []
    for step in range(13):
        at = slice(step * 8, step * 8 + 8)
        batches.append(twin.train_on_batch(x[at], y[at], return_dict=True))
        if step + 1 in history["step"]:
            epoch = batches[step // 5 * 5 :]
            logs = {name: np.mean([batch[name] for batch in epoch]) for name in epoch[0]}
            found = twin.evaluate(*held, verbose=0, return_dict=True)
            expected.append(logs | {f"val_{name}": value for name, value in found.items()})
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(history[name], [logs[name] for logs in expected], atol=1e-5, err_msg=name)
    shown = [event for event in events if event["event"] == "validation"]
    assert [(event["epoch"], event["step"]) for event in shown] == [(1, 4), (2, 3), (3, 2)]
    np.testing.assert_allclose([event["logs"]["val_loss"] for event in shown], np.array(history["val_loss"])[[0, 2, 4]])


@pytest.mark.parametrize(
    "counts", [pytest.param((70,), marks=pytest.mark.more), (40, 30), pytest.param((70, 0), marks=pytest.mark.more)]
)
def test_they_change_nothing(ranks, counts):
    """The weights, bit for bit, and the metrics of the epochs: on ranks with statistics of their own, too."""
    data, start, parts = rows(50, held=20), 0, []
    order = np.random.default_rng(0).permutation(70)
    for count in counts:
        parts.append({name: values[order[start : start + count]] for name, values in data.items()})
        start += count
    common = {"held": True, "epochs": 2, "shuffle": True, "batch_size": 4, "steps_per_execution": 4}
    specs = [spec(**common), spec(**common, validation_steps=3)]
    one, other = ranks.fit(specs, [network(), network()], parts)
    identical(one.network, other.network)
    ends = [at for at, step in enumerate(other.history["step"]) if step % other.summaries[0]["steps"] == 0]
    assert len(ends) == 2 < len(other.history["step"])
    for name, values in one.history.items():
        np.testing.assert_array_equal(np.array(other.history[name])[ends], values, err_msg=name)
    assert other.summaries[0]["history"] == other.summaries[-1]["history"]  # those of all ranks


def test_without_rows_that_validate_the_metrics_of_training(alone):
    _, summary, _ = alone(simple(), spec(epochs=2, validation_steps=3), data_of(40))
    assert summary["history"]["step"] == [3, 5, 6, 9, 10]
    assert set(summary["history"]) == {"step", "loss", "accuracy"}


def test_a_network_that_draws_when_it_validates(alone):
    """A test_step that draws random numbers takes none from the training."""
    data, found = rows(40, held=12), []
    for steps in (None, 2):
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        noisy = keras.layers.Dropout(0.5)(inputs, training=True)
        model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(noisy))
        found.append(alone(model, spec(held=True, epochs=2, validation_steps=steps), data)[0])
    identical(*found)


@pytest.mark.parametrize("setting", ["run_eagerly", "jit_compile"])
def test_steps_that_tensorflow_runs_in_other_ways(alone, setting):
    data, model, twin = rows(40, held=12), simple(), simple()
    one = spec(held=True, max_steps=7, validation_steps=2, steps_per_execution=3, **{setting: True})
    _, summary, _ = alone(model, one, data)
    assert summary["history"]["step"] == [2, 4, 5, 6, 7]
    alone(twin, spec(held=True, max_steps=7, steps_per_execution=3), data)
    same(model, twin)


def test_patience_counts_validations(alone):
    """With a rate so high that each validation is worse than the first one."""
    data, arguments = rows(40, held=12), {"optimizer": "sgd", "loss": LOSS}
    data["y0"][40:] = (data["y0"][40:] + 1) % 3  # what is learnt is wrong there
    one = spec(held=True, compile=arguments, learning_rate=2.0, validation_steps=2, patience=2, restore_best=True)
    model, summary, _ = alone(simple(), one, data)
    history = summary["history"]
    assert np.argmin(history["val_loss"]) == 0
    assert history["step"] == [2, 4, 5]  # an epoch's end is a validation, too
    assert summary["total_steps"] == 5
    model.compile("sgd", LOSS)
    x, y = (data[name][40:] for name in ("x0", "y0"))
    np.testing.assert_allclose(np.ravel(model.evaluate(x, y, verbose=0))[0], history["val_loss"][0], atol=1e-6)


class Recorder(keras.callbacks.Callback):
    """Writes what it is called with to a file; ends the training when a validation has a loss below ``stop``."""

    def __init__(self, path, stop=-1.0):
        super().__init__()
        self.path, self.stop, self.kinds = path, stop, []

    def _note(self, kind, value, logs):
        self.kinds.append([kind, value, {name: float(one) for name, one in (logs or {}).items()}])
        with open(self.path, "w") as file:
            json.dump(self.kinds, file)

    def on_train_batch_begin(self, batch, logs=None):
        self._note("begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._note("end", batch, logs)

    def on_test_end(self, logs=None):
        self._note("test", None, logs)
        if logs["loss"] < self.stop:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self._note("epoch", epoch, logs)


def test_callbacks_see_calls_that_end_where_they_do(alone, tmp_path):
    path = str(tmp_path / "calls")
    one = spec(
        held=True, max_steps=7, validation_steps=4, steps_per_execution=3, callbacks=(callback(Recorder, path=path),)
    )
    _, summary, _ = alone(simple(), one, rows(40, held=12))
    calls = json.loads(open(path).read())
    assert [(kind, value) for kind, value, _ in calls] == [
        ("begin", 0), ("end", 2), ("begin", 3), ("end", 3), ("test", None), ("begin", 4), ("end", 5),
        ("test", None), ("epoch", 0), ("begin", 0), ("end", 1), ("test", None), ("epoch", 1),
    ]  # fmt: skip
    assert calls[3][2]["loss"] == pytest.approx(summary["history"]["loss"][0])


def test_a_callback_can_end_the_training_after_a_validation(alone, tmp_path):
    one = spec(held=True, validation_steps=2, callbacks=(callback(Recorder, path=str(tmp_path / "calls"), stop=100.0),))
    _, summary, _ = alone(simple(), one, rows(40, held=12))
    assert summary["history"]["step"] == [2]
    assert summary["total_steps"] == 2


def test_a_validation_loss_that_is_not_finite(alone):
    data = rows(40, held=12)
    data["x0"][45] = 1e38  # ten times as much is infinite
    layers = [keras.layers.Rescaling(10.0), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    with pytest.raises(RankError, match="The validation loss is NaN or infinite in epoch 1 after step 4"):
        alone(model, spec(held=True, validation_steps=4), data)


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def kept():
    """Results that several tests share."""
    return {}


@pytest.mark.parametrize(
    "until",
    [(1, 6), *(pytest.param(one, marks=pytest.mark.more) for one in ((0, 3), (1, 0), (2, 3)))],
)
def test_a_training_that_resumes(alone, kept, tmp_path, until):
    """The same weights, and each validation once."""
    data = rows(75, held=12)  # ten steps of 8, in calls of three
    common = {"held": True, "max_steps": 27, "validation_steps": 4, "shuffle": True, "seed": 5}
    if "undisturbed" not in kept:
        kept["undisturbed"] = alone(network(), spec(**common), data)
    expected, summary, _ = kept["undisturbed"]
    config = CheckpointConfig(str(tmp_path / "checkpoints"), steps=3)
    with pytest.raises(KeyboardInterrupt):
        alone(network(), spec(**common, checkpoint=config), data, until)
    model, again, events = alone(network(), spec(**common, checkpoint=config), data)
    assert next((one["epoch"], one["step"]) for one in events if one["event"] == "begin") == until
    identical(model, expected)
    assert again["history"]["step"] == [4, 8, 10, 12, 16, 20, 24, 27]
    for name, values in summary["history"].items():
        np.testing.assert_allclose(again["history"][name], values, atol=1e-6, err_msg=name)
    assert again["total_steps"] == 27
    if until != (1, 0):  # a finished training is one however it was interrupted
        return
    finished, once_more, _ = alone(network(), spec(**common, checkpoint=config), data)
    identical(finished, expected)
    assert once_more["history"] == again["history"]
    assert once_more["total_steps"] == 27
