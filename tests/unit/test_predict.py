import dataclasses
import functools
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest

from cos_ml.data.columns import Column
from cos_ml.data.pandas_internals import arrow_column, run_arrow
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network.archive import Network, dump_model, load_model
from cos_ml.network.forward import ForwardPass, traced
from cos_ml.network.keras_import import import_keras
from cos_ml.network.outputs import OutputKind
from cos_ml.network.swap import shared_config
from cos_ml.scoring import predict
from cos_ml.scoring.predict import Scorer, score

keras = import_keras()
layers = keras.layers

ALL = ("prediction", "probability", "rawPrediction")


@pytest.fixture(autouse=True)
def fresh_worker(monkeypatch):
    """No test sees a network that another has loaded."""
    monkeypatch.setattr(predict, "networks", OrderedDict())
    monkeypatch.setattr(predict, "_replaced", set())


def scorer_of(model, taps=(), kind="classes", wanted=ALL, batch_size=1000, handle_invalid="error"):
    network = Network.of(model)
    inputs = tuple(
        Column(tensor.name, f"x{index}", tensor.shape, tensor.dtype) for index, tensor in enumerate(network.inputs)
    )
    return Scorer(
        archive=network.archive, digest=network.digest, modules=(), inputs=inputs, layers=tuple(taps),
        kinds=(OutputKind(kind),), wanted=tuple((0, what) for what in wanted), batch_size=batch_size,
        handle_invalid=handle_invalid,
    )  # fmt: skip


def series(rows):
    """A list column as Spark hands it to a pandas UDF: an ndarray a row, None for null."""
    return pd.Series([None if row is None else np.asarray(row, np.float32) for row in rows], dtype=object)


def scored(scorer, *batches):
    return list(run_arrow(functools.partial(score, scorer), iter(batches)))


def matrix(column):
    return np.array(column.tolist())


@pytest.fixture
def nested():
    """A model within a model, and a convolution."""
    block = keras.Sequential(
        [keras.Input((2, 2, 1)), layers.Conv2D(3, 1, name="conv"), layers.ReLU(name="relu")], name="block"
    )
    image = keras.Input((2, 2, 1), name="image")
    flat = layers.Flatten(name="flat")(block(image))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(flat), name="nested")


def test_scores_are_the_networks_own(classifier, numbers):
    rows = numbers(7, 4)
    expected = classifier(rows).numpy()
    batches = scored(scorer_of(classifier), series(rows[:4]), series(rows[4:]))
    assert [len(frame) for frame in batches] == [4, 3]
    assert list(batches[0]) == list(ALL)
    frame = pd.concat(batches)
    assert np.allclose(matrix(frame.probability), expected, atol=1e-6)
    assert frame.prediction.tolist() == expected.argmax(axis=1).tolist()
    assert str(frame.prediction.dtype) == "double[pyarrow]"
    assert np.allclose(matrix(frame.rawPrediction), np.log(expected), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_does_not_change_the_scores(classifier, numbers, batch_size):
    rows = numbers(7, 4)
    (frame,) = scored(scorer_of(classifier, batch_size=batch_size), series(rows))
    assert np.allclose(matrix(frame.probability), classifier(rows).numpy(), atol=1e-6)


@pytest.mark.parametrize("tap", ["block/conv", "block/relu", "block", "flat", "classes"])
def test_a_tap_is_the_layers_own_output(nested, numbers, tap):
    rows = numbers(5, 2, 2, 1)
    block = nested.get_layer("block")
    inner = keras.Model(block.inputs[0], block.get_layer("conv").output)(rows).numpy()
    expected = {
        "block/conv": inner,
        "block/relu": np.maximum(inner, 0),
        "block": np.maximum(inner, 0),
        "flat": keras.Model(nested.inputs[0], nested.get_layer("flat").output)(rows).numpy(),
        "classes": nested(rows).numpy(),
    }[tap]
    (frame,) = scored(scorer_of(nested, taps=[tap]), series(rows.reshape(5, 4)))
    assert list(frame) == ["f0", *ALL]
    assert np.allclose(matrix(frame.f0), expected.reshape(5, -1), atol=1e-6)
    assert matrix(frame.f0).dtype == np.float64


def test_taps_alone(nested, numbers):
    (frame,) = scored(scorer_of(nested, taps=["flat", "block/conv"], wanted=()), series(numbers(2, 4)))
    assert list(frame) == ["f0", "f1"]
    assert matrix(frame.f0).shape == matrix(frame.f1).shape == (2, 12)


def test_one_pass_a_batch(nested, numbers, monkeypatch):
    """Taps and predictions come from the same pass, and a batch of Spark's is cut into passes of the batch size."""
    passes = []

    class Counted(ForwardPass):
        def __call__(self, *inputs):
            passes.append(len(inputs[0]))
            return super().__call__(*inputs)

    monkeypatch.setattr(predict, "ForwardPass", Counted)
    scorer = scorer_of(nested, taps=["flat", "block/relu"], batch_size=4)
    scored(scorer, series(numbers(10, 4)), series(numbers(3, 4)))
    assert passes == [4, 4, 2, 3]


def test_a_pass_calls_every_layer_once(nested, numbers):
    calls = []

    def counted(layer):
        call = layer.call
        layer.call = lambda *args, **kwargs: calls.append(layer.name) or call(*args, **kwargs)

    for name in ("flat", "classes"):
        counted(nested.get_layer(name))
    output, tap = ForwardPass(nested, ("flat",))(numbers(2, 2, 2, 1))
    assert (output.shape, tap.shape) == ((2, 3), (2, 12))
    assert calls == ["flat", "classes"]  # while the one graph was traced


def test_dropout_rests(numbers):
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, name="drop"), layers.Dense(1)])
    rows = numbers(6, 4)
    (frame,) = scored(scorer_of(model, taps=["drop"], kind="number", wanted=["prediction"]), series(rows))
    assert np.allclose(matrix(frame.f0), rows)
    assert frame.prediction.shape == (6,)


