"""Integrated gradients: against exact values, an implementation in NumPy, and the sums that the method promises."""

import functools
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest

from cos_ml import DeepNetModel
from cos_ml.data.pandas_internals import run_arrow
from cos_ml.errors import InvalidInputError
from cos_ml.layers import EmbeddingBag, sparse_inputs
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.outputs import output_kinds
from cos_ml.network.signature import input_columns
from cos_ml.scoring import predict

keras = import_keras()
layers = keras.layers

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def fresh_worker(monkeypatch):
    monkeypatch.setattr(predict, "networks", OrderedDict())
    monkeypatch.setattr(predict, "_replaced", set())


def attributions(network, *columns, loss=None, inputs=("features",), **params):
    """The attributions of the rows in ``columns``, lists or arrays by input, as a scoring task computes them."""
    frozen = Network.of(network)
    model = DeepNetModel(model=network, attributionsCol="a", **params)
    model.compiled = {"loss": loss}
    kinds = output_kinds(frozen.outputs, loss)
    found = input_columns(frozen, list(inputs))
    attribution = model.attribution(frozen, found, kinds[0], params.get("labels"))
    scorer = predict.Scorer(
        archive=frozen.archive, digest=frozen.digest, modules=(), inputs=found, layers=(), kinds=kinds,
        wanted=tuple(model.attribution_columns(frozen, found)), batch_size=3,
        handle_invalid=model.getHandleInvalid(), thresholds=tuple(params.get("thresholds", ())),
        attribution=attribution,
    )  # fmt: skip
    rows = [pd.Series(list(column), dtype=object) for column in columns]
    batch = rows[0] if len(rows) == 1 else tuple(rows)
    frame = pd.concat(run_arrow(functools.partial(predict.score, scorer), iter([batch])))
    return [_array(frame[name].tolist()) for name in frame]


def _array(rows):
    return np.array(rows) if len({len(row) for row in rows}) == 1 else rows


def uniform(*shape, seed=3):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def built(inputs, outputs):
    """A functional model with random biases, too, which Keras begins with 0."""
    network = keras.Model(inputs, outputs)
    random = np.random.default_rng(5)
    network.set_weights([random.uniform(-1, 1, one.shape).astype(np.float32) for one in network.get_weights()])
    return network


def test_a_linear_network_has_exact_attributions():
    numbers = keras.Input((4,))
    network = built(numbers, layers.Dense(1)(numbers))
    rows, baseline = uniform(7, 4), [0.5, -0.25, 0.0, 2.0]
    (found,) = attributions(network, rows, attributionBaseline=baseline, attributionSteps=1)
    assert np.allclose(found, network.layers[-1].kernel.numpy()[:, 0] * (rows - np.float32(baseline)), atol=1e-6)
    (found,) = attributions(network, rows, attributionBaseline=0.5, attributionSteps=1)
    assert np.allclose(found, network.layers[-1].kernel.numpy()[:, 0] * (rows - 0.5), atol=1e-6)


def test_a_small_network_has_those_that_numpy_computes():
    """Finite differences in double precision, and a sum over a thousand points."""
    numbers = keras.Input((3,))
    network = built(numbers, layers.Dense(3, "softmax")(layers.Dense(6, "tanh")(numbers)))
    first, bias, second, shift = (one.astype(float) for one in network.get_weights())
    rows, baseline = uniform(5, 3).astype(float), np.array([0.1, -0.2, 0.3])

    def probabilities(x):
        logits = np.tanh(x @ first + bias) @ second + shift
        exponents = np.exp(logits)
        return exponents / exponents.sum(axis=-1, keepdims=True)

    fractions = (np.arange(1000) + 0.5) / 1000
    classes = probabilities(rows).argmax(axis=1)
    assert len(set(classes)) > 1
    (found,) = attributions(network, rows, attributionBaseline=baseline.tolist())
    for row, target, values in zip(rows, classes, found, strict=True):
        points = baseline + fractions[:, None] * (row - baseline)
        for index in range(3):
            step = np.eye(3)[index] * 1e-5
            slopes = (probabilities(points + step) - probabilities(points - step))[:, target] / 2e-5
            assert values[index] == pytest.approx(slopes.mean() * (row - baseline)[index], abs=1e-6)


def image():
    pixels = keras.Input((6, 6, 1), dtype="uint8", name="pixels")
    hidden = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(pixels))
    return built(pixels, layers.Dense(3, "softmax")(layers.Flatten()(layers.MaxPooling2D()(hidden))))


