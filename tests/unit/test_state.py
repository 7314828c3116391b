"""What Keras's own format loses of a network, and an archive of ours keeps."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cos_ml.data import blobs
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network import archive as archives
from cos_ml.network import untrusted
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.state import state_of
from tests.support.archives import rebuilt
from tests.support.layers import Forgetful, Sampling
from tests.support.training import LOSS, data_of, spec_of

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


def network(layer, shape=(6,), after=lambda adapted: None, last=3):
    """A network of two layers, ``layer`` first, each of whose variables has random values."""
    model = keras.Sequential([keras.Input(shape), layer, layers.Dense(last)])
    after(layer)
    return randomized(model)


def randomized(model):
    random = np.random.default_rng(1)
    for variable in model.variables:
        if variable.dtype == "float32" and variable.name.rsplit("_", 1)[-1] in (
            "kernel",
            "bias",
            "embeddings",
            "a",
            "b",
        ):
            variable.assign(random.normal(size=variable.shape))
    return model


def facts(model):
    """All variables of a model, by layer: their values to the bit, and whether they are trainable."""
    owners = [(index, one) for index, layer in enumerate(all_layers(model)) for one in layer.variables]
    found = [(index, one.name, one.numpy().tobytes(), one.trainable, one.dtype) for index, one in owners]
    return sorted(one for one in found if "seed_generator" not in one[1])


def state(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return blobs.load(file.read(untrusted.STATE)) if untrusted.STATE in file.namelist() else {}


def lora(layer):
    layer.enable_lora(2)


def quantized_lora(layer):
    layer.quantize("int8")
    layer.enable_lora(2)


def lora_quantized(layer):
    layer.enable_lora(2)
    layer.quantize("int4")


KINDS = {
    "Dense": (lambda: layers.Dense(8), (6,)),
    "EinsumDense": (lambda: layers.EinsumDense("ab,bc->ac", (8,)), (6,)),
    "Embedding": (lambda: layers.Embedding(9, 4), (6,)),
    "Conv1D": (lambda: layers.Conv1D(4, 2), (6, 2)),
    "Conv2D": (lambda: layers.Conv2D(4, 2), (6, 6, 2)),
}


ADAPTED = [(kind, lora) for kind in KINDS]
ADAPTED += [(kind, after) for kind in list(KINDS)[:3] for after in (quantized_lora, lora_quantized)]


@pytest.mark.parametrize(("kind", "after"), ADAPTED)
def test_adapters_travel(kind, after):
    make, shape = KINDS[kind]
    model = network(make(), shape, after)
    frozen = Network.of(model)
    assert facts(archives.load_model(frozen.archive)) == facts(model)
    untrusted.check_archive(frozen.archive)


def nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inner"), layers.Dropout(0.1)])
    outer = keras.Sequential([keras.Input((2, 4)), layers.TimeDistributed(inner), layers.LSTM(3), layers.Dense(1)])
    inner.get_layer("inner").enable_lora(1)
    outer.layers[1].cell.recurrent_kernel.trainable = False
    outer.layers[2].trainable = False
    return randomized(outer)


def one_frozen_kernel():
    return network(layers.Dense(8), after=lambda layer: setattr(layer.kernel, "trainable", False))


def one_trained_bias():
    """A layer that is frozen, but for its bias."""
    model = network(layers.Dense(8))
    model.layers[0].trainable = False
    model.layers[0].bias.trainable = True
    return model


def reordered():
    """Keras makes the variables of this layer in another order when it loads it."""
    return network(layers.Dense(8), after=lambda layer: layer.quantize("float8"))


def half():
    return network(layers.Dense(4, dtype="bfloat16"), after=lambda layer: setattr(layer.bias, "trainable", False))


@pytest.mark.parametrize("make", [nested, one_frozen_kernel, one_trained_bias, reordered, half])
def test_what_is_set_on_single_variables_travels(make):
    model = make()
    loaded = archives.load_model(Network.of(model).archive)
    assert facts(loaded) == facts(model)
    assert [one.trainable for one in all_layers(loaded)] == [one.trainable for one in all_layers(model)]
    names = [[one.name for one in each.trainable_variables] for each in (loaded, model)]
    assert sorted(names[0]) == sorted(names[1])


def test_the_policy_of_a_model_travels():
    """Keras scales the loss where a model's own policy is mixed_float16; its archives lose that policy."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(layers.Dense(2))
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = archives.load_model(Network.of(model).archive)
    assert loaded.dtype_policy.name == "mixed_float16"
    loaded.compile("sgd", "mse")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)