def test_several_inputs(numbers):
    left, right = keras.Input((2,), name="left"), keras.Input((), name="right")
    wide = layers.Reshape((1,))(right)
    model = keras.Model([left, right], layers.Concatenate(name="both")([left, wide]))
    rows = numbers(3, 2)
    scorer = scorer_of(model, kind="vector", wanted=["prediction"])
    (frame,) = scored(scorer, (series(rows), pd.Series(np.array([1, 2, 3], np.float32))))
    assert np.allclose(matrix(frame.prediction), np.hstack([rows, [[1], [2], [3]]]))


@pytest.mark.parametrize("kind", ["list of one", "dict"])
def test_inputs_as_the_network_was_built_with(numbers, kind):
    """Keras warns, where the structure of what it is called with is not the one that it was built with."""
    size = keras.Input((2,), name="size")
    model = keras.Model([size] if kind == "list of one" else {"size": size}, layers.Rescaling(2.0)(size))
    rows = numbers(3, 2)
    (frame,) = scored(scorer_of(model, kind="vector", wanted=["prediction"]), series(rows))
    assert np.allclose(matrix(frame.prediction), rows * 2)


def test_bytes():
    model = keras.Sequential([keras.Input((2,)), layers.Rescaling(0.5)])
    scorer = scorer_of(model, kind="vector", wanted=["prediction"])
    (frame,) = scored(scorer, pd.Series([b"\x02\x04", b"\xff\x00"]))
    assert matrix(frame.prediction).tolist() == [[1, 2], [127.5, 0]]
    (frame,) = scored(scorer, pd.Series([bytearray(b"\x02\x04")]))
    assert matrix(frame.prediction).tolist() == [[1, 2]]


# ── rows that can't be used ───────────────────────────────────────────────────────────────────────────────────────────

GOOD, SHORT, HOLE = [1, 2, 3, 4], [1, 2], [1, np.nan, 3, 4]


@pytest.mark.parametrize(
    ("bad", "what"), [(None, "is null"), (SHORT, "has 2 numbers"), (HOLE, "has NaN at position 1")]
)
def test_error_names_column_and_row(classifier, bad, what):
    with pytest.raises(InvalidInputError, match=f"column 'numbers', row 1: {what}"):
        scored(scorer_of(classifier), series([GOOD, bad, GOOD]))


def is_null(column):
    return column.isna().tolist()


@pytest.mark.parametrize("bad", [None, SHORT, HOLE])
def test_skip_gives_null_rows_in_place(classifier, bad):
    scorer = scorer_of(classifier, taps=["hidden"], handle_invalid="skip")
    (frame,) = scored(scorer, series([bad, GOOD, bad, GOOD]))
    expected = classifier(np.array([GOOD], np.float32)).numpy()
    for name in scorer.fields:
        assert is_null(frame[name]) == [True, False, True, False]
    assert np.allclose(matrix(frame.probability[[1, 3]]), [*expected, *expected], atol=1e-6)
    assert frame.index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [None, SHORT, HOLE])
