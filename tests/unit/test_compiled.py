"""What Keras leaves out of an optimizer's configuration, through JSON and back."""

import json
import subprocess
import sys

import pytest

from cos_ml import DeepNetEstimator
from cos_ml.errors import InvalidInputError
from cos_ml.network import untrusted
from cos_ml.network.archive import Network, load_model
from cos_ml.network.compiled import optimizer_from
from cos_ml.network.keras_import import import_keras

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


def model():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a"), layers.Dense(2, name="b")])


def excluding(**names):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(**names)
    return optimizer


def changed(optimizer, net):
    """The variables that decay, when no gradient changes them."""
    for variable in net.variables:
        variable.assign(keras.ops.ones(variable.shape))
    optimizer.build(net.trainable_variables)
    optimizer.apply([keras.ops.zeros(one.shape) for one in net.trainable_variables])
    return [float(keras.ops.max(one)) < 1 for one in net.variables]


@pytest.mark.parametrize(
    ("names", "decay"),
    [
        (["bias"], [True, False, True, False]),
        (["kernel", "bias"], [False] * 4),
        (["k.*l"], [False, True, False, True]),
        (["(k|b)i"], [True, False, True, False]),
    ],
)
def test_names_that_the_param_excludes(names, decay):
    plain = json.loads(json.dumps(DeepNetEstimator(optimizer=excluding(var_names=names)).getOptimizer()))
    untrusted.check_config({"optimizer": plain})
    assert DeepNetEstimator(optimizer=plain).getOptimizer() == plain
    net = model()
    assert changed(optimizer_from(plain, net), net) == decay == changed(excluding(var_names=names), model())


def test_optimizers_that_exclude_nothing_are_as_keras_has_them():
    optimizer = keras.optimizers.AdamW(0.01)
    assert DeepNetEstimator(optimizer=optimizer).getOptimizer() == keras.saving.serialize_keras_object(optimizer)
    assert type(optimizer_from("sgd", model())) is keras.optimizers.SGD


def test_an_optimizer_within_another():
    scaled = keras.optimizers.LossScaleOptimizer(excluding(var_names=["bias"]))
    net = model()
    again = optimizer_from(DeepNetEstimator(optimizer=scaled).getOptimizer(), net)
    assert isinstance(again, keras.optimizers.LossScaleOptimizer)
    assert changed(again.inner_optimizer, net) == [True, False, True, False]


def test_variables_that_a_compiled_model_excludes():
    net = model()
    net.compile(excluding(var_list=[net.layers[1].kernel], var_names=["bias"]), "mse")
    network = Network.of(net)
    loaded = load_model(network.archive)
    optimizer = optimizer_from(json.loads(json.dumps(network.compiled["optimizer"])), loaded)
    assert changed(optimizer, loaded) == [True, False, False, False]


def test_variables_of_a_layer_that_keras_loads_in_another_order():
    net = model()
    net.layers[0].quantize("float8")
    net.compile(excluding(var_list=[net.layers[0].kernel]), "mse")
    network = Network.of(net)
    loaded = load_model(network.archive)
    (index,) = network.compiled["optimizer"]["exclude_from_weight_decay"]["variables"]
    assert loaded.variables[index] is loaded.layers[0].kernel is not loaded.variables[0]


def test_variables_that_nobody_knows_are_an_error():
    with pytest.raises(
        InvalidInputError, match=r"Param optimizer: exclude_from_weight_decay\(var_list=\.\.\.\) has 1 var"
    ):
        DeepNetEstimator(optimizer=excluding(var_list=[model().layers[0].kernel]))
    net = model()
    net.compile(excluding(var_list=[model().layers[0].kernel]), "mse")
    with pytest.raises(InvalidInputError, match=r"var_names=\[\.\.\.\]"):
        Network.of(net)


def test_the_same_in_every_process():
    """Keras joins the names in the order of a set, and a fit resumes only where its Params are the same."""
    program = (
        "from cos_ml import DeepNetEstimator\n"
        "import keras\n"
        "optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)\n"
        "optimizer.exclude_from_weight_decay(var_names=['gamma', 'beta', 'bias', 'norm'])\n"
        "print(DeepNetEstimator(optimizer=optimizer).getOptimizer()['exclude_from_weight_decay'])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert printed.splitlines()[-1] == str({"names": ["beta", "bias", "gamma", "norm"], "variables": []})


def test_a_serialized_optimizer_stays_plain_data():
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    plain = keras.saving.serialize_keras_object(keras.optimizers.SGD(rate))
    before = json.dumps(plain)
    assert optimizer_from(plain, None).learning_rate is not None
    assert json.dumps(plain) == before  # Keras alone would have put the schedule itself into it
