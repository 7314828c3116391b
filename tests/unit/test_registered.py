"""Functions and classes of a user's own: found wherever they stand, and refused by name where no rank finds them."""

import json

import pytest

from cos_ml import DeepNetEstimator, callback
from cos_ml.callbacks import make
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network import untrusted
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.registered import custom_modules
from tests.support import registered as own

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers
HERE = "tests.support.registered"
THIS = __name__


def not_registered(inputs):
    return inputs


def of_the_program(kind):
    """As Python names what a program or a notebook defines."""
    kind.__module__ = "__main__"
    return keras.saving.register_keras_serializable("the_program")(kind)


@of_the_program
def of_a_notebook(inputs, extra=None):
    return inputs


def local():
    @keras.saving.register_keras_serializable("cos_ml_tests")
    def within(inputs):
        return inputs

    return within


def model_with(*made, shape=(4, 3)):
    return keras.Sequential([keras.Input(shape), *made])


STANDS = {
    "activation": lambda: layers.Dense(2, activation=own.soft),
    "activation layer": lambda: layers.Activation(own.soft),
    "initializer": lambda: layers.Dense(2, kernel_initializer=own.small),
    "constraint": lambda: layers.Dense(2, kernel_constraint=own.halved),
    "regularizer": lambda: layers.Dense(2, kernel_regularizer=own.squares),
    "class": lambda: layers.Dense(2, kernel_constraint=own.Halved()),
    "wrapped": lambda: layers.Bidirectional(layers.LSTM(2, activation=own.soft)),
    "cell": lambda: layers.RNN(layers.GRUCell(2, recurrent_activation=own.soft)),
    "nested": lambda: model_with(layers.TimeDistributed(layers.Dense(2, activation=own.soft))),
}


@pytest.mark.parametrize("name", STANDS)
def test_in_layers(name):
    network = Network.of(model_with(STANDS[name]()))
    assert network.modules == (HERE,)
    untrusted.check_archive(network.archive)


def test_in_a_compiled_model():
    model = model_with(layers.Dense(3))
    schedule = own.Stairs()
    for loss, metrics in [
        (own.squared, [own.squared]),
        ([own.squared], [[keras.metrics.MeanMetricWrapper(own.squared)]]),
        ("mse", ["mae", own.squared]),
    ]:
        model.compile(keras.optimizers.SGD(0.1), loss, metrics=metrics)
        compiled = Network.of(model).compiled
        assert custom_modules(compiled) == (HERE,)
        untrusted.check_config(json.loads(json.dumps(compiled)))
    model.compile(keras.optimizers.SGD(schedule), "mse")
    assert custom_modules(Network.of(model).compiled) == (HERE,)


@pytest.mark.parametrize("name", ["loss", "metrics", "optimizer"])
def test_in_params(name):
    value = {
        "loss": {"a": own.squared},
        "metrics": ["mae", own.squared],
        "optimizer": keras.optimizers.Adam(own.Stairs()),
    }
    plain = DeepNetEstimator(**{name: value[name]}).getOrDefault(name)
    assert custom_modules(plain) == (HERE,)


def test_in_callbacks():
    plain = json.loads(json.dumps(callback("LearningRateScheduler", schedule=own.halve)))
    assert custom_modules([plain]) == (HERE,)
    assert make(plain).schedule is own.halve
    assert custom_modules([callback("LearningRateScheduler", schedule=keras.activations.relu)]) == ()


# ── what is Keras's own ───────────────────────────────────────────────────────────────────────────────────────────────


def test_functions_of_keras_need_no_module():
    model = model_with(layers.Dense(3, activation=keras.activations.softmax))
    model.compile("sgd", keras.losses.mean_squared_error, metrics=[keras.metrics.mean_absolute_error])
    network = Network.of(model)
    assert network.modules == custom_modules(network.compiled) == ()
    estimator = DeepNetEstimator(loss=keras.losses.mean_squared_error, metrics=[keras.metrics.mean_absolute_error])
    assert (estimator.getLoss(), estimator.getMetrics()) == ("mean_squared_error", ["mean_absolute_error"])


def test_a_compiled_loss_keeps_its_arguments():
    """Keras 3.15 leaves out Huber's delta."""
    model = model_with(layers.Dense(3, name="a"))
    for loss in (keras.losses.Huber(0.1), [keras.losses.Huber(0.1)], {"a": keras.losses.Huber(0.1)}):
        model.compile("sgd", loss)
        assert '"delta": 0.1' in json.dumps(Network.of(model).compiled["loss"])


# ── what no rank finds ────────────────────────────────────────────────────────────────────────────────────────────────

LOST = {
    "the program": (
        of_a_notebook,
        "of_a_notebook is defined in the program or notebook itself.*module that is installed",
    ),
    "not registered": (
        not_registered,
        r"the function not_registered is not registered.*register_keras_serializable\(\)",
    ),
    "within a function": (local(), "within is defined within a function"),
    "lambda": (lambda epoch, rate: rate, "a lambda is Python code"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_no_rank_finds_is_refused_at_the_call(name):
    function, message = LOST[name]
    calls = [
        lambda: callback("LearningRateScheduler", schedule=function),
        lambda: DeepNetEstimator(loss=function),
        lambda: DeepNetEstimator(metrics=["mae", function]),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=rf"Param (loss|metrics|callbacks): (?s:.*){message}") as error:
            call()
        assert len(str(error.value).splitlines()) <= 8


@pytest.mark.parametrize("name", ["the program", "not registered", "within a function"])
def test_a_layer_with_what_no_rank_finds(name):
    function, message = LOST[name]
    for layer in (layers.Dense(2, activation=function), layers.TimeDistributed(layers.Dense(2, activation=function))):
        with pytest.raises(InvalidInputError, match=f"Param model: {message}"):
            Network.of(model_with(layer))


def test_a_class_of_the_program():
    kind = type("OfTheProgram", (keras.constraints.NonNeg,), {})
    for one in (kind, of_the_program(kind)):
        one.__module__ = "__main__"
        with pytest.raises(InvalidInputError, match="Param model: OfTheProgram is defined in the program"):
            Network.of(model_with(layers.Dense(2, kernel_constraint=one())))


def test_a_function_that_is_not_registered_here():
    plain = {"module": "builtins", "class_name": "function", "config": "elsewhere>one", "registered_name": "function"}
    with pytest.raises(InvalidInputError, match=r"elsewhere>one is not registered in this program: import the module"):
        custom_modules({"loss": plain})
    assert custom_modules(plain | {"module": "elsewhere", "registered_name": "elsewhere>one"}) == ("elsewhere",)


def test_arguments_of_callbacks_that_would_change():
    with pytest.raises(
        InvalidInputError, match=r"ReduceLROnPlateau with .*keys of a dict have to be strings, received \[3\]"
    ):
        callback("ReduceLROnPlateau", monitor={3: "loss"})
    with pytest.raises(InvalidInputError, match=r"ReduceLROnPlateau with .*Cannot serialize"):
        callback("ReduceLROnPlateau", monitor={1, 2})


@pytest.mark.parametrize("name", ["system", "eval", "os>system", "get_file"])
def test_functions_of_others_in_a_file(name):
    """Keras finds registered functions and its own, and nothing else, by their names."""
    plain = {"module": "builtins", "class_name": "function", "config": name, "registered_name": "function"}
    with pytest.raises(InvalidInputError, match="not registered"):
        custom_modules(plain)
    with pytest.raises(SavedModelError, match="names os"):
        untrusted.check_config({"loss": plain | {"module": "os", "registered_name": name}})
