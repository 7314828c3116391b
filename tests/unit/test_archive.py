import io
import json
import pickle
import subprocess
import sys
import zipfile

import h5py
import pytest

from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network import archive as archives
from cos_ml.network import untrusted
from cos_ml.network.archive import Network, Tensor, find_layer, layers_by_name
from cos_ml.network.keras_import import import_keras
from tests.support.sessions import ROOT

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


@pytest.fixture(scope="module")
def nested():
    """Two inputs, a model within a model, two outputs."""
    block = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="dense"), layers.ReLU(name="relu")], name="block")
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right", dtype="int32")
    both = layers.Concatenate(name="both")([block(left), layers.Embedding(5, 2, name="table")(right)[:, 0]])
    outputs = [layers.Dense(1, activation="sigmoid", name="likely")(both), layers.Dense(2, name="dense")(both)]
    return keras.Model([left, right], outputs, name="nested")


# ── facts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_a_sequential_model(classifier):
    network = Network.of(classifier)
    assert network.inputs == (Tensor("numbers", (4,), "float32"),)
    assert network.outputs == (Tensor("classes", (3,), "float32", "softmax"),)
    assert network.outputs[0].units == 3
    assert network.layers == ("hidden", "classes")
    assert network.compiled is None


def test_of_a_functional_model(nested):
    network = Network.of(nested)
    assert network.inputs == (Tensor("left", (3,), "float32"), Tensor("right", (2,), "int32"))
    assert network.outputs == (
        Tensor("likely", (1,), "float32", "sigmoid"),
        Tensor("dense", (2,), "float32", "linear"),
    )
    assert {"block", "block/dense", "block/relu", "both", "table", "likely", "dense"} <= set(network.layers)


def test_the_rows_of_the_embedding_of_an_input():
    one, other, third, fourth = (keras.Input((2,)) for _ in range(4))
    table, flat = layers.Embedding(7, 2), layers.Flatten()
    inner = keras.Sequential([keras.Input((2,)), layers.Embedding(5, 2), layers.Flatten()])
    scaled = layers.Embedding(9, 2)(layers.Rescaling(2.0)(fourth))
    outputs = [flat(table(one)), flat(table(other)), inner(third), inner(other), flat(scaled)]
    network = Network.of(keras.Model([fourth, third, other, one], layers.Concatenate()(outputs)))
    assert [tensor.below for tensor in network.inputs] == [None, 5, 5, 7]
    assert [tensor.below for tensor in Network.from_facts(network.facts(), b"").inputs] == [None, 5, 5, 7]


@pytest.mark.parametrize(
    ("last", "activation"),
    [
        (lambda: [layers.Dense(3)], "linear"),
        (lambda: [layers.Dense(3, activation="softmax")], "softmax"),
        (lambda: [layers.Dense(3), layers.Softmax()], "softmax"),
        (lambda: [layers.Dense(3), layers.Activation("softmax")], "softmax"),
        (lambda: [layers.Dense(1), layers.Activation("sigmoid")], "sigmoid"),
        (lambda: [keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])], "softmax"),
        (lambda: [layers.Dense(3, activation="softmax"), layers.Rescaling(2.0)], None),
    ],
)
def test_activation_of_the_output(last, activation):
    assert Network.of(keras.Sequential([keras.Input((4,)), *last()])).outputs[0].activation == activation


def test_unknown_dimensions_and_scalars():
    network = Network.of(keras.Sequential([keras.Input((None, 2)), layers.LSTM(3)]))
    assert network.inputs[0].shape == (None, 2)
    scalar = keras.Input((), name="scalar")
    network = Network.of(keras.Model(scalar, layers.Rescaling(2.0)(scalar)))
    assert network.inputs[0].shape == ()
    assert network.outputs[0].units == 1


def test_compiled_arguments_are_plain(classifier):
    classifier.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    compiled = Network.of(classifier).compiled
    assert compiled["metrics"] == ["accuracy"]
    assert compiled["loss"]["class_name"] == "SparseCategoricalCrossentropy"
    json.dumps(compiled)


