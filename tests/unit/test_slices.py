"""Gradients of embeddings: what ranks send of them, and that they compute what one process does."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from cos_ml import optimizers
from cos_ml.data.columns import Column
from cos_ml.network.keras_internals import take_module, update_rows_alone
from cos_ml.network.step import Step, install_hooks
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.shared_step import adds_up
from cos_ml.spec import TrainSpec

pytestmark = pytest.mark.once

O = keras.optimizers  # noqa: E741


class Alike:
    """Stands in for Horovod: all ranks send the same. Keeps the shape and type of each tensor that travels."""

    Sum = Average = "sum"

    def __init__(self, size):
        self.size, self.sent = size, []

    def note(self, tensor):
        self.sent.append((tuple(tensor.shape), tensor.dtype.name))

    def grouped_allgather(self, tensors, **options):
        for tensor in tensors:
            self.note(tensor)
        return [tf.concat([tensor] * self.size, axis=0) for tensor in tensors]

    def allreduce(self, tensor, **options):
        self.note(tensor)
        return tensor * self.size


@pytest.fixture
def alike():
    """A function that makes a communicator of so many ranks that send the same."""

    def make(size):
        communicator = Communicator(1)
        communicator.size, communicator._hvd = size, Alike(size)
        return communicator

    return make


def slices(indices, rows, size=2, dtype="float32"):
    indices = tf.constant(indices, "int64")
    values = tf.reshape(tf.range(len(indices) * size, dtype="float32") + 1, [-1, size])
    return tf.IndexedSlices(tf.cast(values, dtype), indices, tf.constant([rows, size], "int64"))


@pytest.mark.parametrize(
    ("size", "indices", "rows", "additive", "sent"),
    [
        (2, [7, 1, 7], 100, False, [((3,), "int32"), ((3, 2), "float32")]),  # each slice
        (2, [7, 1, 7], 100, True, [((2,), "int32"), ((2, 2), "float32")]),  # each row once
        (2, [0, 1, 2, 1], 3, True, [((3,), "int32"), ((3, 2), "float32")]),
        (3, [0, 1, 2, 1], 3, True, [((3,), "int32"), ((0, 2), "float32"), ((3, 2), "float32")]),  # dense: 2 rows less
        (3, [0, 1, 1], 3, True, [((2,), "int32"), ((2, 2), "float32")]),  # as much as dense
        (2, [], 100, True, [((0,), "int32"), ((0, 2), "float32")]),
        (2, [1], 2**31, True, [((1,), "int64"), ((1, 2), "float32")]),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_what_ranks_send(alike, size, indices, rows, additive, sent, traced):
    communicator, given = alike(size), slices(indices, rows)
    summed = communicator.sum_tensors

    def compute():
        return summed([given], "g", additive=additive)[0]

    found = tf.function(compute, autograph=False)() if traced else compute()
    if not traced:  # a trace has both branches, and no sizes
        assert communicator._hvd.sent == sent
    assert found.indices.dtype == tf.int64
    if rows < 1000:
        np.testing.assert_array_equal(tf.convert_to_tensor(found), size * tf.convert_to_tensor(given))


def test_rows_in_half(alike):
    communicator = alike(2)
    given = [slices([1, 1], 9), slices([2], 9, dtype="float16"), slices([3], 9, dtype="float64")]
    found = communicator.sum_tensors(given, "g", mean=True, compression="fp16", additive=True)
    assert [kind for _, kind in communicator._hvd.sent] == ["int32"] * 3 + ["float16"] * 3
    for one, other in zip(found, given, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(tf.convert_to_tensor(one), tf.convert_to_tensor(other))


OPTIMIZERS = [
    lambda: O.SGD(0.1),
    lambda: O.SGD(0.1, momentum=0.5, nesterov=True, weight_decay=0.1),
    lambda: O.SGD(0.1, clipnorm=0.1),
    lambda: O.SGD(0.1, global_clipnorm=0.1),
    lambda: O.SGD(0.1, clipvalue=0.1),
    lambda: O.SGD(0.1, use_ema=True),
    lambda: O.Adam(0.1, gradient_accumulation_steps=2, clipnorm=0.1),
    lambda: O.LossScaleOptimizer(O.SGD(0.1), initial_scale=4),
    lambda: O.LossScaleOptimizer(O.Adam(0.1), initial_scale=4),
    lambda: O.MultiOptimizer(O.OptimizerMap(O.Adam(0.1), {})),
    *(lambda kind=kind: kind(0.1) for kind in (
        O.Adadelta, O.Adagrad, O.Adam, O.AdamW, O.Adamax, O.Ftrl, O.Lamb, O.Lion, O.Nadam, O.RMSprop,
        optimizers.CoupledSGD, optimizers.CoupledAdam, optimizers.CoupledAdagrad, optimizers.CoupledRMSprop,
        optimizers.CoupledAdadelta,
    )),
    lambda: type("Own", (O.SGD,), {"__module__": "user"})(0.1),
]  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_slices_are_added_up_where_the_optimizer_does_the_same(make):
    """What is true of Keras's optimizers, as they are: those that square each slice train another network."""
    given = slices([2, 0, 2, 2, 2], 4)
    given = tf.IndexedSlices(given.values * [[1.0], [1.0], [-1.0], [-1.0], [-1.0]], given.indices, given.dense_shape)
    summed = tf.convert_to_tensor(given)
    forms = [given, tf.IndexedSlices(tf.gather(summed, [0, 2]), tf.constant([0, 2], "int64"), given.dense_shape),
             tf.IndexedSlices(summed, tf.range(4, dtype="int64"), given.dense_shape)]  # fmt: skip
    found = []
    for form in forms:
        optimizer, table = make(), keras.Variable(np.ones((4, 2), "float32"), trainable=True, name="table")
        optimizer.build([table])
        for _ in range(4):
            optimizer.apply([form], [table])
        found.append(table.numpy())
    same = all(np.allclose(one, found[0], atol=1e-6) for one in found)
    assert same or not adds_up(optimizer)
    if type(optimizer).__module__ != "user" and "inner_optimizer" not in vars(optimizer):
        assert adds_up(optimizer) == same


