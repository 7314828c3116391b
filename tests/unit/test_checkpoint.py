"""States on storage, without Spark: whole or not there, the last two, and nobody else's."""

import hashlib
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.errors import InvalidInputError
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointConfig, CheckpointStore, acquire

ROWS = [{"train": 1, "validation": 2}]


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    """A folder that is not there yet, on each kind of storage."""
    if request.param == "local":
        yield str(tmp_path / "states")
    else:
        yield f"memory://{tmp_path}"
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def state_of(epoch, step=0, seed=0):
    random = np.random.default_rng(seed)
    arrays = {"weights/0": random.normal(size=(3, 4)).astype(np.float32), "weights/1": np.array(7, np.int64)}
    return Checkpoint(epoch, step, {"history": {"loss": [0.5] * epoch}}, arrays)


def assert_same(one, other):
    assert (one.epoch, one.step, one.plain, list(one.arrays)) == (
        other.epoch,
        other.step,
        other.plain,
        list(other.arrays),
    )
    for name, array in other.arrays.items():
        assert (one.arrays[name].dtype, one.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(one.arrays[name], array)


def files(url):
    filesystem, root = fsspec.core.url_to_fs(url)
    return sorted(path.rsplit("/", 1)[-1] for path in filesystem.find(root))


def damage(states, epoch):
    """Take the last byte of a state away."""
    path = f"{states.path}/state-auto-{epoch:06}-000000000"
    states.filesystem.pipe_file(path, states.filesystem.cat_file(path)[:-1])


def test_the_newest_of_the_last_two(url):
    folder = CheckpointConfig(url, fit={"epochs": 3})
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    assert states.newest() is None
    for epoch, step in ((1, 0), (1, 32), (2, 0)):
        states.write(state_of(epoch, step))
        assert_same(CheckpointStore(folder, ROWS).newest(), state_of(epoch, step))
    assert files(url) == ["fit.json", "state-auto-000001-000000032", "state-auto-000002-000000000"]


def test_damaged_states_are_none_of_the_two_that_are_kept(url):
    folder = CheckpointConfig(url)
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    states.newest()
    for epoch in (5, 6):
        states.write(state_of(epoch))
        damage(states, epoch)
    states = CheckpointStore(folder, ROWS)
    assert states.newest() is None
    assert [note.split()[2] for note in states.notes] == ["state-auto-000006-000000000", "state-auto-000005-000000000"]
    states.write(state_of(1))
    assert files(url) == ["fit.json", "state-auto-000001-000000000"]
    states.write(state_of(5))
    states.write(state_of(6))
    assert files(url)[1:] == ["state-auto-000005-000000000", "state-auto-000006-000000000"]


class ObjectStorage(fsspec.get_filesystem_class("memory")):
    """Without folders, as S3's: there is none to be made, and none to be listed before it has a file."""

    protocol = "objects"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def makedirs(self, path, exist_ok=False):
        pass

    def _open(self, path, mode="rb", **options):
        if "w" in mode:
            super().makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return super()._open(path, mode, **options)


def test_storage_without_folders():
    fsspec.register_implementation("objects", ObjectStorage, clobber=True)
    folder = CheckpointConfig("objects://bucket/states", fit={"epochs": 3})
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    with pytest.raises(FileNotFoundError):
        states.filesystem.ls(states.path)
    assert states.newest() is None
    states.write(state_of(1))
    assert_same(CheckpointStore(folder, ROWS).newest(), state_of(1))


def test_a_damaged_one_is_reported_and_the_one_before_it_used(url):
    folder = CheckpointConfig(url)
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    states.newest()
    for epoch in (1, 2):
        states.write(state_of(epoch))
    damage(states, 2)
    assert_same(states.newest(), state_of(1))
    assert "state-auto-000002-000000000 is damaged" in states.notes[0]
    states.filesystem.pipe_file(f"{states.path}/state-auto-000001-000000000", b"")
    assert CheckpointStore(folder, ROWS).newest() is None


@given(st.data())
def test_no_damage_goes_unseen(data):
    whole = b"".join(bytes(piece) for piece in state_of(2).dump())
    assert_same(Checkpoint.load(whole), state_of(2))
    damage = data.draw(st.sampled_from(["flip", "cut", "more"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = {
        "flip": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": whole[:at],
        "more": whole + bytes(at + 1),
    }[damage]
    with pytest.raises(ValueError, match="the hash of its"):
        Checkpoint.load(changed)


def test_a_checkpoint_of_another_version_is_reported_as_damaged(url):
    folder = CheckpointConfig(url)
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    states.newest()
    for epoch, content in enumerate((b'{"epoch": 1, "step": 0, "plain": {}, "arrays": []}\n', b"[]\n"), 1):
        path = f"{states.path}/state-auto-{epoch:06}-000000000"
        states.filesystem.pipe_file(path, content + hashlib.blake2b(content).digest())
    assert states.newest() is None
    assert [note.split()[2] for note in states.notes] == ["state-auto-000002-000000000", "state-auto-000001-000000000"]


def test_a_writer_that_is_killed_leaves_the_old_one(url, monkeypatch):
    folder = CheckpointConfig(url)
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    states.newest()
    states.write(state_of(1))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(states.filesystem), "mv", killed)  # all is written but for the name
    with pytest.raises(KeyboardInterrupt):
        states.write(state_of(2))
    monkeypatch.undo()
    assert_same(CheckpointStore(folder, ROWS).newest(), state_of(1))
    assert files(url) == ["fit.json", "state-auto-000001-000000000"]  # and what it left is gone


def test_another_fit_is_told_what_differs(url):
    acquire(CheckpointConfig(url, fit={"epochs": 3, "seed": 1, "loss": "mse"}))
    acquire(CheckpointConfig(url, fit={"epochs": 3, "seed": 1, "loss": "mse"}))
    with pytest.raises(InvalidInputError, match=r"another fit: epochs is 3 there and 10 here; clip is null there"):
        acquire(CheckpointConfig(url, fit={"epochs": 10, "seed": 1, "loss": "mse", "clip": 1.0}))


def test_resume_never_drops_what_is_there(url):
    one = CheckpointConfig(url, fit={"epochs": 3})
    acquire(one)
    states = CheckpointStore(one, ROWS)
    states.newest()
    states.write(state_of(2))
    for fit in ({"epochs": 3}, {"epochs": 4}):
        afresh = CheckpointConfig(url, fit=fit, run="f00")
        acquire(afresh)
        assert CheckpointStore(afresh, ROWS).newest() is None
        assert files(url) == ["fit.json"]
    states = CheckpointStore(afresh, ROWS)
    states.write(state_of(1))
    assert_same(CheckpointStore(afresh, ROWS).newest(), state_of(1))  # Spark's retry of the same run goes on
    assert_same(CheckpointStore(CheckpointConfig(url, fit={"epochs": 4}), ROWS).newest(), state_of(1))


def test_states_on_other_rows_are_left_alone(url):
    folder = CheckpointConfig(url)
    acquire(folder)
    states = CheckpointStore(folder, ROWS)
    states.newest()
    states.write(state_of(2))
    others = CheckpointStore(folder, [{"train": 3, "validation": 2}])
    assert others.newest() is None
    assert "of other rows" in others.notes[0]
    assert_same(CheckpointStore(folder, ROWS).newest(), state_of(2))


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    for url in (f"{tmp_path}/file/states", "nosuchprotocol://somewhere"):
        with pytest.raises(InvalidInputError, match=r"Param checkpointDir: .* can't be used"):
            acquire(CheckpointConfig(url))