def test_skip_a_whole_batch(classifier, bad):
    scorer = scorer_of(classifier, taps=["hidden"], handle_invalid="skip")
    none, some = scored(scorer, series([bad, bad]), series([GOOD]))
    assert all(is_null(none[name]) == [True, True] for name in scorer.fields)
    assert all(is_null(some[name]) == [False] for name in scorer.fields)


@pytest.mark.parametrize("bad", [None, SHORT, HOLE])
@pytest.mark.parametrize("whole", [True, False])
def test_keep_gives_nan(classifier, bad, whole):
    scorer = scorer_of(classifier, handle_invalid="keep")
    (frame,) = scored(scorer, series([bad] if whole else [bad, GOOD]))
    assert np.isnan(frame.prediction[0])
    assert np.isnan(frame.probability[0]).all()
    if not whole:
        assert frame.prediction[1] in (0, 1, 2)


@pytest.mark.parametrize("handle_invalid", ["skip", "keep"])
def test_numbers_that_are_null(handle_invalid):
    model = keras.Sequential([keras.Input((1,), name="size"), layers.Rescaling(2.0)])
    scorer = scorer_of(model, kind="number", wanted=["prediction"], handle_invalid=handle_invalid)
    (frame,) = scored(scorer, pd.Series([1.5, np.nan, 2.5], dtype=np.float32))
    empty = frame.prediction.isna() if handle_invalid == "skip" else np.isnan(frame.prediction)
    assert empty.tolist() == [False, True, False]
    assert frame.prediction[[0, 2]].tolist() == [3, 5]


@pytest.mark.parametrize("handle_invalid", ["error", "skip"])
def test_no_rows(classifier, handle_invalid):
    (frame,) = scored(scorer_of(classifier, taps=["hidden"], handle_invalid=handle_invalid), series([]))
    assert list(frame) == ["f0", *ALL]
    assert len(frame) == 0


def test_spark_takes_arrow_columns_as_they_are(classifier, numbers):
    """It orders the columns of what it gets, and applies a function to each row of an array column."""
    (frame,) = scored(scorer_of(classifier), series(numbers(3, 4)))
    column = frame[list(reversed(frame.columns))].iloc[:, -1]
    assert column.apply(lambda _: pytest.fail("a row was touched")) is column


def test_no_batches(classifier):
    assert scored(scorer_of(classifier)) == []


def test_rows_are_counted_over_batches(classifier):
    with pytest.raises(InvalidInputError, match="column 'numbers', row 3: is null"):
        scored(scorer_of(classifier), series([GOOD, GOOD]), series([GOOD, None]))


# ── once per worker ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def loads(monkeypatch):
    """A list that grows with every network that is loaded."""
    seen = []
    monkeypatch.setattr(predict, "load_model", lambda *args: seen.append(args) or load_model(*args))
    return seen


def test_a_network_is_loaded_once(classifier, numbers, loads):
    scorer = scorer_of(classifier)
    for _ in range(3):
        scored(scorer, series(numbers(2, 4)), series(numbers(2, 4)))
    assert len(loads) == 1
    scored(dataclasses.replace(scorer, wanted=((0, "prediction"),), batch_size=1), series(numbers(2, 4)))
    assert len(loads) == 1  # the network is the same


def test_networks_of_one_configuration_share_a_trace(monkeypatch, classifier, numbers, loads):
    """As candidates and folds do: each has the scores of its own weights, bit for bit."""
    traces, rows = counted_traces(monkeypatch), series(numbers(5, 4))
    scorers = []
    for factor in (1, 2, 3):
        classifier.set_weights([weight * factor for weight in classifier.get_weights()])
        scorers.append(scorer_of(classifier, taps=["hidden"]))
    del traces[:]
    shared = [scored(scorer, rows)[0] for scorer in scorers]
    assert (len(loads), len(traces)) == (1, 1)
    again = scored(scorers[0], rows)[0]  # it comes back: from now on both stay
    assert (len(loads), len(traces)) == (2, 2)
    assert scored(scorers[2], rows)[0].equals(shared[2])
    assert len(loads) == 2
    for scorer, found in zip(scorers, [again, *shared[1:]], strict=True):
        monkeypatch.setattr(predict, "networks", OrderedDict())
        assert scored(scorer, rows)[0].equals(found)
    assert shared[0].equals(again)