def test_nothing_is_added_that_keras_keeps(classifier):
    with_seeds = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.BatchNormalization()])
    frozen = network(layers.Dense(8, trainable=False))
    for model in (classifier, with_seeds, frozen):
        assert not state(Network.of(model).archive)
    assert set(state(Network.of(one_frozen_kernel()).archive)) == {"header"}  # no weights twice


def test_keras_opens_the_archive_too(tmp_path):
    model = network(layers.Dense(8), after=lora)
    (tmp_path / "net.keras").write_bytes(Network.of(model).archive)
    rows = np.ones((2, 6), "float32")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "net.keras")(rows), model(rows), rtol=1e-4)
    assert facts(archives.load_model(archives.network_from_file(str(tmp_path / "net.keras")).archive)) == facts(model)


def test_a_trained_network_keeps_its_adapters():
    model = network(layers.Dense(8), after=lora)
    archive = Network.of(model).archive
    trained = randomized(archives.load_model(archive))
    trained.layers[0].lora_kernel_a.assign_add(np.ones((6, 2)))
    again = archives.dump_model(trained, like=archive)
    assert facts(archives.load_model(again)) == facts(trained)
    plain = archives.dump_model(network(layers.Dense(8)))
    assert not state(archives.dump_model(archives.load_model(plain), like=plain))


def test_another_process_reads_it(tmp_path):
    model = network(layers.Dense(8), after=lora)
    (tmp_path / "net").write_bytes(Network.of(model).archive)
    program = (
        "import sys, pathlib\n"
        "from cos_ml.network.archive import load_model\n"
        "model = load_model(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print([float(one.numpy().sum()) for one in model.trainable_variables])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "net")]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1]
    np.testing.assert_allclose(json.loads(printed), [one.numpy().sum() for one in model.trainable_variables], rtol=1e-5)


# ── what can't travel ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_setting_that_get_config_forgets_is_an_error():
    with pytest.raises(InvalidInputError, match=r"computes other outputs once Keras has saved.*get_config"):
        Network.of(network(Forgetful(factor=2.0)))
    Network.of(network(Forgetful(factor=1.0)))  # the default, so nothing is lost


def test_a_network_that_samples_is_none():
    Network.of(network(Sampling()))


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (lambda: layers.Dense(8, use_bias=False), r"without all of its variables. Variable '.*bias'.* received none"),
        (lambda: layers.Dense(9), r"Variable '.*kernel'.* expected float32 \(6, 8\) .* received float32 \(6, 9\)"),
        (lambda: layers.Dense(8, dtype="float64"), r"Variable '.*kernel'.* received float64"),
    ],
)
def test_a_variable_that_is_not_saved_is_named(copy, message):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8)])
    with pytest.raises(InvalidInputError, match=message):
        state_of(model, keras.Sequential([keras.Input((6,)), copy()]))
    with pytest.raises(InvalidInputError, match=r"has a variable more: '.*bias'"):
        state_of(keras.Sequential([keras.Input((6,)), layers.Dense(8, use_bias=False)]), model)


def test_comparing_changes_no_state():
    """A stateful layer keeps what it has seen, also of the rows that compare a network with its copy."""
    rows = keras.Input((3, 4), batch_size=2)
    model = keras.Model(rows, layers.LSTM(2, stateful=True)(rows))
    Network.of(model)
    assert not any(np.asarray(one).any() for one in model.layers[1].states)


