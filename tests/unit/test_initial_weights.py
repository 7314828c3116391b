"""initialWeights: which layers take weights from which files and networks."""

import shutil

import h5py
import numpy as np
import pytest

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from cos_ml.initial_weights import digest, with_initial_weights
from cos_ml.network.archive import Network, load_model
from cos_ml.network.keras_import import import_keras
from tests.support.caffe_nets import write_caffemodel

pytestmark = pytest.mark.once

ARRAY = "layers/dense/vars/0"
keras = import_keras()
layers = keras.layers


def network(classes=3, units=4, dropout=0.5):
    """Layers of the kinds that Keras's files store differently."""
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(units, name="first")], name="inner")
    inputs = keras.Input((6,), name="x")
    rows = layers.Reshape((units, 1), name="rows")(inner(inputs))
    rows = layers.Bidirectional(layers.LSTM(2, dropout=dropout), name="both")(rows)
    rows = layers.BatchNormalization(name="norm")(layers.Dropout(dropout, name="drop")(rows))
    attended = layers.MultiHeadAttention(1, 2, name="heads")(*[layers.Reshape((4, 1), name="again")(rows)] * 2)
    return keras.Model(inputs, layers.Dense(classes, name="out")(layers.Flatten(name="flat")(attended)))


def random(model, seed):
    drawn = np.random.default_rng(seed)
    model.set_weights([drawn.uniform(0, 1, weight.shape) for weight in model.get_weights()])
    return model


def source_of(value):
    return DeepNetEstimator(initialWeights=value).getInitialWeights()._network()


def taken(model, value):
    """The model with the weights, and the report."""
    changed, report = with_initial_weights(Network.of(model), source_of(value))
    return load_model(changed.archive), report


def same(one, other):
    return all(np.array_equal(*pair) for pair in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.fixture(scope="module")
def trained():
    return random(network(), 1)


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    trained.save(folder / "whole.keras")
    trained.save(folder / "whole.h5")
    trained.save_weights(folder / "only.weights.h5")
    return folder


@pytest.mark.parametrize("kind", ["model", "stage", "whole.keras", "whole.h5", "only.weights.h5"])
def test_all_layers_of_the_same_network(trained, files, kind):
    source = {"model": trained, "stage": DeepNetModel(model=trained)}.get(kind) or files / kind
    model, report = taken(random(network(), 2), source)
    assert same(model, trained)
    assert report["taken"] == {name: name for name in ("inner/first", "both", "norm", "heads", "out")}
    assert not report["notTaken"]


@pytest.mark.parametrize("kind", ["whole.keras", "whole.h5", "only.weights.h5"])
def test_a_layer_of_another_shape_keeps_all_of_its_weights(trained, files, kind):
    before = random(network(classes=5, dropout=0), 2)
    model, report = taken(before, files / kind)
    assert same(model.get_layer("both"), trained.get_layer("both"))
    assert same(model.get_layer("inner"), trained.get_layer("inner"))
    assert same(model.get_layer("out"), before.get_layer("out"))
    assert list(report["notTaken"]) == ["out"]
    assert "(4, 5)" in report["notTaken"]["out"]


def test_a_layer_of_a_nested_model_and_layers_of_one_side_alone(trained):
    flat = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="first"), layers.Dense(7, name="mine")])
    model, report = taken(flat, trained)
    assert same(model.get_layer("first"), trained.get_layer("inner").get_layer("first"))
    assert report["taken"] == {"first": "inner/first"}
    assert set(report["notTaken"]) == {"mine", "both", "norm", "heads", "out"}
    assert "initialWeights has no layer" in report["notTaken"]["mine"]
    assert "the network has no layer" in report["notTaken"]["both"]


def test_nothing_taken_is_an_error_that_names_the_layers_of_both(trained):
    other = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="alone")])
    with pytest.raises(InvalidInputError, match=r"Param initialWeights: no layer takes.*'alone'.*'inner/first'"):
        taken(other, trained)