def test_facts_round_trip(nested):
    nested.compile("sgd", loss=["binary_crossentropy", "mse"])
    network = Network.of(nested)
    again = Network.from_facts(network.facts(), network.archive)
    assert again == network
    assert hash(again) == hash(network)
    assert isinstance(json.loads(network.facts()), dict)
    assert "archive" not in json.loads(network.facts())


def test_digests_tell_networks_apart(classifier):
    network = Network.of(classifier)
    other = network.with_archive(b"other weights")
    assert other.digest != network.digest
    assert (other.inputs, other.outputs, other.layers) == (network.inputs, network.outputs, network.layers)
    assert pickle.loads(pickle.dumps(network)) == network


def test_freezing_changes_nothing(classifier):
    network = Network.of(classifier)
    before = classifier.get_weights()
    classifier.set_weights([weight + 1 for weight in before])
    loaded = archives.load_model(network.archive).get_weights()
    assert all((one == other).all() for one, other in zip(loaded, before, strict=True))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("value", "shown"), [("resnet", "str"), (3, "int"), (keras.layers.Dense(1), "Dense")])
def test_not_a_model(value, shown):
    with pytest.raises(InvalidInputError, match=rf"Param model: expected a keras.Model, received {shown}"):
        Network.of(value)


def test_not_built():
    with pytest.raises(InvalidInputError, match=r"'open' does not know its input shape yet.*keras\.Input"):
        Network.of(keras.Sequential([layers.Dense(1)], name="open"))


def test_lambda_layers():
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x, name="twist")])
    with pytest.raises(InvalidInputError, match=r"layer 'twist' is a Lambda"):
        Network.of(model)
    outer = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.Input((4,)), *model.layers], name="in")])
    with pytest.raises(InvalidInputError, match=r"layer 'twist' is a Lambda"):
        Network.of(outer)


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Dense(1, activation=lambda x: x + 1, name="twist"),
        lambda: layers.TimeDistributed(layers.Lambda(lambda x: x), name="twist"),
    ],
)
def test_lambdas_elsewhere(layer):
    # Refused here, as of()'s docstring says, and not in the ranks, which do not load them.
    with pytest.raises(InvalidInputError, match=r"Param model"):
        Network.of(keras.Sequential([keras.Input((2, 4)), layer()]))


# ── archives ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_round_trip(classifier, numbers):
    loaded = archives.load_model(archives.dump_model(classifier))
    assert all((one == other).all() for one, other in zip(loaded.get_weights(), classifier.get_weights(), strict=True))
    rows = numbers(5, 4)
    assert (loaded(rows).numpy() == classifier(rows).numpy()).all()
    assert not loaded.compiled


def test_the_optimizer_stays_behind(classifier, numbers):
    classifier.compile("adam", "mse")
    classifier.fit(numbers(8, 4), numbers(8, 3), verbose=0)
    with zipfile.ZipFile(io.BytesIO(archives.dump_model(classifier))) as archive:
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    assert "layers" in weights
    assert "optimizer" not in weights  # Adam's state is twice the size of the weights
    assert classifier.optimizer.iterations == 1  # and the model's own is what it was
    assert classifier.compiled


@pytest.mark.parametrize("archive", [b"", b"no archive", b"PK\x03\x04"])
def test_no_archive(archive):
    with pytest.raises(SavedModelError, match=rf"{len(archive)} bytes are not a .keras archive"):
        archives.load_model(archive)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_archive(classifier, share):
    archive = archives.dump_model(classifier)
    with pytest.raises(SavedModelError):
        archives.load_model(archive[: int(len(archive) * share)])


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_damaged_archive(classifier, name):
    archive = bytearray(archives.dump_model(classifier))
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        info = file.getinfo(name)
    start = info.header_offset + 30 + len(name) + 8
    archive[start : start + 24] = b"\xff" * 24
    with pytest.raises(SavedModelError):
        archives.load_model(bytes(archive))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_an_archive_with_a_part_missing(classifier, name):
    less = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archives.dump_model(classifier))) as before, zipfile.ZipFile(less, "w") as after:
        for info in before.infolist():
            if info.filename != name:
                after.writestr(info, before.read(info))
    with pytest.raises(SavedModelError):
        archives.load_model(less.getvalue())


