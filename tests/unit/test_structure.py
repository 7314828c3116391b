"""Networks of a class of the user's own: what is known of their inputs, outputs and layers, and what is refused."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cos_ml.errors import InvalidInputError
from cos_ml.network import checks, structure
from cos_ml.network.archive import Network, dump_model, layers_by_name, load_model
from cos_ml.network.forward import ForwardPass, pack_inputs
from tests.conformance import cases_subclassed as cases
from tests.conformance import usermodels

pytestmark = pytest.mark.once


def built(kind, rows, **options):
    model = kind(**options)
    model(rows)
    return model


def facts(tensors):
    return [(one.name, one.shape, one.dtype, one.key) for one in tensors]


@pytest.fixture(scope="module")
def classifier():
    return built(usermodels.Classifier, np.zeros((2, 4), "float32"))


# ── inputs and outputs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_called_on_rows(classifier):
    network = Network.of(classifier)
    assert facts(network.inputs) == [("input", (4,), "float32", None)]
    assert facts(network.outputs) == [("output", (3,), "float32", None)]
    assert network.traits.batch_size is None  # the user's two rows are no wish


def test_called_on_symbolic_tensors():
    model = built(usermodels.Tagger, keras.Input((None,), dtype="int32", name="words"))
    network = Network.of(model)
    assert facts(network.inputs) == [("words", (None,), "int32", None)]
    assert facts(network.outputs) == [("output", (None, 3), "float32", None)]
    assert network.traits.masked_outputs


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "float16"])
def test_dicts_and_ids(policy):
    # Keras casts floats to the model's type: in 16 bits, ids above 2048 would be others.
    model = built(usermodels.ByKeys, {"a": np.zeros((2, 4)), "ids": np.zeros((2, 3), "int32")}, dtype=policy)
    network = Network.of(model)
    assert facts(network.inputs) == [("a", (4,), "float32", None), ("ids", (3,), "int32", None)]
    assert facts(network.outputs) == [("kind", (3,), "float32", "kind"), ("size", (1,), "float32", "size")]


def test_lists_and_float64():
    model = built(usermodels.Siamese, [np.zeros((2, 6))] * 2, dtype="float64")
    network = Network.of(model)
    assert facts(network.inputs) == [("input_0", (6,), "float64", None), ("input_1", (6,), "float64", None)]
    loaded = load_model(network.archive)
    rows = [np.full((3, 6), value) for value in (0.5, 1.0)]
    assert np.array_equal(loaded(pack_inputs(loaded, rows)), model(rows))


def test_the_model_is_left_as_it_is(classifier):
    before, known = dict(vars(classifier)), classifier.get_weights()
    Network.of(classifier)
    assert {name: id(value) for name, value in vars(classifier).items()} == {
        name: id(value) for name, value in before.items()
    }
    assert all((one == other).all() for one, other in zip(known, classifier.get_weights(), strict=True))
    assert not classifier.losses or all(tf.executing_eagerly() and loss.numpy() >= 0 for loss in classifier.losses)


def test_outputs_are_found_once(monkeypatch):
    model, calls = built(usermodels.Siamese, [np.zeros((2, 6))] * 2), []
    call = model.call
    monkeypatch.setattr(model, "call", lambda pair: calls.append(1) or call(pair))
    assert structure.output_structure(model).shape == structure.output_structure(model).shape == (None, 1)
    assert len(calls) == 1


def test_losses_of_layers_are_found():
    assert checks.needs_no_loss(Network.of(built(usermodels.Classifier, np.zeros((2, 4)), penalty=0.1)))
    assert not checks.needs_no_loss(Network.of(built(usermodels.Classifier, np.zeros((2, 4)))))


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


LISTED = """
import sys
import numpy as np
from tests.conformance import usermodels
from cos_ml.network.archive import layers_by_name, load_model
from cos_ml.network.forward import ForwardPass
model = load_model(open(sys.argv[1], "rb").read())
first = next(iter(layers_by_name(model)))
print(list(layers_by_name(model)), np.asarray(ForwardPass(model, [first])(np.ones((1, 4), "float32"))[1]).tolist())
"""


def test_layers_have_their_names_in_other_processes(tmp_path, classifier):
    # Keras numbers the layers that a constructor makes: in a new process they are others.
    network = Network.of(classifier)
    trained = dump_model(load_model(network.archive), like=network.archive)
    first = classifier.blocks[0].name
    right = ForwardPass(load_model(trained), [first])(np.ones((1, 4), "float32"))[1].numpy().tolist()
    (tmp_path / "a.keras").write_bytes(trained)
    found = subprocess.run([sys.executable, "-c", LISTED, tmp_path / "a.keras"], text=True, capture_output=True)
    assert found.stdout.strip() == f"{list(network.layers)} {right}", found.stderr[-2000:]
    assert list(layers_by_name(classifier)) == list(network.layers)


def test_layers_of_a_class_within_a_functional_model():
    x = keras.Input((4,))
    model = keras.Model(x, usermodels.Classifier(name="inner")(x))
    loaded = load_model(Network.of(model).archive)  # in the same process, Keras would number them on
    assert list(layers_by_name(loaded)) == list(layers_by_name(model))


# ── without call ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("error:Model .* had a build config")
def test_without_call():
    network = Network.of(cases.gan())
    assert facts(network.inputs) == [("input", (4,), "float32", None)]
    assert network.outputs == ()
    with pytest.raises(InvalidInputError, match=r"no call\(\), so it can be trained, but transform is not possible"):
        checks.check_call(network, "transform")
    checks.check_call(network, "training", "train_step")
    assert Network.from_facts(network.facts(), network.archive) == network


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_several_arguments():
    model = usermodels.TwoArguments()
    model(np.zeros((2, 4)), np.zeros((2, 4)))
    with pytest.raises(InvalidInputError, match=r"takes several arguments \(x, z\).*one list or one dict"):
        Network.of(model)


def test_never_called():
    with pytest.raises(InvalidInputError, match=r"it is not built: call it once on keras.Input\(shape\)"):
        Network.of(usermodels.Classifier())
    with pytest.raises(InvalidInputError, match=r"has no call\(\).*build\(\(None, \*shape of a row\)\)"):
        Network.of(usermodels.GuideGan(discriminator=None, generator=None))


@pytest.mark.filterwarnings("ignore:`build\\(\\)` was called:UserWarning")
def test_layers_without_weights():
    model = usermodels.Classifier(name="open")
    model.build((None, 4))  # only marks it
    with pytest.raises(InvalidInputError, match=r"layers \['dense.*have no weights yet: call it once"):
        Network.of(model)


def test_call_that_runs_only_eagerly():
    class Eager(usermodels.Classifier):
        def call(self, x):
            return super().call(x) if float(x[0, 0]) >= 0 else x

    with pytest.raises(InvalidInputError):
        Network.of(built(Eager, np.zeros((2, 4))))


def test_a_layer_that_is_no_part_of_a_model():
    assert structure.input_structure(usermodels.Classifier()) is None
    assert structure.input_tensors(usermodels.Classifier()) == []
    assert structure.required_arguments(keras.Sequential([layers.Dense(1)])) == ["inputs"]
