"""Training in one process: what Keras's own fit computes, on every kind of rows."""

import io

import numpy as np
import pytest

from cos_ml.data.columns import Column
from cos_ml.network.keras_import import import_keras
from cos_ml.rank import callbacks
from cos_ml.spec import TrainSpec
from tests.support.training import LOSS, data_of, events_of, spec_of, train_alone

keras = import_keras()


@pytest.fixture
def trained(spool):
    """A function that trains in this process, as the only rank; returns network, summary and events."""

    def train(model, spec, data):
        written = io.StringIO()
        network, summary = train_alone(model, spec, spool(spec, data, size=7), written)
        return network, summary, [event for event in events_of(written) if event["event"] in ("step", "epoch", "note")]

    return train


@pytest.fixture
def twin(classifier):
    """The same network once more, with the same weights."""
    other = keras.models.clone_model(classifier)
    other.set_weights(classifier.get_weights())
    return other


def same_weights(one, other, tolerance=1e-6):
    return all(np.allclose(a, b, atol=tolerance) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


def keras_fit(model, data, epochs=2, optimizer=None, **more):
    model.compile(optimizer or keras.optimizers.SGD(0.5), LOSS, metrics=["accuracy"])
    return model.fit(data["x0"], data["y0"], batch_size=8, epochs=epochs, shuffle=False, verbose=0, **more).history


@pytest.mark.parametrize("count", [32, 29, 8, 3])  # 29 rows: the last step has 5; 3: the only one has 3
def test_training_computes_what_keras_does(trained, classifier, twin, count):
    data = data_of(count)
    before = classifier.get_weights()
    network, summary, _ = trained(classifier, spec_of(), data)
    expected = keras_fit(twin, data)
    assert same_weights(network, twin)
    assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(network.get_weights(), before, strict=True))
    assert list(summary["history"]) == list(expected)
    for name, values in expected.items():
        assert np.allclose(summary["history"][name], values, atol=1e-6), name
    assert summary["rows"] == count
    assert summary["steps"] == -(-count // 8)
    assert len(summary["epoch_seconds"]) == 2


def test_an_optimizer_with_state(trained, classifier, twin):
    data = data_of(29)
    arguments = {"optimizer": keras.saving.serialize_keras_object(keras.optimizers.Adam(0.01)), "loss": LOSS}
    network, _, _ = trained(classifier, spec_of(compile=arguments, learning_rate=None), data)
    keras_fit(twin, data, optimizer=keras.optimizers.Adam(0.01))
    assert same_weights(network, twin)


@pytest.mark.parametrize("steps", [1, 16])
def test_steps_in_one_call_do_not_change_the_result(trained, classifier, twin, steps):
    data = data_of(29)
    network, summary, _ = trained(classifier, spec_of(steps_per_execution=steps), data)
    assert np.allclose(summary["history"]["loss"], keras_fit(twin, data)["loss"], atol=1e-6)
    assert same_weights(network, twin)


def test_the_history_is_exact(trained, classifier, twin):
    """With a learning rate near 0, the means over all rows are what evaluate computes."""
    data = data_of(29)
    _, summary, _ = trained(classifier, spec_of(learning_rate=1e-30, epochs=1), data)
    probability = twin(data["x0"]).numpy()
    labels = data["y0"].astype(int)
    assert np.isclose(summary["history"]["loss"][0], -np.log(probability[np.arange(29), labels]).mean(), atol=1e-6)
    assert np.isclose(summary["history"]["accuracy"][0], (probability.argmax(axis=1) == labels).mean(), atol=1e-7)


def test_validation_is_exact(trained, classifier, twin):
    data = data_of(30)
    marked = np.arange(30) % 3 == 0
    spec = spec_of(validation=Column("held", "v", dtype="bool"))
    network, summary, _ = trained(classifier, spec, data | {"v": marked})
    training, held = ({k: v[rows] for k, v in data.items()} for rows in (~marked, marked))
    expected = keras_fit(twin, training, validation_data=(held["x0"], held["y0"]), validation_batch_size=8)
    assert same_weights(network, twin)
    assert list(summary["history"]) == list(expected) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    for name, values in expected.items():
        assert np.allclose(summary["history"][name], values, atol=1e-6), name
    assert (summary["rows"], summary["validation_rows"], summary["steps"]) == (20, 10, 3)


@pytest.mark.parametrize("idle", [False, True])
def test_row_weights_are_keras_sample_weights_whose_mean_is_one(trained, classifier, twin, idle):
    data = data_of(29)
    weights = np.random.default_rng(1).uniform(0, 3, 29).astype(np.float32)
    weights[[2, 17]] = 0
    if idle:
        weights[8:16] = 0  # a step of no weight at all
    network, summary, _ = trained(classifier, spec_of(weight=Column("weight", "w", low=0.0)), data | {"w": weights})
    expected = keras_fit(twin, data, sample_weight=weights / weights.mean(dtype=np.float64))
    assert same_weights(network, twin)
    for name, values in expected.items():
        assert np.allclose(summary["history"][name], values, atol=1e-6), name


def test_the_loss_is_the_weighted_mean_over_all_rows(trained, classifier, twin):
    data = data_of(29)
    weights = np.random.default_rng(1).integers(0, 4, 29).astype(np.float32)
    spec = spec_of(weight=Column("weight", "w", low=0.0), learning_rate=1e-30)
    _, summary, _ = trained(classifier, spec, data | {"w": weights})
    each = keras.losses.sparse_categorical_crossentropy(data["y0"], twin(data["x0"])).numpy()
    assert np.isclose(summary["history"]["loss"][0], np.average(each, weights=weights), atol=1e-6)


def test_equal_weights_change_nothing(trained, classifier, twin):
    data = data_of(29)
    spec = spec_of(weight=Column("weight", "w", low=0.0))
    network, summary, _ = trained(classifier, spec, data | {"w": np.full(29, 7, np.float32)})
    assert np.allclose(summary["history"]["loss"], keras_fit(twin, data)["loss"], atol=1e-6)
    assert same_weights(network, twin)


def test_rows_of_weight_zero_have_no_effect(trained, classifier, twin):
    data = data_of(32)
    weights = np.tile(np.float32([1, 0]), 16)
    network, _, _ = trained(classifier, spec_of(weight=Column("weight", "w", low=0.0)), data | {"w": weights})
    half, _, _ = trained(twin, spec_of(batch_size=4), {field: rows[::2] for field, rows in data.items()})
    assert same_weights(network, half)


def test_weighted_metrics_are_weighted_and_others_not(trained, classifier, twin):
    data = data_of(29)
    weights = np.random.default_rng(1).uniform(0, 3, 29).astype(np.float32)
    arguments = {"optimizer": "sgd", "loss": LOSS, "metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    spec = spec_of(compile=arguments, learning_rate=1e-30, epochs=1, weight=Column("weight", "w", low=0.0))
    _, summary, _ = trained(classifier, spec, data | {"w": weights})
    right = twin(data["x0"]).numpy().argmax(axis=1) == data["y0"]
    history = summary["history"]
    assert np.isclose(history["accuracy"][0], right.mean(), atol=1e-6)
    assert np.isclose(history["weighted_accuracy"][0], np.average(right, weights=weights), atol=1e-6)


def test_a_shuffled_epoch_trains_every_row_once(trained, classifier, twin):
    """One step an epoch: the order within it does not matter, so shuffling changes nothing but rounding."""
    data = data_of(29)
    network, _, _ = trained(classifier, spec_of(batch_size=29, shuffle=True), data)
    plain, _, _ = trained(twin, spec_of(batch_size=29), data)
    assert same_weights(network, plain)


def test_the_seed_decides_the_order(trained, classifier):
    data = data_of(29)
    start = classifier.get_weights()
    results = []
    for seed in (1, 1, 2):
        model = keras.models.clone_model(classifier)
        model.set_weights(start)
        results.append(trained(model, spec_of(shuffle=True, seed=seed), data)[0])
    assert same_weights(results[0], results[1], tolerance=0)
    assert not same_weights(results[0], results[2])


def test_regularisation_counts(trained):
    def make():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(3, activation="softmax", kernel_regularizer=keras.regularizers.L2(0.1)),
            ]
        )
        model.set_weights([np.linspace(-1, 1, 12).reshape(4, 3), np.zeros(3)])
        return model

    data, twin = data_of(29), make()
    network, summary, _ = trained(make(), spec_of(), data)
    assert np.allclose(summary["history"]["loss"], keras_fit(twin, data)["loss"], atol=1e-6)
    assert same_weights(network, twin)


