"""Embedding bags: their arithmetic, the columns that fill them, and ranks that train them. Without Spark."""

import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from cos_ml.data.columns import Column, decode
from cos_ml.data.spool import usable_rows
from cos_ml.errors import InvalidInputError
from cos_ml.layers import EmbeddingBag, sparse_inputs
from cos_ml.network.archive import Network
from cos_ml.network.signature import input_columns
from cos_ml.network.structure import paired_inputs
from cos_ml.spec import TrainSpec
from tests.support.reference import assert_same_weights

pytestmark = pytest.mark.once

SIZE, LENGTHS = 30, np.array([5, 3, 0, 1, 2, 4, 5, 5])


def rows(seed=0):
    """Indices and values that are padded with -1 and NaN, which nobody may use."""
    random = np.random.default_rng(seed)
    indices = random.integers(0, SIZE, (8, 5)).astype(np.int32)
    values = random.uniform(-0.5, 2, (8, 5)).astype(np.float32)
    padding = np.arange(5) >= LENGTHS[:, None]
    return np.where(padding, -1, indices), np.where(padding, np.nan, values)


def network(**options):
    keras.utils.set_random_seed(5)
    inputs = sparse_inputs("words")
    bag = EmbeddingBag(SIZE, 3, embeddings_initializer="normal", name="bag", **options)(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(bag))


def combined(table, indices, values, combiner):
    """What a bag computes, row by row."""
    found = np.zeros((len(indices), table.shape[1]))
    for row, length in enumerate(LENGTHS):
        weights = values[row, :length].astype(np.float64)
        divisor = {"sum": 1, "mean": weights.sum(), "sqrtn": np.sqrt(np.square(weights).sum())}[combiner]
        if length:
            found[row] = weights @ table[indices[row, :length]] / divisor
    return found


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
def test_a_bag_is_a_weighted_sum_or_mean(combiner, policy):
    indices, values = rows()
    values = values * 500  # their squares are too large for float16
    bag = EmbeddingBag(SIZE, 3, combiner=combiner, dtype=policy)
    for given in ([tf.constant(indices), tf.constant(values)], tf.constant(indices)):
        weights = tf.constant(np.ones_like(values))
        if isinstance(given, list):
            weights = given[1]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            found = bag([given[0], weights] if isinstance(given, list) else given)
        assert found.dtype == bag.compute_dtype
        expected = combined(bag.embeddings.numpy(), indices, weights.numpy(), combiner)
        close = {"rtol": 1e-5, "atol": 1e-6} if policy == "float32" else {"rtol": 0.01, "atol": 0.05}
        np.testing.assert_allclose(found, expected, **close)
        table, by_value = tape.gradient(found, [bag.embeddings.value, weights])
        assert isinstance(table, tf.IndexedSlices)
        assert by_value is None or np.isfinite(by_value).all()