def test_networks_trained_from_one_archive_have_one_configuration():
    """Keras writes into that of recurrent layers where their initializers are in memory."""
    archive = Network.of(keras.Sequential([keras.Input((5, 4)), layers.GRU(3)])).archive
    trained = [load_model(archive) for _ in range(2)]
    (config,) = {shared_config(dump_model(network)) for network in trained}
    assert "GRU" in config


@pytest.mark.parametrize(("modules", "expected"), [(("cos_ml.layers",), 1), (("tests.support.raising",), 2)])
def test_custom_code_is_not_shared(classifier, numbers, loads, modules, expected):
    rows = series(numbers(2, 4))
    for factor in (1, 2):
        classifier.set_weights([weight * factor for weight in classifier.get_weights()])
        scored(dataclasses.replace(scorer_of(classifier), modules=modules), rows)
    assert len(loads) == expected


def test_a_network_in_use_keeps_its_weights(classifier, numbers, loads):
    """Two functions of one query are computed in turns by one worker."""
    rows = series(numbers(5, 4))
    first = scorer_of(classifier)
    classifier.set_weights([weight * 2 for weight in classifier.get_weights()])
    second = scorer_of(classifier)
    turns = run_arrow(functools.partial(score, first), iter([rows, rows]))
    before = next(turns)
    between = scored(second, rows)[0]
    assert next(turns).equals(before)
    assert not between.equals(before)
    assert len(loads) == 2


def adapted(rows):
    layer = layers.Normalization()
    layer.adapt(rows)
    return keras.Sequential([keras.Input((4,)), layer, layers.Dense(1, name="out")], name="adapted")


def test_constants_made_from_variables_are_not_shared(numbers, loads):
    rows = numbers(5, 4)
    for model in (adapted(rows), adapted(rows + 1)):
        (frame,) = scored(scorer_of(model, kind="number", wanted=["prediction"]), series(rows))
        assert np.allclose(frame.prediction.astype(float), model(rows).numpy()[:, 0], atol=1e-5)
    assert len(loads) == 2


def test_a_damaged_network_is_no_other_networks_loss(classifier, numbers, loads):
    """What it would have taken over is dropped, and loaded again."""
    rows, good = series(numbers(2, 4)), scorer_of(classifier)
    (before,) = scored(good, rows)
    middle = good.archive.index(b"model.weights.h5") + 100
    torn = good.archive[:middle] + bytes(8000) + good.archive[middle + 8000 :]
    for archive, message in ((b"no archive", "not a .keras archive"), (torn, "does not load")):
        with pytest.raises(SavedModelError, match=message):
            scored(dataclasses.replace(good, archive=archive, digest=message), rows)
    assert scored(good, rows)[0].equals(before)


def test_few_networks_are_kept(monkeypatch, classifier, numbers):
    monkeypatch.setattr(predict, "MAX_NETWORKS", 2)
    scorer, rows = scorer_of(classifier), series(numbers(2, 4))
    for digest in "0", "1", "0", "2":
        scored(dataclasses.replace(scorer, digest=digest), rows)
    assert [digest for digest, _ in predict.networks] == ["0", "2"]  # the one used longest ago was dropped


# ── rows of different lengths ─────────────────────────────────────────────────────────────────────────────────────────

STEPS = [[1, 2, 3, 4, 5, 6], [7, 8], [], [1, 2, 3, 4], [9, 9]]


def counted_traces(monkeypatch):
    """A list that grows with every trace of a forward pass."""
    traces = []
    forward = ForwardPass.compute
    monkeypatch.setattr(ForwardPass, "compute", lambda self, *inputs: traces.append(1) or forward(self, *inputs))
    return traces


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_rows_keep_their_length(monkeypatch, batch_size):
    """A masked tagger: each row has the scores that the network computes for it alone, and one trace is enough."""
    traces = counted_traces(monkeypatch)
    steps = keras.Input((None, 2), name="steps")
    tags = layers.LSTM(3, return_sequences=True, name="tags")(layers.Masking()(steps))
    model = keras.Model(steps, layers.Dense(4, activation="softmax")(tags))
    scorer = scorer_of(model, taps=["tags"], kind="vector", wanted=["prediction"], batch_size=batch_size)
    (frame,) = scored(scorer, series(STEPS))
    inner = keras.Model(steps, tags)
    for row, feature, prediction in zip(STEPS, frame.f0, frame.prediction, strict=True):
        alone = np.reshape(row, (1, -1, 2)).astype(np.float32)
        assert len(prediction) == 4 * len(row) // 2
        if row:
            assert np.allclose(prediction, model(alone).numpy().reshape(-1), atol=1e-6)
            assert np.allclose(feature, inner(alone).numpy().reshape(-1), atol=1e-6)
    assert len(traces) == 1


