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
from cos_ml.estimator_params import EstimatorParams
from cos_ml.network import archive as archives
from cos_ml.network import untrusted
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from tests.support.archives import layer, rebuilt
from tests.support.layers import Counting

pytestmark = pytest.mark.once

keras = import_keras()


@functools.cache
def stored():
    return archives.dump_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)]))


@pytest.fixture
def archive():
    return stored()


def opened(archive):
    """The network in ``archive``, as every caller opens one from elsewhere: checked, then loaded by Keras."""
    untrusted.check_archive(archive)
    return archives.load_model(archive)


def test_configs_that_are_loaded(archive):
    assert opened(rebuilt(archive, layer(config={"units": 1}))).output_shape == (None, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (layer(module="os", class_name="system"), r"names os\.system"),
        (layer(module="subprocess", class_name="Popen", registered_name="Popen"), r"names subprocess\.Popen"),
        (layer(module="os", class_name="function", config="system", registered_name="a>b"), r"names os\.function"),
        (layer(module="keras.utils", class_name="get_file"), r"names keras\.utils\.get_file"),
        (layer(module="keras.src.utils.file_utils", class_name="get_file"), r"names keras\.src\.utils"),
        (layer(module="keras.applications", class_name="ResNet50"), r"names keras\.applications\.ResNet50"),
        (layer(module="keras_evil", class_name="Layer"), r"names keras_evil\.Layer"),
        (layer(module="keras_hub.layers", class_name="Layer"), r"names keras_hub\.layers\.Layer"),
    ],
)
def test_configs_that_name_more_than_layers(archive, change, message):
    with pytest.raises(SavedModelError, match=message):
        untrusted.check_archive(rebuilt(archive, change))


WORDS = keras.layers.TextVectorization().get_config() | {"vocabulary": "/etc/passwd"}
LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wA=", None, None]}}  # bytes that would be unmarshalled


CODE = {
    "Lambda": layer(class_name="Lambda", config={"function": LAMBDA}),
    "Lambda without code": layer(class_name="Lambda", config={"function": {}}),
    "lambda": layer(config={"units": 1, "activation": LAMBDA}),
    "lambda without code": layer(config={"units": 1, "activation": {"class_name": "__lambda__", "config": {}}}),
    "vocabulary": layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
    "vocabulary by merges": layer(class_name="BytePairTokenizer", config={"merges": "/etc/passwd"}),
    "vocabulary in a proto": layer(class_name="SentencePieceTokenizer", config={"proto": "/" * 2047}),
    "vocabulary of words": layer(class_name="TextVectorization", config=WORDS),
    "TFSMLayer": layer(class_name="TFSMLayer", config={"filepath": "/etc"}),
    "Torch": layer(class_name="TorchModuleWrapper", config={"module": "gASVAA=="}),
}


@pytest.mark.parametrize("name", CODE)
def test_code_and_files_are_refused_even_where_a_program_has_turned_off_safe_mode(archive, name):
    """Keras's switch is one for the whole process, and goes before ``safe_mode=True``."""
    with pytest.raises(SavedModelError, match=f"Refusing to load: .*{name.split()[0]}"):
        untrusted.check_archive(rebuilt(archive, CODE[name]))


@pytest.mark.parametrize("name", CODE)
def test_keras_refuses_code_and_files_too(archive, name):
    with pytest.raises(SavedModelError, match="does not load the network"):
        archives.load_model(rebuilt(archive, CODE[name]))


@pytest.mark.parametrize("where", ["loss", "metrics", "optimizer"])
def test_compile_arguments_that_are_code(where):
    """A saved stage's Params and compile arguments are deserialized by ranks and scoring tasks."""
    with pytest.raises(SavedModelError, match="contains a __lambda__"):
        untrusted.check_config({where: [{"a": LAMBDA}]})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../etc/cron.d/job": b"x"}, r"member '\.\./\.\./etc"),
        ({"/etc/passwd": b"x"}, "member '/etc/passwd'"),
        ({"assets/../../x": b"x"}, "member 'assets/../../x'"),
        ({"assets/..\\..\\x": b"x"}, "unexpected archive member"),
        ({"run.py": b"x"}, "member 'run.py'"),
        ({"assets/zeros": bytes(100 << 20)}, "would unpack to"),
        ({"config.json": b"{"}, "is damaged"),
        ({"config.json": b"\xff"}, "is damaged"),
        ({"config.json": b" " * (1 + (64 << 20))}, "its config.json exceeds 67,108,864 bytes"),
    ],
)
def test_members_that_are_more_than_data(archive, members, message):
    with pytest.raises(SavedModelError, match=message):
        untrusted.check_archive(rebuilt(archive, **members))


def test_what_would_take_long_to_look_at(archive):
    """Counted before it is opened: the check must not be the attack."""
    for members, message in (
        ({f"assets/{number}": b"" for number in range(10_001)}, "more than 10,000 members"),
        ({"config.json": b"[" + b"[]," * 2_000_000 + b"[]]"}, "more than 2,000,000 parts"),
    ):
        with pytest.raises(SavedModelError, match=message):
            untrusted.check_archive(rebuilt(archive, **members))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(archive):
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as one:
        one.writestr("config.json", "{}")
    with pytest.raises(SavedModelError, match="an archive member is in it twice"):
        untrusted.check_archive(file.getvalue())