def test_the_index_0_is_padding_with_mask_zero_and_a_mask_marks_entries():
    bag = EmbeddingBag(4, 2, mask_zero=True)
    table = bag(tf.constant([[1, 2]])).numpy() * 0 + bag.embeddings.numpy()[[1]]
    np.testing.assert_allclose(bag(tf.constant([[0, 1, 0]])), table, rtol=1e-6)
    masked = EmbeddingBag(4, 2)
    found = masked(tf.constant([[1, 2]]), mask=tf.constant([[True, False]]))
    np.testing.assert_allclose(found, masked.embeddings.numpy()[[1]], rtol=1e-6)
    inputs = keras.Input((None,), dtype="int32")
    assert getattr(masked(inputs), "_keras_mask", None) is None


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: EmbeddingBag(4, 2, combiner="max"), "combiner is one of"),
        (lambda: EmbeddingBag(4, 2)(keras.Input((3,), dtype="uint8")), "signed type"),
        (lambda: EmbeddingBag(4, 2)([keras.Input((3,)), keras.Input(())]), "same shape"),
        (lambda: EmbeddingBag(4, 2)([keras.Input((3,))] * 3), "same shape"),
    ],
)
def test_what_a_bag_does_not_take(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_saved_bag_needs_no_import(tmp_path):
    model = network(combiner="sqrtn", embeddings_regularizer="l2")
    (tmp_path / "net.keras").write_bytes(Network.of(model).archive)
    program = "import sys; from pathlib import Path; from cos_ml.network.archive import load_model; "
    program += "print(load_model(Path(sys.argv[1]).read_bytes()).get_layer('bag').get_config())"
    command = [sys.executable, "-c", program, str(tmp_path / "net.keras")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(model.get_layer("bag").get_config())


@pytest.mark.parametrize("counts", [(8,), (5, 3)], ids=["1 rank", "2 ranks"])
def test_ranks_train_bags_as_keras_does(ranks, counts):
    indices, values = rows()
    labels = np.arange(8) % 2
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    columns = [{"x0": indices[part], "x1": np.nan_to_num(values[part]), "y0": labels[part]} for part in parts]
    models = [network(), network(combiner="mean"), network(combiner="sqrtn")]
    compiled = {"optimizer": keras.optimizers.serialize(keras.optimizers.SGD(0.5)),
                "loss": "sparse_categorical_crossentropy", "metrics": []}  # fmt: skip
    inputs = input_columns(Network.of(models[0]), ["words"])
    spec = TrainSpec(inputs, (Column("label", "y0", classes=2),), compile=compiled, shuffle=False, batch_size=8,
                     epochs=3, modules=("cos_ml.layers",))  # fmt: skip
    trained = ranks.fit([replace(spec, network=index) for index in range(3)], models, columns)
    for model, one in zip(models, trained, strict=True):
        model.compile(keras.optimizers.SGD(0.5), compiled["loss"])
        model.fit([indices, np.nan_to_num(values)], labels, batch_size=8, epochs=3, shuffle=False, verbose=0)
        assert_same_weights(one.network, model)


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def three_inputs():
    words, tags, price = sparse_inputs("words"), sparse_inputs("tags"), keras.Input((2,), name="price")
    both = keras.layers.Concatenate()([EmbeddingBag(30, 2)(words), EmbeddingBag(9, 2)(tags), price])
    return Network.of(keras.Model([tags[1], words[0], price, words[1], tags[0]], keras.layers.Dense(1)(both)))


@pytest.mark.parametrize(
    "names",
    [
        ["words", "price", "tags"],
        ["words.indices", "words.values", "tags.indices", "tags.values", "price"],
        ["words_indices", "tags_indices", "words_values", "price", "tags_values"],
    ],
)
def test_columns_find_their_inputs(names):
    found = [column.name.replace(".", "_") for column in input_columns(three_inputs(), names)]
    assert found == ["tags_values", "words_indices", "price", "words_values", "tags_indices"]


def test_columns_of_other_names_come_in_the_order_of_the_inputs():
    columns = input_columns(three_inputs(), ["a", "b", "c"])
    assert [column.name for column in columns] == ["a.values", "b.indices", "c", "b.values", "a.indices"]
    assert [column.below for column in columns] == [None, 30, None, None, 9]
    assert [column.padding for column in columns] == [0, -1, 0, 0, -1]


def test_a_column_too_many_is_named():
    with pytest.raises(InvalidInputError, match=r"'words_indices'.*received \['a', 'b'\]"):
        input_columns(three_inputs(), ["a", "b"])


def test_indices_are_checked_and_may_be_padding():
    column = Column("words.indices", "x0", (None,), "int32", below=9, padding=-1.0, paired="x1")
    found, errors = decode(pa.array([[0, 8, -1], [], [3, 9], [-2]], pa.list_(pa.int32())), column)
    assert [(error.row, error.what.split(";")[0]) for error in errors] == [(2, "is 9"), (3, "is -2")]
    assert found.padded().tolist() == [[0, 8, -1], [-1, -1, -1], [0, 0, -1], [0, -1, -1]]


@pytest.mark.parametrize("handling", ["error", "skip", "keep"])
def test_rows_have_as_many_values_as_indices(handling):
    inputs = sparse_inputs("words")
    network = Network.of(keras.Model(inputs, EmbeddingBag(9, 1)(inputs)))
    spec = TrainSpec(input_columns(network, ["words_values", "words_indices"]), (), handle_invalid=handling)
    given = {
        "x0": pa.array([[0, 8], [1, 2, 3], [], None, [5, 99], [4]], pa.list_(pa.int32())),
        "x1": pa.array([[1, 2], [1, 2], [], [1, 2], [1, 2, 3], [4]], pa.list_(pa.float32())),
    }
    batch = pa.RecordBatch.from_pydict(given)
    if handling == "error":
        with pytest.raises(InvalidInputError, match=r"'words_indices', row 13: is null"):
            usable_rows(batch, spec, 10)
        message = r"'words_values', row 10: has 2 numbers, but column 'words_indices' has 3; expected equally many"
        with pytest.raises(InvalidInputError, match=message):
            usable_rows(batch[1:3], spec, 10)
        return
    arrays, kept = usable_rows(batch, spec, 10)
    assert kept.tolist() == [handling == "keep" or row in (0, 2, 5) for row in range(6)]
    assert arrays["x0"].padded().tolist() == [[0, 8], [0, -1], [-1, -1], [0, -1], [0, -1], [4, -1]]
    nan = np.nan
    np.testing.assert_array_equal(arrays["x1"].padded(), [[1, 2], [nan, 0], [0, 0], [nan, 0], [nan, 0], [4, 0]])


def test_only_inputs_that_hold_the_same_entries_are_as_long():
    inputs = [keras.Input((None,)), keras.Input((None, 1)), keras.Input((None, 2))]
    network = Network.of(keras.Model(inputs, [keras.layers.Identity()(one) for one in inputs]))
    names = ["s.Indices", "s.values", "t.values"], ["s.indices", "t.values", "s.values"]
    assert [[column.paired for column in input_columns(network, one)] for one in names] == [["x1", "x0", ""], [""] * 3]


def test_inputs_of_free_names_that_an_embedding_bag_takes_together_are_as_long():
    ids, weights, other = keras.Input((None,), dtype="int32"), keras.Input((None,)), keras.Input((None,))
    bag = keras.Model([weights, ids], EmbeddingBag(9, 2)([ids, weights]))  # of another order
    nested = keras.Model([ids, other, weights], [bag([weights, ids]), keras.layers.Identity()(other)])
    for model, expected in ((bag, ["x1", "x0"]), (nested, ["x2", "", "x0"])):
        network = Network.of(model)
        network = Network.from_facts(network.facts(), network.archive)
        columns = input_columns(network, ["a", "b", "c"][: len(expected)])
        assert [column.paired for column in columns] == expected


def test_inputs_that_a_layer_of_the_users_takes_may_differ_in_length():
    class Other(EmbeddingBag):
        def call(self, inputs, mask=None):
            return super().call(inputs[0]) + keras.ops.sum(inputs[1], axis=-1, keepdims=True)

    inputs = [keras.Input((None,), dtype="int32"), keras.Input((None,))]
    assert paired_inputs(keras.Model(inputs, EmbeddingBag(9, 2)(inputs))) == {0: 1}
    assert paired_inputs(keras.Model(inputs, Other(9, 2)(inputs))) == {}


def test_a_row_of_a_million_takes_what_its_entries_take(spool):
    indices = pa.array([[5, 2**20 - 1, 7]] * 1000, pa.list_(pa.int32()))
    values = pa.array([[1.0, 2.0, 3.0]] * 1000, pa.list_(pa.float32()))
    inputs = sparse_inputs("words")
    network = Network.of(keras.Model(inputs, EmbeddingBag(2**20, 1)(inputs)))
    filled = spool(TrainSpec(input_columns(network, ["words"]), ()), {"x0": indices, "x1": values})
    assert sum(file.tell() for file in filled.files["train"].values()) < 50 * 1000
