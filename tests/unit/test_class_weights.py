"""Class weights are row weights: ranks without Spark."""

import keras
import numpy as np
import pytest

from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network
from cos_ml.network.class_weights import with_class_weights
from cos_ml.spec import ClassWeights, TrainSpec
from tests.support import reference
from tests.support.reference import assert_same_weights

pytestmark = pytest.mark.once

INPUT, LABEL, WEIGHT = Column("features", "x0", (12,)), Column("label", "y0", classes=3), Column("w", "w", low=0.0)
BALANCED = ClassWeights("y0", 3)


def spec_of(loss="sparse_categorical_crossentropy", label=LABEL, **fields):
    compiled = {"optimizer": "sgd", "loss": loss, "weighted_metrics": ["accuracy"]}
    return TrainSpec((INPUT,), (label,), compile=compiled, learning_rate=0.1, shuffle=False, epochs=2, **fields)


def fit(ranks, spec, parts, network=None):
    (trained,) = ranks.fit([spec], [network or reference.network()], parts)
    return trained


def parts_of(features, labels, weights=None, sizes=(90, 41)):
    edges = np.cumsum(sizes)[:-1]
    columns = {"x0": features, "y0": labels} | ({} if weights is None else {"w": weights.astype(np.float32)})
    split = {field: np.split(array, edges) for field, array in columns.items()}
    return [{field: pieces[rank] for field, pieces in split.items()} for rank in range(len(sizes))]


@pytest.fixture(scope="module")
def rows():
    features, labels, _ = reference.data(131)
    return features, np.where((labels == 1) & (np.arange(131) % 3 > 0), 0, labels).astype(np.float32)


def balanced(labels):
    classes, counts = np.unique(labels, return_counts=True)
    return dict(zip(classes.tolist(), len(labels) / (len(classes) * counts), strict=True))


@pytest.mark.parametrize(
    ("sizes", "weighted", "given"),
    [
        pytest.param((131,), False, (1.0, 0.3, 4.0), marks=pytest.mark.more),
        ((90, 41), True, (0.0, 0.3, 4.0)),
        pytest.param((90, 41), False, None, marks=pytest.mark.more),
        pytest.param((131, 0), True, None, marks=pytest.mark.more),
    ],
)
def test_they_are_the_row_weights(ranks, rows, sizes, weighted, given):
    features, labels = rows
    own = np.random.default_rng(1).uniform(0, 3, 131).astype(np.float32) if weighted else None
    of_class = balanced(labels) if given is None else dict(enumerate(given))
    weights = np.array([of_class[label] for label in labels.tolist()]) * (own if weighted else 1)
    spec = spec_of(class_weights=ClassWeights("y0", 3, given), weight=WEIGHT if weighted else None)
    found = fit(ranks, spec, parts_of(features, labels, own, sizes))
    expected = fit(ranks, spec_of(weight=WEIGHT), parts_of(features, labels, weights, sizes))
    assert_same_weights(found.network, expected.network, 0)
    assert found.history == expected.history


def test_they_are_what_keras_computes(ranks, rows):
    """With weights whose mean is 1, as balanced ones are: those of ``fit(class_weight=)``."""
    features, labels = rows
    found = fit(ranks, spec_of(class_weights=BALANCED), parts_of(features, labels, sizes=(131,)))
    network = reference.network()
    network.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    history = network.fit(
        features, labels, class_weight=balanced(labels), shuffle=False, epochs=2, verbose=0, batch_size=32
    ).history
    assert_same_weights(found.network, network, 1e-6)
    for name, values in history.items():
        np.testing.assert_allclose(found.history[name], values, atol=1e-6)


def test_one_hot_rows_are_their_classes(ranks, rows):
    features, labels = rows
    label = Column("label", "y0", (3,))
    spec = spec_of("categorical_crossentropy", label, class_weights=BALANCED)
    found = fit(ranks, spec, parts_of(features, np.eye(3, dtype=np.float32)[labels.astype(int)]))
    expected = fit(ranks, spec_of(class_weights=BALANCED), parts_of(features, labels))
    assert_same_weights(found.network, expected.network, 1e-6)


