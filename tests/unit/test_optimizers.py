"""cos_ml's optimizers against Caffe's arithmetic in NumPy; learning rates of single layers. Ranks without Spark."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from cos_ml import optimizers
from cos_ml.data.columns import Column
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network
from cos_ml.network.policies import training_settings
from cos_ml.network.rates import checked_rates, scale_rates
from cos_ml.spec import TrainSpec
from tests.support import reference
from tests.support.caffe_solvers import CaffeSolver
from tests.support.reference import assert_same_weights, split

pytestmark = pytest.mark.once

INPUTS, LABELS = (Column("features", "x0", (12,)),), (Column("label", "y0", classes=3),)
SCHEDULES = keras.optimizers.schedules
DECAY = {"l2": 0.01, "decay_multipliers": {"hidden/bias": 0.0, "out": 0.5}}
CAFFE = {"weight_decay": 0.01, "decay_mults": (1, 0, 0.5, 0.5)}
RATES = {"hidden": 0.5, "hidden/bias": 2.0, "out/bias": 0.0}
MULTS = (0.5, 2, 1, 0)


def fixed(rate):
    return lambda iteration: rate


# Optimizer and its oracle; fields of the spec.
CASES = {
    "SGD": (
        lambda: optimizers.CoupledSGD(0.1, momentum=0.9, **DECAY),
        lambda: CaffeSolver("SGD", fixed(0.1), momentum=0.9, **CAFFE), {},
    ),
    "Nesterov, L1": (
        lambda: optimizers.CoupledSGD(0.05, momentum=0.9, nesterov=True, l1=0.002),
        lambda: CaffeSolver("Nesterov", fixed(0.05), momentum=0.9, weight_decay=0.002, norm="L1"), {},
    ),
    "AdaGrad": (
        lambda: optimizers.CoupledAdagrad(0.05, epsilon=1e-4, **DECAY),
        lambda: CaffeSolver("AdaGrad", fixed(0.05), delta=1e-4, **CAFFE), {},
    ),
    "RMSProp": (
        lambda: optimizers.CoupledRMSprop(0.01, rho=0.9, epsilon=1e-4, **DECAY),
        lambda: CaffeSolver("RMSProp", fixed(0.01), rms_decay=0.9, delta=1e-4, **CAFFE), {},
    ),
    "AdaDelta": (
        lambda: optimizers.CoupledAdadelta(1.0, rho=0.95, epsilon=1e-6, **DECAY),
        lambda: CaffeSolver("AdaDelta", fixed(1.0), momentum=0.95, delta=1e-6, **CAFFE), {},
    ),
    "Adam, accumulated": (
        lambda: optimizers.CoupledAdam(0.01, beta_2=0.99, epsilon=1e-6, global_clipnorm=0.2, **DECAY),
        lambda: CaffeSolver(
            "Adam", fixed(0.01), momentum=0.9, momentum2=0.99, delta=1e-6, iter_size=2, clip=0.4, **CAFFE
        ), {"accumulation": 2},
    ),
    "rates, clipped, a schedule by updates": (
        lambda: optimizers.CoupledSGD(
            optimizers.UpdateSchedule(optimizers.InverseDecay(0.1, 0.1, 0.75), 2), momentum=0.9, global_clipnorm=0.1,
            **DECAY,
        ),
        lambda: CaffeSolver(
            "SGD", lambda i: 0.1 * (1 + 0.1 * i) ** -0.75, lr_mults=MULTS, momentum=0.9, iter_size=2, clip=0.2, **CAFFE
        ), {"accumulation": 2, "layer_rates": RATES},
    ),
    "rates of Keras's own": (
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: CaffeSolver("SGD", fixed(0.1), lr_mults=MULTS, momentum=0.9), {"layer_rates": RATES},
    ),
    "rates beside XLA": (
        lambda: optimizers.CoupledAdagrad(0.05, epsilon=1e-4, **DECAY),
        lambda: CaffeSolver("AdaGrad", fixed(0.05), lr_mults=MULTS, delta=1e-4, **CAFFE),
        {"layer_rates": RATES, "jit_compile": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "sizes", [pytest.param((320,), id="1 rank", marks=pytest.mark.more), pytest.param((160, 160), id="2 ranks")]
)
def test_ranks_compute_caffes_rules(ranks, sizes):
    parts = split(reference.data(320), *sizes)
    size = 16 // len(sizes)
    specs = []
    for make, _, fields in CASES.values():
        compiled = {
            "optimizer": keras.optimizers.serialize(make()), "loss": "sparse_categorical_crossentropy", "metrics": [],
        }  # fmt: skip
        specs.append(TrainSpec(INPUTS, LABELS, compile=compiled, shuffle=False, batch_size=size,
                               modules=("cos_ml.optimizers",), **fields))  # fmt: skip
    columns = [{"x0": features, "y0": labels} for features, labels, _ in parts]
    trained = ranks.fit(specs, [reference.network()], columns)
    for name, (_, oracle, _), one in zip(CASES, CASES.values(), trained, strict=True):
        expected = reference.network()
        reference.train(expected, parts, size, 1, oracle())
        worst = max(np.abs(a - b).max() for a, b in zip(one.network.get_weights(), expected.get_weights(), strict=True))
        assert worst < 1e-5, (name, worst)
        assert all(weight.trainable for weight in one.network.weights), name


@pytest.mark.parametrize("name", ["SGD", "Nesterov, L1", "AdaGrad", "RMSProp", "AdaDelta"])
def test_an_optimizer_is_the_same_after_a_configuration(name):
    make, oracle, _ = CASES[name]
    optimizer = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(make()))
    model, expected = reference.network(), reference.network()
    reference.train(model, [reference.data(100)], 5, 1, optimizer)
    reference.train(expected, [reference.data(100)], 5, 1, oracle())
    assert_same_weights(model, expected)


def test_an_embedding_decays_as_a_whole():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 3, name="words")])
    (weight,) = model.trainable_variables
    for kind, optimizer in (
        ("SGD", optimizers.CoupledSGD(0.1, momentum=0.5, l2=0.1)),
        ("AdaGrad", optimizers.CoupledAdagrad(0.1, l2=0.1)),
        ("AdaGrad", optimizers.CoupledAdagrad(0.1)),
    ):
        decay = 0.1 if optimizer.l2 else 0.0
        oracle = CaffeSolver(kind, fixed(0.1), momentum=0.5 if kind == "SGD" else 0, weight_decay=decay)
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(np.array([[1, 3], [1, 0]])) ** 2)
            (gradient,) = tape.gradient(loss, [weight])
            assert isinstance(gradient, tf.IndexedSlices)
            value = weight.numpy().astype(np.float64)
            (expected,) = oracle.updated([tf.convert_to_tensor(gradient).numpy().astype(np.float64)], [value], 0)
            optimizer.apply([gradient], [weight])
            np.testing.assert_allclose(weight.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        (optimizers.InverseDecay(0.1, 0.01, 0.75), lambda i: 0.1 * (1 + 0.01 * i) ** -0.75),
        (optimizers.SigmoidDecay(0.1, -0.05, 40), lambda i: 0.1 / (1 + np.exp(0.05 * (i - 40)))),
        (optimizers.UpdateSchedule(SCHEDULES.ExponentialDecay(0.1, 1, 0.9), 3), lambda i: 0.1 * 0.9 ** (i // 3)),
    ],
)
def test_schedules(schedule, rate):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    for step in (0, 1, 2, 3, 39, 40, 41, 1000):
        np.testing.assert_allclose(float(again(step)), rate(step), rtol=1e-5)


KERAS = [
    keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1), keras.optimizers.AdamW(0.01, weight_decay=0.1),
    keras.optimizers.RMSprop(0.01), keras.optimizers.Adagrad(0.1), keras.optimizers.Lion(0.01, weight_decay=0.1),
    keras.optimizers.Nadam(0.01), keras.optimizers.Ftrl(0.1), keras.optimizers.Lamb(0.01), keras.optimizers.Adamax(),
    keras.optimizers.Adafactor(), keras.optimizers.Adadelta(1.0), keras.optimizers.Muon(0.01, adam_weight_decay=0.1),
    keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01, weight_decay=0.1), initial_scale=1.0),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", KERAS, ids=lambda one: type(one).__name__)
def test_a_factor_is_an_optimizer_of_its_own(optimizer):
    plain = keras.saving.serialize_keras_object(optimizer)
    made = [keras.saving.deserialize_keras_object(copy.deepcopy(plain)) for _ in range(3)]
    slow = getattr(made[1], "inner_optimizer", made[1])
    slow.learning_rate = float(slow.learning_rate.numpy()) * 0.25
    together, apart = reference.network(), reference.network()
    scale_rates([made[0]], together, {"out": 0.25})
    rng = np.random.default_rng(0)
    for _ in range(4):
        gradients = [rng.normal(size=one.shape).astype(np.float32) for one in together.trainable_variables]
        made[0].apply(gradients, together.trainable_variables)
        made[2].apply(gradients[:2], apart.trainable_variables[:2])
        made[1].apply(gradients[2:], apart.trainable_variables[2:])
    assert_same_weights(together, apart, 1e-6)


def nested():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(3, name="b")],
                             name="body")  # fmt: skip
    return keras.Sequential([keras.Input((4,)), inner, keras.layers.BatchNormalization(name="norm"),
                             keras.layers.ReLU(name="relu"), keras.layers.Dense(2, name="head")])  # fmt: skip


def test_the_innermost_name_applies():
    rates = checked_rates(Network.of(nested()), {"a/bias": 3.0, "a": 2.0, "body": 0.0, "norm/gamma": 0.0}, (), {})
    assert list(rates) == ["body", "body/a", "norm/gamma", "body/a/bias"]
    model = nested()
    with training_settings(model, None, (), rates):
        frozen = [one.path.split("/")[-2:] for one in model.variables if not one.trainable]
        assert [name for name in frozen if name[0] != "norm"] == [["b", "kernel"], ["b", "bias"]]
        assert ["norm", "gamma"] in frozen
        assert ["norm", "beta"] not in frozen
    assert sum(one.trainable for one in model.variables) == len(model.trainable_weights) == 8


def test_caffes_spelling_of_layers():
    names = ("inception_3a_1x1", "pool_5", "pool_5_bias")
    network = Network.of(keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in names)]))
    rates = checked_rates(network, {"inception_3a/1x1": 2.0, "inception_3a/1x1/bias": 3.0, "pool_5/bias": 4.0}, (), {})
    assert rates == {"inception_3a_1x1": 2.0, "inception_3a_1x1/bias": 3.0, "pool_5/bias": 4.0}


class Whole(keras.optimizers.Optimizer):
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        pass


@pytest.mark.parametrize(
    ("rates", "frozen", "optimizer", "match"),
    [
        ({"missing": 1.0}, (), None, r"layerLearningRates: the network has no layer 'missing'\. It has \['body'"),
        ({"head/gamma": 1.0}, (), None, r"layer 'head' has no weight 'gamma'\. It has \['bias', 'kernel'\]"),
        ({"relu": 1.0}, (), None, "'relu' has no trainable weights"),
        ({"norm/moving_mean": 1.0}, (), None, "'norm/moving_mean' has no trainable weights"),
        ({"a": 1.0, "body/a": 2.0}, (), None, "stand for 'body/a'"),
        ({"head": 2.0}, ("head",), None, "head.* frozenLayers freezes it"),
        ({"body": 0.0, "norm": 0.0}, ("head",), None, "nothing to train"),
        ({"head": 2.0}, (), keras.optimizers.MultiOptimizer, "MultiOptimizer"),
        ({}, (), optimizers.CoupledSGD(0.1, decay_multipliers={"hed": 0.0}), "decay_multipliers.*no layer 'hed'"),
    ],
)
def test_what_has_no_rate_of_its_own_is_refused(rates, frozen, optimizer, match):
    if optimizer is keras.optimizers.MultiOptimizer:
        optimizer = optimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD()))
    plain = keras.saving.serialize_keras_object(optimizer) if optimizer else "sgd"
    with pytest.raises(InvalidInputError, match=match):
        checked_rates(Network.of(nested()), rates, frozen, {"optimizer": plain})