def network(seed):
    """Two tables of one size, one of them used twice."""
    keras.utils.set_random_seed(seed)
    ids, others = (keras.Input((3,), dtype="int64", name=name) for name in "ab")
    one, two = (keras.layers.Embedding(5, 2) for _ in range(2))
    flat = keras.layers.Flatten()(keras.layers.Concatenate()([one(ids), two(others), one(others)]))
    return keras.Model([ids, others], keras.layers.Dense(1)(flat))


@pytest.mark.parametrize(
    ("optimizer", "counts", "fields"),
    [
        (lambda: O.SGD(0.1, momentum=0.5), (16, 16, 8), {}),  # dense, and a rank without rows in the second step
        (lambda: O.SGD(0.1), (16, 16, 16), {"compression": "fp16"}),
        (lambda: O.Adagrad(0.1), (16, 8), {"jit_compile": True}),  # each slice by itself
    ],
)
def test_ranks_train_what_one_process_does(ranks, optimizer, counts, fields):
    random, model = np.random.default_rng(0), network(0)
    columns = {
        "inputs": tuple(Column(name, f"x{index}", (3,), "int64") for index, name in enumerate("ab")),
        "labels": (Column("label", "y0", (1,)),),
    }
    plain = {"optimizer": keras.saving.serialize_keras_object(optimizer()), "loss": "mse"}
    spec = TrainSpec(**columns | {"compile": plain, "batch_size": 8, "shuffle": False, "epochs": 2} | fields)
    parts = [
        {f"x{index}": random.integers(0, 5, (count, 3)) for index in range(2)}
        | {"y0": random.normal(size=count).astype("float32")}
        for count in counts
    ]
    (trained,) = ranks.fit([spec], [model], parts)
    model.compile(optimizer(), "mse")
    order = [np.concatenate([part[name][at : at + 8] for at in (0, 8) for part in parts]) for name in parts[0]]
    history = model.fit(order[:2], order[2], batch_size=8 * len(counts), shuffle=False, epochs=2, verbose=0).history
    worst = 5e-3 if fields.get("compression") else 2e-6
    np.testing.assert_allclose(trained.history["loss"], history["loss"], rtol=worst)
    for one, other in zip(trained.network.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=worst)


def test_a_step_does_not_read_tables_whole():
    """TensorFlow copies a table that is read whole, once rows of it were updated."""
    install_hooks()
    layer = keras.layers.Embedding(5, 2)
    layer.build()
    ids = tf.constant([[1, -1], [4, 0]])

    def operations():
        traced = tf.function(lambda ids: layer(ids), autograph=False).get_concrete_function(
            tf.TensorSpec([2, 2], "int32")
        )
        np.testing.assert_array_equal(traced(ids), layer.embeddings.numpy()[ids.numpy()])
        return {one.type for one in traced.graph.get_operations()}

    assert "ReadVariableOp" in operations()  # outside of a step all is Keras's own
    with Step().active():
        found = operations()
    assert "ResourceGather" in found
    assert "ReadVariableOp" not in found


@pytest.mark.parametrize("take", [None, lambda x, indices: x])
def test_a_take_that_is_unknown_stays(monkeypatch, take):
    module = take_module()
    monkeypatch.setattr(module, "take", take)
    assert take_module() is None


def apply(optimizer, gradient, variable):
    optimizer.apply([gradient], [variable])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_adagrad_by_rows_is_adagrad(dtype):
    """But for rounding, also with a row whose index occurs twice."""
    given, found = slices([3, 0, 3], 5, dtype=dtype), []
    for by_rows in (False, True):
        optimizer = O.Adagrad(0.1, initial_accumulator_value=0.1)
        table = keras.Variable(np.linspace(-1, 1, 10).reshape(5, 2), dtype=dtype)
        if by_rows:
            update_rows_alone(O.LossScaleOptimizer(optimizer))  # before it is built, as ranks do
        optimizer.build([table])
        step = tf.function(functools.partial(apply, optimizer, given, table), autograph=False)
        for _ in range(3):
            step()
        dense = keras.ops.convert_to_tensor(given)
        optimizer.apply([dense], [table])  # a dense one goes Keras's way
        found.append([one.numpy() for one in (table, *optimizer.variables)])
        roots = [one for one in step.get_concrete_function().graph.get_operations() if one.type == "Sqrt"]
        assert [one.outputs[0].shape[0] for one in roots] == [3 if by_rows else 5]  # rows
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3 if dtype == "float16" else 1e-6)


def test_an_unknown_adagrad_stays():
    optimizer, table = O.Adagrad(0.1), keras.Variable(np.ones((5, 2), "float32"))
    called = []
    optimizer.update_step = lambda *arguments: called.append(arguments)
    update_rows_alone(optimizer)
    optimizer.update_step(slices([1], 5), table, 0.1)  # not built: as where Keras no longer has its accumulators
    assert called