def test_a_lambda_in_an_archive_is_not_run(tmp_path):
    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x)]).save(path)
    with pytest.raises(SavedModelError, match=r"(?i)lambda"):
        archives.load_model(path.read_bytes())


# ── layers by name ────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ["block", "block/dense", "block/relu", "other/relu", "dense"]


def test_layers_by_name(nested):
    found = layers_by_name(nested)
    assert found["block/dense"] is nested.get_layer("block").get_layer("dense")
    assert found["dense"] is nested.get_layer("dense")


def test_find_layer():
    assert find_layer(NAMES, "block") == "block"
    assert find_layer(NAMES, "block/dense") == "block/dense"
    assert find_layer(NAMES, "dense") == "dense"  # a full name comes before a short one
    assert find_layer([*NAMES, "block/last"], "last") == "block/last"


def test_find_layer_says_what_there_is():
    with pytest.raises(InvalidInputError, match=r"several layers are named 'relu'.*'block/relu', 'other/relu'"):
        find_layer(NAMES, "relu")
    with pytest.raises(InvalidInputError) as error:
        find_layer(NAMES, "conv")
    assert "no layer 'conv'" in str(error.value)
    assert all(repr(name) in str(error.value) for name in NAMES)


def test_the_architecture_has_no_names_of_layers_and_no_weights():
    def network(units=3, dtype="float32", name=None):
        inputs = keras.Input((4,), name=name and f"{name}_in")
        hidden = keras.layers.Dense(5, dtype=dtype)(inputs)
        merged = keras.layers.concatenate([hidden, keras.layers.Dropout(0.1)(hidden)])
        return Network.of(
            keras.Model(inputs, keras.layers.Dense(units, name=name and f"{name}_out")(merged), name=name)
        )

    one = network()
    assert one.architecture == network().architecture == network(name="other").architecture
    assert one.digest != network().digest
    assert one.architecture != network(units=4).architecture
    assert one.architecture != network(dtype="float64").architecture


def test_the_architecture_is_the_same_in_another_process():
    program = (
        "from cos_ml.network.archive import Network\n"
        "from cos_ml.network.keras_import import import_keras\n"
        "keras = import_keras()\n"
        "layers = [keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(3)]\n"
        "print(Network.of(keras.Sequential(layers)).architecture)"
    )
    network = Network.of(keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.2), keras.layers.Dense(3)]))
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert printed.split()[-1] == network.architecture


def test_layers_of_cos_ml_need_no_import(tmp_path):
    """In another process, which has imported nothing of ``cos_ml.caffe``: a saved stage loads in batch scoring."""
    from cos_ml.caffe.transform import DataTransform

    net = keras.Sequential([keras.Input((4, 4, 1)), DataTransform(scale=0.5, name="scaled"), layers.Flatten()])
    (tmp_path / "net.keras").write_bytes(Network.of(net).archive)
    program = "import sys; from pathlib import Path; from cos_ml.network.archive import load_model; "
    program += "print(type(load_model(Path(sys.argv[1]).read_bytes()).get_layer('scaled')).__name__)"
    command = [sys.executable, "-c", program, str(tmp_path / "net.keras")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "DataTransform"


def test_every_module_that_registers_is_imported_on_demand():
    sources = {path: path.read_text() for path in (ROOT / "cos_ml").rglob("*.py")}
    registering = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path, text in sources.items()
        if "register_keras_serializable(package=" in text
    }
    assert registering - {"cos_ml.initial_weights"} == untrusted.ON_DEMAND  # every driver imports that one