def test_several_inputs_and_outputs(trained):
    def make():
        left, right = keras.Input((2,), name="left"), keras.Input((), name="right")
        both = keras.layers.Concatenate()([left, keras.layers.Reshape((1,))(right)])
        ones = keras.initializers.Constant(0.3)
        outputs = [keras.layers.Dense(1, name=name, kernel_initializer=ones)(both) for name in ("a", "b")]
        return keras.Model([left, right], outputs)

    random = np.random.default_rng(0)
    data = {"x0": random.uniform(size=(29, 2)), "x1": random.uniform(size=29), "y0": random.uniform(size=29),
            "y1": random.uniform(size=29)}  # fmt: skip
    data = {field: rows.astype(np.float32) for field, rows in data.items()}
    spec = spec_of(
        inputs=(Column("l", "x0", (2,)), Column("r", "x1")), labels=(Column("a", "y0"), Column("b", "y1")),
        compile={"optimizer": "sgd", "loss": ["mse", "mae"], "metrics": [["mae"], ["mse"]], "loss_weights": [1.0, 0.5]},
        learning_rate=0.1,
    )  # fmt: skip
    network, summary, _ = trained(make(), spec, data)
    twin = make()
    twin.compile(keras.optimizers.SGD(0.1), ["mse", "mae"], metrics=[["mae"], ["mse"]], loss_weights=[1.0, 0.5])
    expected = twin.fit(
        [data["x0"], data["x1"]], [data["y0"], data["y1"]], batch_size=8, epochs=2, shuffle=False, verbose=0
    ).history
    assert same_weights(network, twin)
    assert set(summary["history"]) == set(expected)
    for name, values in expected.items():
        assert np.allclose(summary["history"][name], values, atol=1e-6), name


