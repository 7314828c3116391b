"""Saved files that somebody made, or that time has damaged."""

import contextlib
import functools
import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.errors import CosMLError, InvalidInputError, SavedModelError
from cos_ml.network import archive as archives
from cos_ml.network import untrusted
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.params import EstimatorParams
from tests.support.archives import layer, rebuilt
from tests.support.layers import Counting

keras = import_keras()


@functools.cache
def stored():
    return archives.dump_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)]))


@pytest.fixture
def archive():
    return stored()


def weights(make):
    """An HDF5 file in which ``make`` has put something."""
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        make(root)
    return file.getvalue()


def huge(root):
    root.create_dataset("w", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), fillvalue=1)


def external(root):
    root.create_dataset("w", (10,), "u1", external=[("/etc/hostname", 0, 10)])


def soft_link(root):
    root["w"] = h5py.SoftLink("/elsewhere")


def external_link(root):
    root["w"] = h5py.ExternalLink("/etc/other.h5", "/w")


def cycle(root):
    root.create_group("a")["b"] = root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (layer(class_name="Lambda", config={"function": {}}), "has a Lambda"),
        (layer(config={"units": 1, "activation": {"class_name": "__lambda__", "config": {}}}), "has a Lambda"),
        (layer(module="os", class_name="system"), r"names os\.system"),
        (layer(module="subprocess", class_name="Popen", registered_name="Popen"), r"names subprocess\.Popen"),
        (layer(module="os", class_name="function", config="system", registered_name="a>b"), r"names os\.function"),
        (layer(module="keras.utils", class_name="get_file"), r"names keras\.utils\.get_file"),
        (layer(module="keras.src.utils.file_utils", class_name="get_file"), r"names keras\.src\.utils"),
        (layer(module="keras_evil", class_name="Layer"), r"names keras_evil\.Layer"),
        (layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}), "vocabulary from '/etc/passwd'"),
    ],
)
def test_configs_that_are_more_than_data(archive, change, message):
    with pytest.raises(SavedModelError, match=message):
        untrusted.check_archive(rebuilt(archive, change))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../etc/cron.d/job": b"x"}, r"a member '\.\./\.\./etc"),
        ({"/etc/passwd": b"x"}, "a member '/etc/passwd'"),
        ({"assets/../../x": b"x"}, "a member 'assets/../../x'"),
        ({"assets/..\\..\\x": b"x"}, "a member"),
        ({"run.py": b"x"}, "a member 'run.py'"),
        ({"assets/zeros": bytes(100 << 20)}, "would unpack to"),
        ({"config.json": b"{"}, "is damaged"),
        ({"config.json": b"\xff"}, "is damaged"),
        ({"model.weights.h5": b"no HDF5"}, "model.weights.h5 is damaged"),
        ({"model.weights.h5": weights(huge)}, "would unpack to 4,398,046,511,104"),
        ({"model.weights.h5": weights(external)}, "reads 'w' from another file"),
        ({"model.weights.h5": weights(soft_link)}, "has a link at 'w'"),
        ({"model.weights.h5": weights(external_link)}, "has a link at 'w'"),
        ({"model.weights.h5": weights(cycle)}, "is damaged"),
    ],
)
def test_members_that_are_more_than_data(archive, members, message):
    with pytest.raises(SavedModelError, match=message):
        untrusted.check_archive(rebuilt(archive, **members))


def test_a_symbolic_link_in_an_archive(archive):
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as one:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        one.writestr(link, "/etc/passwd")
    with pytest.raises(SavedModelError, match="a member 'assets/link'"):
        untrusted.check_archive(file.getvalue())


def test_what_keras_saves_is_let_through(archive):
    words = keras.layers.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((1,), dtype="string")
    nested = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(4, 2), keras.layers.LSTM(2)])
    outputs = keras.ops.relu(keras.layers.Dense(1, activation=keras.activations.gelu)(nested(inputs_of(words, inputs))))
    kinds = [
        keras.Model(inputs, outputs),
        keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()]),
        keras.Sequential([keras.Input((2,)), Counting("/dev/null"), keras.layers.Dense(1, kernel_regularizer="l2")]),
    ]
    for kind in kinds:
        untrusted.check_archive(archives.dump_model(kind))
    assert untrusted.modules_of(archives.dump_model(kinds[2])) == {"tests.support.layers"}
    assert untrusted.modules_of(archive) == set()


def inputs_of(words, inputs):
    return keras.layers.Concatenate()([words(inputs)] * 3)


def test_a_keras_file_is_checked_too(archive, tmp_path):
    (tmp_path / "evil.keras").write_bytes(rebuilt(archive, layer(module="os", class_name="system")))
    with pytest.raises(InvalidInputError, match=r"names os\.system"):
        archives.network_from_file(str(tmp_path / "evil.keras"))


@given(where=st.floats(0, 1, exclude_max=True), piece=st.binary(max_size=20), how=st.integers(0, 3))
def test_damaged_bytes_are_one_error_or_the_network(where, piece, how):
    """Bytes that are changed, cut off or doubled."""
    archive = stored()
    at = int(where * len(archive))
    damaged = [archive[:at], archive[:at] + piece + archive[at + len(piece) :], archive[at:], archive * 2][how]
    try:
        untrusted.check_archive(damaged)
        Network.of(archives.load_model(damaged))
    except CosMLError:
        pass


@given(st.data())
def test_a_damaged_config_is_one_error_or_a_network(data):
    """JSON that is still JSON, and says something else."""

    def change(config):
        spot = config
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            key = data.draw(st.sampled_from(keys))
            inner = spot[key]
            if not isinstance(inner, (dict, list)) or not inner or data.draw(st.booleans()):
                break
            spot = inner
        spot[key] = data.draw(
            st.sampled_from([None, -1, 1e308, "", "x", [], {}, [None], {"class_name": "Dense"}, True])
        )

    damaged = rebuilt(stored(), change)
    try:
        untrusted.check_archive(damaged)
        Network.of(archives.load_model(damaged))
    except CosMLError:
        pass


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([np.float32(1), np.int64(3), np.zeros(2), object(), print, dict, {1, 2}, 1 + 2j])  # fmt: skip


@pytest.mark.parametrize("name", [param.name for param in EstimatorParams().params])
@given(value=PLAIN)
def test_a_param_takes_a_value_or_says_why_not(name, value):
    """What a Param takes can be saved: it is plain data."""
    from cos_ml import DeepNetEstimator

    estimator = DeepNetEstimator()
    with contextlib.suppress(InvalidInputError):
        estimator._set(**{name: value})
    if name != "model" and estimator.isSet(name):
        json.dumps(estimator.getOrDefault(name))


@given(st.binary(max_size=200))
def test_golden_rows_that_are_none(data):
    with pytest.raises(SavedModelError):
        untrusted.check_zip(data, "golden rows")