def test_one_vector_for_a_row_of_any_length(monkeypatch):
    traces = counted_traces(monkeypatch)
    steps = keras.Input((None, 2), name="steps")
    model = keras.Model(steps, layers.GRU(3)(layers.Masking(mask_value=-1.0)(steps)))
    scorer = scorer_of(model, kind="vector", wanted=["prediction"], batch_size=2)
    scorer = dataclasses.replace(scorer, inputs=(dataclasses.replace(scorer.inputs[0], padding=-1.0),))
    (frame,) = scored(scorer, series(STEPS))
    for row, prediction in zip(STEPS, frame.prediction, strict=True):
        alone = np.reshape(row or [-1, -1], (1, -1, 2)).astype(np.float32)
        assert np.allclose(prediction, model(alone).numpy()[0], atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("handle_invalid", ["skip", "keep"])
def test_invalid_rows_among_rows_of_different_lengths(handle_invalid):
    steps = keras.Input((None, 2), name="steps")
    model = keras.Model(steps, layers.Rescaling(2.0)(steps))
    scorer = scorer_of(model, kind="vector", wanted=["prediction"], handle_invalid=handle_invalid, batch_size=2)
    (frame,) = scored(scorer, series([[1, 2, 3, 4], None, [5, 6], [1, 2, 3], [7, np.nan]]))
    good = [list(row) for row in frame.prediction[[0, 2]]]
    assert good == [[2, 4, 6, 8], [10, 12]]
    bad = frame.prediction[[1, 3, 4]]
    assert bad.isna().all() if handle_invalid == "skip" else all(np.isnan(row).all() and len(row) for row in bad)


def test_results_of_their_own_length_stay():
    """A convolution without padding has fewer steps than its rows: they can't be told from those of padding."""
    steps = keras.Input((None, 1), name="steps")
    model = keras.Model(steps, layers.Conv1D(1, 2, kernel_initializer="ones")(steps))
    scorer = scorer_of(model, kind="vector", wanted=["prediction"], batch_size=2)
    (frame,) = scored(scorer, series([[1, 2, 3], [4, 5], [6, 7]]))
    assert [list(row) for row in frame.prediction] == [[3, 5], [9, 5], [13]]


def test_words_of_different_numbers():
    words = keras.Input((None,), dtype="string", name="words")
    model = keras.Model(words, layers.StringLookup(vocabulary=["a", "b"], mask_token="", name="ids")(words))
    scorer = scorer_of(model, kind="vector", wanted=["prediction"])
    (frame,) = scored(scorer, pd.Series([np.array(["a", "b"], object), np.array(["c"], object)]))
    assert [list(row) for row in frame.prediction] == [[2, 3], [1]]


def test_a_trace_for_a_dimension_that_differs():
    """Where nobody says which dimension differs, the second length is traced once more, and no other."""
    traces = []
    total = traced(lambda rows: traces.append(1) or rows[0] + rows[1])
    for length in (2, 3, 4, 5):
        rows = np.ones((3, length), np.float32)
        assert total([rows, rows]).numpy().tolist() == (rows * 2).tolist()
    assert len(traces) == 2
    total([np.ones(3, np.float32), np.ones(3, np.float32)])
    assert len(traces) == 3


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64", "float64"])
def test_digits_of_every_number_type(dtype):
    limits = np.finfo(dtype) if dtype == "float64" else np.iinfo(dtype)
    number = keras.Input((2,), dtype=dtype, name="number")
    model = keras.Model(number, layers.Lambda(lambda rows: rows, dtype="float64")(number))
    rows = np.array([[limits.max, 1], [limits.min, 2**7 - 1]], dtype)
    column = Column("number", "x0", (2,), dtype)
    arrays, invalid = predict.arrays_of(
        dataclasses.replace(scorer_of(keras.Sequential([number, layers.Flatten()])), inputs=(column,)),
        (arrow_column(pd.Series(list(rows), dtype=object)),),
        0,
    )
    assert not invalid.any()
    assert arrays[0].dtype == dtype
    assert arrays[0].tobytes() == rows.tobytes()
    assert ForwardPass(model, ())(*arrays)[0].numpy().tobytes() == rows.tobytes()