def test_every_epoch_is_reported(trained, classifier):
    _, summary, events = trained(classifier, spec_of(), data_of(29))
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [(event["epoch"], event["epochs"], event["step"], event["rows"]) for event in epochs] == [
        (1, 2, 4, 29),
        (2, 2, 4, 29),
    ]
    assert [event["logs"]["loss"] for event in epochs] == summary["history"]["loss"]
    assert all(event["rows_per_second"] > 0 for event in epochs)


def test_steps_are_reported_at_intervals(trained, classifier, monkeypatch):
    monkeypatch.setattr(callbacks, "EVENT_INTERVAL", -1.0)
    _, _, events = trained(classifier, spec_of(steps_per_execution=1), data_of(29))
    steps = [(event["epoch"], event["step"]) for event in events if event["event"] == "step"]
    assert steps == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4)]
    monkeypatch.setattr(callbacks, "EVENT_INTERVAL", 1e9)
    _, _, events = trained(classifier, spec_of(steps_per_execution=1), data_of(29))
    assert [event["event"] for event in events if event["event"] == "step"] == []


def test_the_network_comes_out_as_it_went_in(trained, classifier):
    kind = type(classifier)
    network, _, _ = trained(classifier, spec_of(), data_of(8))
    assert type(network) is kind


def test_a_spec_survives_json():
    spec = spec_of(weight=Column("weight", "w", low=0.0), validation=Column("held", "v", dtype="bool"))
    assert TrainSpec.loads(spec.dumps()) == spec
    assert TrainSpec.loads(spec_of().dumps()) == spec_of()