def words():
    ids = keras.Input((5,), dtype="int32", name="ids")
    hidden = layers.Bidirectional(layers.LSTM(4))(layers.Embedding(9, 6)(ids))
    return built(ids, layers.Dense(1, "sigmoid")(hidden))


def nested():
    ids = keras.Input((5,), dtype="int64")
    inner = keras.Model(ids, layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(ids)))
    outer = keras.Input((5,), dtype="int64")
    return built(outer, layers.Dense(2)(inner(outer)))


def several():
    one, other = keras.Input((3,), name="one"), keras.Input((2, 2), name="other")
    both = layers.Concatenate()([one, layers.Flatten()(other)])
    hidden = layers.Dense(5, "gelu")(both)
    return built([one, other], [layers.Dense(4, name="classes")(hidden), layers.Dense(1, name="size")(hidden)])


LOGITS = keras.saving.serialize_keras_object(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
BOTH = {"inputs": ("one", "other"), "loss": [LOGITS, "mse"], "attributionBaseline": {"other": 0.5}}
PIXELS, IDS = (np.random.default_rng(1).integers(0, high, (7, size)) for high, size in ((256, 36), (9, 5)))
SUMS = {  # the network, the rows of its inputs, their baselines, the class or none, and the Params
    "pixels": (image, [PIXELS], [0], None, {}),
    "a class": (image, [PIXELS], [128], 2, {"attributionTarget": 2, "attributionBaseline": 128}),
    "words": (words, [IDS], [4], None, {"attributionBaseline": 4}),
    "a label": (words, [IDS], [0], 0, {"attributionTarget": "no", "labels": ["no", "yes"]}),
    "a model in it": (nested, [IDS], [0], 1, {"attributionTarget": 1}),
    "several inputs": (several, [uniform(7, 3), uniform(7, 4, seed=4)], [0, 0.5], None, BOTH),
}


def first_output(network, rows):
    """The first output for these flat rows, with a column for each class."""
    inputs = zip(rows, network.inputs, strict=True)
    batch = [np.asarray(one, tensor.dtype).reshape(-1, *tensor.shape[1:]) for one, tensor in inputs]
    result = network(batch if len(batch) > 1 else batch[0])
    first = (result[0] if isinstance(result, list) else result).numpy()
    return np.hstack([1 - first, first]) if first.shape[1] == 1 else first


@pytest.mark.parametrize("name", SUMS)
def test_attributions_add_up_to_the_difference(name):
    make, rows, baselines, target, params = SUMS[name]
    network = make()
    found = attributions(network, *rows, **params)
    ends = first_output(network, rows)
    starts = first_output(network, [np.full_like(one, number) for one, number in zip(rows, baselines, strict=True)])
    targets = ends.argmax(axis=1) if target is None else np.full(len(ends), target)
    differences = np.take_along_axis(ends - starts, targets[:, None], 1)[:, 0]
    assert [one.shape for one in found] == [one.shape for one in rows]
    assert np.abs(differences).max() > 0.01
    # A ReLU has a kink, so its integral is the mean of some points: 1% with 50 of them.
    tolerance = 0.02 if make is image else 1e-5
    assert np.allclose(sum(one.sum(axis=1) for one in found), differences, atol=tolerance)


def test_more_steps_are_more_exact():
    network, errors = image(), []
    ends, starts = (first_output(network, [rows])[:, 1] for rows in (PIXELS, np.zeros_like(PIXELS)))
    for steps in (5, 500):
        (found,) = attributions(network, PIXELS, attributionTarget=1, attributionSteps=steps)
        errors.append(np.abs(found.sum(axis=1) - (ends - starts)).max())
    assert errors[1] < 0.003 < 0.01 < errors[0]


def test_rows_of_different_lengths():
    steps = keras.Input((None, 2), name="steps")
    network = built(steps, layers.Dense(1)(layers.GRU(3)(layers.Masking()(steps))))
    rows = [uniform(length * 2, seed=length) for length in (4, 1, 3, 2)]
    (found,) = attributions(network, rows)
    for row, values in zip(rows, found, strict=True):
        steps = row.reshape(1, -1, 2)  # without padding; and zeros are masked, so the baseline is all but 0
        assert len(values) == len(row)
        assert sum(values) == pytest.approx((network(steps) - network(steps * 1e-9)).numpy().item(), abs=1e-4)


def test_the_values_of_sparse_vectors():
    """Their indices stay; an entry with the value 0 is as good as none."""
    indices, values = sparse_inputs("words")
    network = built([indices, values], layers.Dense(1)(layers.Dense(4, "tanh")(EmbeddingBag(9, 5)([indices, values]))))
    which, rows = [[1, 4], [3], [0, 5, 8]], [[0.5, 2.0], [-1.0], [0.1, 0.2, 0.3]]
    which, rows = [np.array(one) for one in which], [np.array(one, np.float32) for one in rows]
    (found,) = attributions(network, which, rows, inputs=("words.indices", "words.values"))
    nothing = network([np.array([[0]]), np.array([[0.0]])]).numpy().item()
    for ids, row, parts in zip(which, rows, found, strict=True):
        assert len(parts) == len(row)
        assert sum(parts) == pytest.approx(network([ids[None], row[None]]).numpy().item() - nothing, abs=1e-5)


def test_thresholds_choose_the_class():
    numbers = keras.Input((2,))
    network = built(numbers, layers.Dense(2, "softmax")(numbers))
    rows = uniform(4, 2)
    (second,) = attributions(network, rows, attributionTarget=1)
    (found,) = attributions(network, rows, thresholds=[1.0, 0.0])
    assert np.array_equal(found, second)


def test_a_bad_row_has_nan():
    numbers = keras.Input((2,))
    network = built(numbers, layers.Dense(1)(numbers))
    (found,) = attributions(network, [[0.5, 1.0], None, [0.5, 1.0]], handleInvalid="keep")
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[0], found[2])


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def multi_hot():
    ids = keras.Input((3,), dtype="int32", name="ids")
    return keras.Model(ids, layers.Dense(2, "softmax")(layers.CategoryEncoding(5, output_mode="multi_hot")(ids)))