# ── archives from elsewhere ───────────────────────────────────────────────────────────────────────────────────────────


def damaged(change):
    """An archive with adapters, after ``change`` of its state's header and arrays."""
    archive = Network.of(network(layers.Dense(8), after=lora)).archive
    items = dict(state(archive))
    header = json.loads(items.pop("header"))
    change(header, items)
    return rebuilt(archive, **{untrusted.STATE: b"".join(blobs.dump({"header": json.dumps(header).encode(), **items}))})


@pytest.mark.parametrize(
    "change",
    [
        lambda header, items: items.update({"value/0": np.zeros((6, 9), "f4")}),
        lambda header, items: items.update({"value/0": np.zeros((6, 8), "f8")}),
        lambda header, items: items.update({"value/99": np.zeros((6, 8), "f4")}),
        lambda header, items: items.update({"value/-1": np.zeros(3, "f4")}),
        lambda header, items: items.update({"name": np.zeros((6, 8), "f4")}),
        lambda header, items: items.update({"value/0": np.array([b"x"] * 48, object).reshape(6, 8)}),
        lambda header, items: header["trainable"].append(True),
        lambda header, items: header["layers"].append([99, True]),
        lambda header, items: header["layers"].append(["0", True]),
        lambda header, items: header["policies"].append([0, "no such policy"]),
        lambda header, items: header["policies"].append([-1, "float32"]),
        lambda header, items: header.pop("trainable"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change):
    with pytest.raises(SavedModelError, match=r"archive is damaged: cos_ml_state\.bin"):
        archives.load_model(damaged(change))


@pytest.mark.parametrize("data", [b"", b"[]\n", b"x" * 99])
def test_a_state_that_is_none_is_refused(data):
    archive = rebuilt(archives.dump_model(network(layers.Dense(8))), **{untrusted.STATE: data})
    with pytest.raises(SavedModelError, match=r"archive is damaged: cos_ml_state\.bin"):
        archives.load_model(archive)


def test_adapters_that_learn_nothing_are_a_warning(tmp_path):
    """Keras's own archive of a network with LoRA."""
    model = network(layers.Dense(8, name="adapted"), after=lora)
    model.save(tmp_path / "net.keras")
    with pytest.warns(UserWarning, match=r"net\.keras: the LoRA adapters of .*adapted are 0, so they learn nothing"):
        archives.network_from_file(str(tmp_path / "net.keras"))


def test_flags_are_part_of_the_architecture():
    """A fit resumes only from checkpoints of the same variables."""
    whole, frozen = Network.of(network(layers.Dense(8))), Network.of(one_frozen_kernel())
    assert whole.architecture != frozen.architecture == Network.of(one_frozen_kernel()).architecture
    model = network(layers.Dense(8), after=lora)
    before = Network.of(model)
    model.layers[0].lora_kernel_a.assign_add(np.ones((6, 2)))
    assert Network.of(model).architecture == before.architecture != whole.architecture


# ── trained by ranks ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2])
def test_ranks_train_adapters_and_nothing_else(ranks, count):
    """One step over all rows, as Keras takes it."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="base"), layers.Dense(3, trainable=False)])
    model.layers[0].bias.trainable = False
    model.layers[0].enable_lora(2)
    data = data_of(24)
    arguments = {"optimizer": "sgd", "loss": LOSS}
    spec = spec_of(compile=arguments, epochs=1, batch_size=24 // count, learning_rate=0.1)
    parts = [{name: array[rank::count] for name, array in data.items()} for rank in range(count)]
    trained = ranks.fit([spec], [model], parts)[0].network
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model.fit(data["x0"], data["y0"], batch_size=24, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(trained.variables, model.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [one.trainable for one in trained.variables] == [one.trainable for one in model.variables]
    assert len(trained.trainable_variables) == 2
