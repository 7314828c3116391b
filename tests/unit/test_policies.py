"""What a training changes in a network, and that all of it is undone."""

import numpy as np
import pytest

from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.policies import layers_under_policy, training_settings

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


def policies(network):
    return {layer.name: layer.dtype_policy.name for layer in all_layers(network)}


def test_a_policy_applies_to_layers_within_layers_and_is_restored():
    rows = keras.Input((4, 3))
    inner = layers.LSTM(5)(rows), layers.MultiHeadAttention(2, 3)(rows, rows)
    network = keras.Model(rows, [*inner, layers.TimeDistributed(layers.Dense(2))(rows)])
    before = policies(network)
    with training_settings(network, "mixed_float16", ()):
        assert {name for name, policy in policies(network).items() if policy == "float32"} == {network.layers[0].name}
        assert policies(network)["lstm_cell"] == "mixed_float16"
    assert policies(network) == before


@pytest.mark.parametrize(
    "own",
    [
        lambda: layers.Dense(2, dtype="float64"),
        lambda: layers.TimeDistributed(layers.Dense(2, dtype="float64")),
        lambda: layers.ConvLSTM1D(2, 2, dtype="float64"),
        lambda: layers.Normalization(mean=2.0, variance=3.0, name="own"),
        lambda: layers.Rescaling(0.5, name="own"),
        lambda: layers.RandomFlip(name="own"),
    ],
)
def test_what_has_a_type_of_its_own_keeps_it(own):
    kept = own()
    network = keras.Sequential([keras.Input((4, 4, 1)), kept, layers.Flatten(name="usual")])
    before = {name: policy for name, policy in policies(network).items() if name.startswith("own") or "64" in policy}
    with training_settings(network, "mixed_bfloat16", ()):
        assert policies(network) == policies(network) | before
        assert policies(network)["usual"] == "mixed_bfloat16"


@pytest.mark.parametrize(
    "whole",
    [
        lambda ids: layers.HashedCrossing(3000)([ids, ids]),
        lambda ids: layers.Hashing(3000)(ids),
        lambda ids: layers.IntegerLookup(vocabulary=list(range(2900)))(ids),
        lambda ids: layers.Identity(dtype="int64")(ids),
        lambda ids: layers.Discretization(list(np.arange(2900.0)))(ids),
    ],
)
def test_whole_numbers_stay_whole(whole):
    keras.utils.set_random_seed(0)
    ids = keras.Input((1,), dtype="int64")
    network = keras.Model(ids, layers.Flatten()(layers.Embedding(3000, 1)(whole(ids))))
    rows = np.arange(2000, 2100)[:, None]
    right = network(rows).numpy()
    with training_settings(network, "mixed_float16", ()):
        np.testing.assert_allclose(network(rows), right, rtol=1e-3, atol=1e-4)
    assert (network(rows).numpy() == right).all()


def test_preprocessing_is_not_rounded():
    """Half precision ends at 65,504, so what Keras computes under a global policy is NaN here."""
    rows = np.array([[1_700_000.0], [1_700_001.0]])
    network = keras.Sequential([keras.Input((1,)), layers.Rescaling(1.0, -1_700_000.0), layers.Dense(1)])
    right = network(rows).numpy()
    with training_settings(network, "mixed_float16", ()):
        np.testing.assert_allclose(network(rows), right, rtol=1e-3, atol=1e-4)


def test_the_usual_policy_is_what_most_layers_have():
    """An archive does not keep a network's own policy, so that of its layers counts."""
    body, head = [layers.Dense(2, dtype="mixed_bfloat16") for _ in range(2)], layers.Dense(1, dtype="float32")
    assert layers_under_policy(keras.Sequential([keras.Input((3,)), *body, head])) == body
    wide = [layers.Dense(2, dtype="float64") for _ in range(2)]
    network = keras.Sequential([keras.Input((3,)), *wide, head])
    assert layers_under_policy(network) == [network, head]
    assert layers_under_policy(keras.Sequential([keras.Input((3,)), *wide])) == wide  # it is the network's usual one


def test_quantised_layers_keep_their_policy():
    network = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="small"), layers.Dense(1, name="large")])
    network.get_layer("small").quantize("int8")
    with training_settings(network, "mixed_bfloat16", ()):
        assert policies(network)["small"] == "int8_from_float32"
        assert policies(network)["large"] == "mixed_bfloat16"


def flags(network):
    return [layer.trainable for layer in all_layers(network)], [one.trainable for one in network.variables]


@pytest.mark.parametrize("frozen", ["td", "adapted", "block", "block/inner", "table"])
def test_frozen_layers_are_as_trainable_as_before(frozen):
    block = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inner"), layers.Dense(4)], name="block")
    rows, ids = keras.Input((2, 4)), keras.Input((2,))
    outputs = layers.TimeDistributed(layers.Dense(4, trainable=False), name="td")(rows)
    outputs = layers.Dense(4, name="adapted")(outputs) + layers.Embedding(5, 4, name="table")(ids)
    network = keras.Model([rows, ids], layers.TimeDistributed(block, name="blocks")(outputs))
    network = keras.Model([rows, ids], block(network.outputs[0][:, 0]))
    network.get_layer("adapted").enable_lora(2)
    block.get_layer("inner").kernel.trainable = False
    before = flags(network)
    layer = block.get_layer("inner") if "/" in frozen else network.get_layer(frozen)
    with training_settings(network, None, (frozen,)):
        assert not layer.trainable_variables
    assert flags(network) == before