def strings():
    text = keras.Input((1,), dtype="string", name="text")
    ids = layers.StringLookup(vocabulary=["a", "b"])(text)
    return keras.Model(text, layers.Dense(2, "softmax")(layers.Flatten()(layers.Embedding(4, 2)(ids))))


def rounded():
    numbers = keras.Input((3,), name="numbers")
    return keras.Model(numbers, layers.Dense(1)(layers.Discretization([0.0, 0.5], output_mode="one_hot")(numbers)))


def vector():
    numbers = keras.Input((3,), name="numbers")
    return keras.Model(numbers, layers.Dense(4, name="four")(numbers))


REFUSED = {
    "integers without an Embedding": (
        multi_hot,
        {},
        r"input 'ids' is of type int32, goes into category_encoding\w* and has no gradient",
    ),
    "strings": (strings, {}, r"input 'text' is of type string, goes into string_lookup\w* and has no gradient"),
    "no gradient": (rounded, {"attributionTarget": 0}, "has no gradient with respect to its inputs"),
    "no classes": (vector, {}, "attributionTarget is not set, but output 'four' computes 4 numbers"),
    "a class too many": (vector, {"attributionTarget": 4}, "expected an index from 0 to 3, received 4"),
    "a label without labels": (vector, {"attributionTarget": "x"}, r"one of the labels \[\], received 'x'"),
    "a short baseline": (
        vector,
        {"attributionTarget": 0, "attributionBaseline": [1.0, 2.0]},
        "expected 3 numbers for input 'numbers', received a list of 2",
    ),
    "a baseline of nothing": (
        vector,
        {"attributionTarget": 0, "attributionBaseline": {"x": 1.0}},
        r"expected names of the inputs \['numbers'\], received 'x'",
    ),
    "a baseline beyond the Embedding": (words, {"attributionBaseline": 9}, "integers from 0 to 8 .* received 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_attributed_is_refused_by_name(name):
    make, params, message = REFUSED[name]
    with pytest.raises(InvalidInputError, match=message):
        attributions(make(), [], **params)


@pytest.mark.parametrize("value", ["0", [0.0, float("nan")], {"a": "x"}, {1: 0.0}, None, float("inf"), [[0.0]]])
def test_baselines(value):
    with pytest.raises(InvalidInputError, match="Param attributionBaseline: expected a finite number, a list of them"):
        DeepNetModel().setAttributionBaseline(value) if value is not None else DeepNetModel(attributionBaseline="x")