def test_an_ignored_class_is_no_class(ranks, rows):
    """Its rows are not counted, and weigh what they weigh without class weights."""
    features, labels = rows
    ignored = np.where(np.arange(131) % 5 == 0, -1, labels).astype(np.float32)
    loss = keras.saving.serialize_keras_object(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    label = Column("label", "y0", classes=3, ignored=-1.0)
    found = fit(ranks, spec_of(loss, label, class_weights=BALANCED), parts_of(features, ignored))
    of_class = balanced(ignored[ignored >= 0]) | {-1.0: 1.0}
    weights = np.array([of_class[one] for one in ignored.tolist()])
    expected = fit(ranks, spec_of(loss, label, weight=WEIGHT), parts_of(features, ignored, weights))
    assert_same_weights(found.network, expected.network, 0)


def test_validation_rows_count_alike(ranks, rows):
    features, labels = rows
    held = Column("held", "v", dtype="bool")
    marks = np.arange(131) % 4 == 0
    parts = [part | {"v": mark} for part, mark in zip(parts_of(features, labels), np.split(marks, [90]), strict=True)]
    found = fit(ranks, spec_of(class_weights=ClassWeights("y0", 3, (1.0, 0.0, 5.0)), validation=held), parts)
    found.network.compile("sgd", "sparse_categorical_crossentropy")
    expected = found.network.evaluate(features[marks], labels[marks], verbose=0)
    assert found.history["val_loss"][-1] == pytest.approx(expected, abs=1e-5)


def test_the_spec_survives_json():
    for classes in (None, BALANCED, ClassWeights("y1", 2, (0.5, 1.0))):
        assert TrainSpec.loads(spec_of(class_weights=classes).dumps()).class_weights == classes


def network_of(*outputs):
    inputs = keras.Input((12,))
    made = [keras.layers.Dense(units, activation=act)(inputs) for units, act in outputs]
    return Network.of(keras.Model(inputs, made[0] if len(made) == 1 else made))


@pytest.mark.parametrize(
    ("loss", "output", "label", "classes"),
    [
        ("sparse_categorical_crossentropy", (3, "softmax"), Column("y", "y0", (), classes=3), 3),
        ("binary_crossentropy", (1, "sigmoid"), Column("y", "y0", (), low=0.0, high=1.0), 2),
        ("mse", (1, "sigmoid"), Column("y", "y0", (1,)), 2),
        ("my_loss", (3, "softmax"), Column("y", "y0", (), "int32"), 3),
    ],
)
def test_labels_are_classes(loss, output, label, classes):
    """Row by row, also where the loss alone takes any number: 0.5 belongs to no class."""
    labels, found = with_class_weights({1: 2.0}, network_of(output), (label,), loss)
    assert (labels[0].classes, labels[0].low) == (classes, None)
    assert found == ClassWeights("y0", classes, (1.0, 2.0, *[1.0] * (classes - 2)))


@pytest.mark.parametrize(
    ("value", "loss", "outputs", "match"),
    [
        ({0: 2.0}, "mse", [(1, None)], "expected one label that is a class"),
        ("balanced", "binary_crossentropy", [(4, "sigmoid")], "expected one label that is a class"),
        ("balanced", "categorical_crossentropy", [(3, "softmax"), (2, "softmax")], "have 2. Use weightCol"),
        ({3: 1.0}, "categorical_crossentropy", [(3, "softmax")], "classes from 0 to 2, .* received 3"),
        ({-1: 1.0}, "binary_crossentropy", [(1, "sigmoid")], "classes from 0 to 1, .* received -1"),
    ],
)
def test_what_has_no_classes_is_refused(value, loss, outputs, match):
    labels = tuple(Column("y", f"y{index}", (units,)) for index, (units, _) in enumerate(outputs))
    with pytest.raises(InvalidInputError, match=f"Param classWeights: .*{match}"):
        with_class_weights(value, network_of(*outputs), labels, loss)


def test_one_classifier_among_outputs_gives_the_classes():
    labels = (Column("a", "y0", (2,)), Column("b", "y1", (3,), alternatives=((None,),)))
    found, classes = with_class_weights("balanced", network_of((2, None), (3, "softmax")), labels, "mse")
    assert classes == ClassWeights("y1", 3)
    assert found == (labels[0], Column("b", "y1", (3,)))