# ── weights, which Keras checks ───────────────────────────────────────────────────────────────────────────────────────

KERNEL = "layers/dense_1/vars/0"
LINKED = ("layers", "layers/dense_1", "layers/dense_1/vars", KERNEL)


def weights(archive, make):
    """The archive's HDF5 file after ``make`` has changed it."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        file = io.BytesIO(members.read("model.weights.h5"))
    with h5py.File(file, "a") as root:
        make(root)
    return file.getvalue()


def link(where, kind, tmp_path, archive):
    """A change that links ``where`` to the same weights elsewhere: in this file or in another one."""

    def change(root):
        if kind == "external":
            (tmp_path / "other.h5").write_bytes(weights(archive, lambda _: None))
        else:
            root.copy("layers", root.create_group("copy"))
        del root[where]
        linked = h5py.SoftLink(f"/copy/{where}")
        root[where] = h5py.ExternalLink(str(tmp_path / "other.h5"), where) if kind == "external" else linked

    return change


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", ["external", "soft"])
@pytest.mark.parametrize("where", LINKED)
def test_weights_that_are_links(archive, tmp_path, monkeypatch, where, kind, on_disk):
    if on_disk:  # as Keras does it where memory is short; there, HDF5 could open other files
        monkeypatch.setattr("keras.src.saving.saving_lib.is_memory_sufficient", lambda _: False)
    data = weights(archive, link(where, kind, tmp_path, archive))
    with pytest.raises(SavedModelError, match=r"Not allowed|could not be loaded"):
        opened(rebuilt(archive, **{"model.weights.h5": data}))


def huge(root, tmp_path):
    del root[KERNEL]
    root.create_dataset(KERNEL, (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), fillvalue=1)


def external(root, tmp_path):
    shape = root[KERNEL].shape
    (tmp_path / "secret").write_bytes(bytes(root[KERNEL].nbytes))
    del root[KERNEL]
    root.create_dataset(KERNEL, shape, "f4", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])


def virtual(root, tmp_path):
    shape, values = root[KERNEL].shape, root[KERNEL][:]
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["w"] = values
    del root[KERNEL]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "w", shape)
    root.create_virtual_dataset(KERNEL, layout)


def cycle(root, tmp_path):
    del root["layers/dense_1"]
    root["layers/dense_1"] = root["layers"]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (huge, "declares 4.00 TB"),
        (external, "Not allowed: H5 file with external Dataset"),
        (virtual, "Not allowed: H5 file with virtual Dataset"),
        (cycle, "expected 2 variables, but received 0"),
    ],
)
def test_weights_that_are_more_than_numbers(archive, tmp_path, monkeypatch, make, message, on_disk):
    if on_disk:
        monkeypatch.setattr("keras.src.saving.saving_lib.is_memory_sufficient", lambda _: False)
    data = weights(archive, lambda root: make(root, tmp_path))
    with pytest.raises(SavedModelError, match=message):
        opened(rebuilt(archive, **{"model.weights.h5": data}))


def test_weights_that_are_no_hdf5(archive):
    with pytest.raises(SavedModelError, match="does not load the network"):
        opened(rebuilt(archive, **{"model.weights.h5": b"no HDF5"}))


# ── archives ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_symbolic_link_in_an_archive(archive):
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as one:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        one.writestr(link, "/etc/passwd")
    with pytest.raises(SavedModelError, match="member 'assets/link'"):
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
        opened(archives.dump_model(kind))
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
    with contextlib.suppress(CosMLError):
        Network.of(opened(damaged))


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
    with contextlib.suppress(CosMLError):
        Network.of(opened(damaged))


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


@pytest.mark.parametrize(("version", "remark"), [("99.1.0", True), ("3.15.1.dev2", False), ("3.2.0", False)])
def test_a_network_of_a_newer_keras(archive, tmp_path, version, remark):
    """Whatever it is that this Keras does not know: layers, their arguments, members of the archive."""
    metadata = json.dumps({"keras_version": version})
    current = import_keras().version()
    expected = (
        f"(Keras 99.1.0 saved it, which is newer than Keras {current} here: install Keras 99.1.0, or save it with"
    )
    for change, members in (
        (layer(class_name="NewLayer"), {}),
        (layer(config={"units": 1, "new": 2}), {}),
        (None, {"new.weights": b""}),
    ):
        changed = rebuilt(archive, change, **{"metadata.json": metadata}, **members)
        (tmp_path / "new.keras").write_bytes(changed)
        with pytest.raises(InvalidInputError) as raised:
            archives.network_from_file(tmp_path / "new.keras")
        assert (expected in str(raised.value)) == remark


def test_what_says_nothing_of_its_keras_is_refused_as_ever(archive):
    for metadata in (b"", b"[]", b'{"keras_version": null}', b"{" * 100_000):
        changed = rebuilt(archive, layer(class_name="NewLayer"), **{"metadata.json": metadata})
        with pytest.raises(SavedModelError, match="does not load the network") as raised:
            archives.load_model(changed)
        assert "newer" not in str(raised.value)