def test_a_caffemodel(tmp_path):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    path = write_caffemodel(tmp_path / "a.caffemodel", {"fc/out": [kernel, bias]})
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="fc_out")])
    model, report = taken(model, str(path))
    for weight, expected in zip(model.get_weights(), (kernel.T, bias), strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert report["taken"] == {"fc_out": "fc/out"}
    assert not report["notTaken"]


def test_the_digest_is_that_of_the_weights(trained):
    assert digest(Network.of(trained)) == digest(Network.of(trained))
    assert digest(Network.of(trained)) != digest(Network.of(random(network(), 3)))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_file_of_weights(tmp_path):
    (tmp_path / "notes.txt").write_text("weights")
    for value in (tmp_path / "notes.txt", tmp_path / "missing.h5", 5):
        with pytest.raises(InvalidInputError, match=r"Param initialWeights: expected .*caffemodel"):
            DeepNetEstimator(initialWeights=value)


def test_damaged_files(files, tmp_path):
    data = (files / "only.weights.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    for name in ("cut.h5", "empty.h5"):
        with pytest.raises(InvalidInputError, match="Param initialWeights: the HDF5 file"):
            DeepNetEstimator(initialWeights=tmp_path / name)


@pytest.mark.parametrize("trap", ["external", "soft", "bomb", "values"])
def test_files_that_link_elsewhere_or_unpack_to_far_more(files, tmp_path, trap):
    path = tmp_path / "trap.weights.h5"
    shutil.copy(files / "only.weights.h5", path)
    with h5py.File(path, "r+") as file:
        if trap == "external":
            file["layers/away"] = h5py.ExternalLink("other.h5", "/")
        elif trap == "soft":
            file["layers/away"] = h5py.SoftLink("/layers")
        elif trap == "values":
            file.create_dataset("layers/away", (4,), "u1", external=[(str(tmp_path / "secret"), 0, 4)])
        else:
            file.create_dataset("layers/away", (1 << 28,), chunks=(1 << 20,), compression="gzip")
    with pytest.raises(InvalidInputError, match="Param initialWeights: Refusing to load the HDF5 file"):
        DeepNetEstimator(initialWeights=path)


def test_a_group_that_contains_itself(files, tmp_path):
    path = tmp_path / "cycle.weights.h5"
    shutil.copy(files / "only.weights.h5", path)
    with h5py.File(path, "r+") as file:
        file["layers/again"] = file["layers"]
    with pytest.raises(InvalidInputError, match="Param initialWeights: Refusing to load the HDF5 file"):
        DeepNetEstimator(initialWeights=path)


@pytest.mark.parametrize("trap", ["objects", "links", "depth", "doubled", "seconds"])
def test_files_that_would_take_long_to_look_at(files, tmp_path, monkeypatch, trap):
    """60 kB of groups with two links each to the next one are a million paths; each object is looked at once."""
    path = tmp_path / "trap.weights.h5"
    shutil.copy(files / "only.weights.h5", path)
    monkeypatch.setattr("cos_ml.network.untrusted.MAX_H5_OBJECTS", 1000)
    monkeypatch.setattr("cos_ml.network.untrusted.MAX_H5_SECONDS", -1 if trap == "seconds" else 10)
    with h5py.File(path, "r+") as file:
        group = file.create_group("layers/away")
        for number in range(0 if trap == "seconds" else 1001 if trap in ("objects", "links") else 120):
            if trap == "links":
                group[f"{number}"] = file[ARRAY]
            elif trap == "objects":
                group.create_group(f"{number}")
            else:
                deeper = group.create_group("a")
                if trap == "doubled":
                    group["b"] = deeper
                group = deeper
    message = "is in it twice" if trap == "doubled" else "it has more than 1,000 objects, is deeper than 100 groups, or"
    with pytest.raises(InvalidInputError, match=f"Param initialWeights: Refusing to load the HDF5 file: .*{message}"):
        DeepNetEstimator(initialWeights=path)


def test_an_array_that_is_there_twice_is_one(trained, files, tmp_path):
    path = tmp_path / "linked.weights.h5"
    shutil.copy(files / "only.weights.h5", path)
    with h5py.File(path, "r+") as file:
        file["layers/again"] = file[ARRAY]
    assert same(taken(random(network(), 2), path)[0], trained)


def test_a_file_from_which_the_library_does_not_return(files, tmp_path):
    """The size of a text in the file's heap is nearly 2 to the 64th."""
    data = bytearray((files / "only.weights.h5").read_bytes())
    at = data.index(b"GCOL")
    data[at + 24 : at + 32] = b"\xf0" + b"\xff" * 7
    (tmp_path / "trap.weights.h5").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"Refusing to load the HDF5 file: .*does not return from it"):
        DeepNetEstimator(initialWeights=tmp_path / "trap.weights.h5")
