"""What happens where Keras no longer has what is not its public API."""

import pytest

from cos_ml.network import keras_internals
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


@pytest.fixture
def without(monkeypatch):
    """A function that makes an attribute of a class vanish, as a newer Keras might."""

    def vanish(owner, name):
        class Gone:
            def __get__(self, *_):
                raise AttributeError(name)

            def __set__(self, *_):
                raise AttributeError(name)

        monkeypatch.setattr(owner, name, Gone(), raising=False)

    return vanish


def test_no_history_means_no_known_activation(classifier, without):
    assert keras_internals.producer(classifier.outputs[0]) is classifier.layers[-1]
    without(keras.KerasTensor, "_keras_history")
    assert keras_internals.producer(classifier.outputs[0]) is None


def test_an_output_without_a_known_layer(classifier, monkeypatch):
    monkeypatch.setattr("cos_ml.network.archive.producer", lambda _: None)
    (output,) = Network.of(classifier).outputs
    assert (output.shape, output.dtype, output.activation) == ((3,), "float32", None)


def test_all_layers(without):
    inner = keras.Sequential([keras.Input((4, 2)), layers.LSTM(3, name="lstm")], name="inner")
    model = keras.Sequential([keras.Input((4, 2)), inner, layers.Dense(1, name="dense")], name="model")
    cell = inner.get_layer("lstm").cell
    assert {model, inner, cell, model.get_layer("dense")} <= set(keras_internals.all_layers(model))
    without(layers.Layer, "_flatten_layers")
    found = [layer.name for layer in keras_internals.all_layers(model)]
    assert found == ["model", "inner", "lstm", "dense"]  # no cell


def test_loss_arguments():
    assert keras_internals.loss_arguments(keras.losses.Huber(delta=2.0))["delta"] == 2
    assert keras_internals.loss_arguments(object()) == {}


@pytest.mark.parametrize("name", ["compiled", "optimizer"])
def test_a_model_that_stays_compiled(classifier, numbers, without, name):
    classifier.compile("adam", "mse")
    classifier.fit(numbers(8, 4), numbers(8, 3), verbose=0)
    optimizer = classifier.optimizer
    value = getattr(classifier, name)
    read_only = property(lambda _: value)
    classifier.__class__ = type("Model", (type(classifier),), {name: read_only, "__module__": "keras"})
    with keras_internals.uncompiled(classifier):
        assert getattr(classifier, name) is value
    assert classifier.compiled
    assert classifier.optimizer is optimizer


@pytest.mark.parametrize("arguments", ["gone", "values, sample_weight=None"])
def test_another_reduction_of_losses_is_an_error_that_names_the_version(monkeypatch, arguments):
    module = keras_internals.loss_module()
    if arguments == "gone":
        monkeypatch.delattr(module, "reduce_weighted_values")
    else:
        monkeypatch.setattr(module, "reduce_weighted_values", lambda values, sample_weight=None: values)
    with pytest.raises(RuntimeError, match=r"reduces losses in another way than Keras 3\.15"):
        keras_internals.loss_module()


def test_nothing_is_excluded_from_decay_where_that_is_unknown(without):
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert keras_internals.excluded_from_decay(optimizer, []) == (["bias"], [], 0)
    del optimizer._exclude_from_weight_decay_pattern, optimizer._exclude_from_weight_decay
    without(type(optimizer), "_var_key")
    assert keras_internals.excluded_from_decay(optimizer, [keras.Variable(1.0)]) == ([], [], 0)


def test_the_mask_of_a_tensor():
    rows = keras.layers.Embedding(9, 3, mask_zero=True)(keras.Input((5,)))
    assert keras_internals.mask_of(rows).shape == (None, 5)
    assert keras_internals.mask_of(keras.Input((5,))) is None
    del rows._keras_mask
    assert keras_internals.mask_of(rows) is None  # as where Keras no longer has it


def test_the_tensors_of_each_call():
    one, other, table = keras.Input((2,)), keras.Input((2,)), layers.Embedding(4, 2)
    assert keras_internals.inputs_of_calls(table) == []
    table(one), table(other)
    assert [[id(tensor)] for tensor in (one, other)] == [
        [*map(id, call)] for call in keras_internals.inputs_of_calls(table)
    ]
    assert keras_internals.inputs_of_calls(object()) == []  # as where Keras no longer has them
