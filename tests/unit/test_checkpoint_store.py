"""Checkpoints on storage, without Spark: the last two, written whole, and only those of one training."""

import errno
import hashlib
import json
import os
import threading
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.data import blobs
from cos_ml.errors import InvalidInputError, RankError, SetupError
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore, acquire, find
from cos_ml.spec import CheckpointConfig
from tests.support.stores import FaultyStore

pytestmark = pytest.mark.once

ROWS = [{"train": 1, "validation": 2}]


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    """A folder that does not exist yet, on each kind of storage."""
    if request.param == "local":
        yield str(tmp_path / "checkpoints")
    else:
        yield f"memory://{tmp_path}"
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def checkpoint_of(epoch, step=0, seed=0):
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


def damage(store, epoch):
    """Remove the last byte of a checkpoint."""
    path = f"{store.path}/checkpoint-auto-{epoch:06}-000000000"
    store.filesystem.pipe_file(path, store.filesystem.cat_file(path)[:-1])


def test_the_newest_of_the_last_two(url):
    config = CheckpointConfig(url, fit={"epochs": 3})
    acquire(config)
    store = CheckpointStore(config, ROWS)
    assert store.newest() is None
    for epoch, step in ((1, 0), (1, 32), (2, 0)):
        store.write(checkpoint_of(epoch, step))
        assert_same(CheckpointStore(config, ROWS).newest(), checkpoint_of(epoch, step))
    assert files(url) == ["checkpoint-auto-000001-000000032", "checkpoint-auto-000002-000000000", "fit.json"]


def test_damaged_checkpoints_do_not_count_as_the_two_that_are_kept(url):
    config = CheckpointConfig(url)
    acquire(config)
    store = CheckpointStore(config, ROWS)
    store.newest()
    for epoch in (5, 6):
        store.write(checkpoint_of(epoch))
        damage(store, epoch)
    store = CheckpointStore(config, ROWS)
    assert store.newest() is None
    assert [note.split()[2] for note in store.notes] == [
        "checkpoint-auto-000006-000000000",
        "checkpoint-auto-000005-000000000",
    ]
    store.write(checkpoint_of(1))
    assert files(url) == ["checkpoint-auto-000001-000000000", "fit.json"]
    store.write(checkpoint_of(5))
    store.write(checkpoint_of(6))
    assert files(url)[:-1] == ["checkpoint-auto-000005-000000000", "checkpoint-auto-000006-000000000"]


class ObjectStorage(fsspec.get_filesystem_class("memory")):
    """Storage without folders, such as S3: none can be made, nor listed before it has a file."""

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
    config = CheckpointConfig("objects://bucket/checkpoints", fit={"epochs": 3})
    acquire(config)
    store = CheckpointStore(config, ROWS)
    with pytest.raises(FileNotFoundError):
        store.filesystem.ls(store.path)
    assert store.newest() is None
    store.write(checkpoint_of(1))
    assert_same(CheckpointStore(config, ROWS).newest(), checkpoint_of(1))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(url):
    config = CheckpointConfig(url)
    acquire(config)
    store = CheckpointStore(config, ROWS)
    store.newest()
    for epoch in (1, 2):
        store.write(checkpoint_of(epoch))
    damage(store, 2)
    assert_same(store.newest(), checkpoint_of(1))
    assert "checkpoint-auto-000002-000000000 is damaged" in store.notes[0]
    store.filesystem.pipe_file(f"{store.path}/checkpoint-auto-000001-000000000", b"")
    assert CheckpointStore(config, ROWS).newest() is None


@given(st.data())
def test_all_damage_is_detected(data):
    whole = b"".join(bytes(piece) for piece in checkpoint_of(2).dump())
    assert_same(Checkpoint.load(whole), checkpoint_of(2))
    damage = data.draw(st.sampled_from(["flip", "cut", "more"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = {
        "flip": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": whole[:at],
        "more": whole + bytes(at + 1),
    }[damage]
    with pytest.raises(ValueError, match="its hash does not match"):
        Checkpoint.load(changed)


def test_a_checkpoint_of_another_version_is_reported_as_damaged(url):
    config = CheckpointConfig(url)
    acquire(config)
    store = CheckpointStore(config, ROWS)
    store.newest()
    for epoch, content in enumerate((b'{"epoch": 1, "step": 0, "plain": {}, "arrays": []}\n', b"[]\n"), 1):
        path = f"{store.path}/state-auto-{epoch:06}-000000000"
        store.filesystem.pipe_file(path, content + hashlib.blake2b(content).digest())
    assert store.newest() is None
    assert [note.split()[2] for note in store.notes] == ["state-auto-000002-000000000", "state-auto-000001-000000000"]


def stored(url, epochs=(1, 2)):
    """A store with checkpoints after these epochs."""
    acquire(CheckpointConfig(url))
    store = CheckpointStore(CheckpointConfig(url), ROWS)
    store.newest()
    for epoch in epochs:
        store.write(checkpoint_of(epoch))
    return store


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"format": 2, "epoch": 2, "step": 0, "plain": {}}, "it has format 2, expected 1: another version of cos_ml"),
        ({"epoch": 2, "plain": {}}, "its header lacks"),
        ({"epoch": 2, "step": -1, "plain": {}}, "its header lacks"),
        ({"epoch": 2, "step": 0, "plain": []}, "its header lacks"),
        ([], "its header lacks"),
    ],
)
def test_a_checkpoint_of_another_layout_is_passed_over(url, header, why):
    """Its hash is right."""
    store = stored(url)
    content = b"".join(map(bytes, blobs.dump({"header": json.dumps(header).encode()})))
    path = f"{store.path}/checkpoint-auto-000002-000000000"
    store.filesystem.pipe_file(path, content + hashlib.blake2b(content).digest())
    assert_same(store.newest(), checkpoint_of(1))
    assert why in store.notes[0]


def test_a_checkpoint_that_states_no_format_is_read(url):
    """Those of versions before the format was stated have the same one."""
    store = stored(url, [1])
    header = {"epoch": 3, "step": 0, "plain": {"history": {"loss": [0.5] * 3}}}
    content = b"".join(map(bytes, blobs.dump({"header": json.dumps(header).encode(), **checkpoint_of(3).arrays})))
    path = f"{store.path}/checkpoint-auto-000003-000000000"
    store.filesystem.pipe_file(path, content + hashlib.blake2b(content).digest())
    assert_same(store.newest(), checkpoint_of(3))


def test_a_checkpoint_that_does_not_fit_the_training_is_passed_over(url):
    def check(checkpoint):
        if checkpoint.epoch == 2:
            raise ValueError("its weights are others")

    store = stored(url)
    assert_same(store.newest(check), checkpoint_of(1))
    assert "its weights are others" in store.notes[0]


def test_a_checkpoint_that_was_moved_here_from_other_rows_or_another_fit_is_passed_over(url):
    """As those of two folds, swapped by hand: a fold that went on from the other's has seen its own validation rows."""
    here, other_rows = stored(url, [1]), CheckpointStore(CheckpointConfig(url), [{"train": 3, "validation": 2}])
    other_fit = CheckpointStore(CheckpointConfig(f"{url}/other", fit={"seed": 1}), ROWS)
    for epoch, other in enumerate((other_rows, other_fit), 2):
        other.newest()
        other.write(checkpoint_of(epoch))
        name = f"checkpoint-auto-{epoch:06}-000000000"
        here.filesystem.pipe_file(f"{here.path}/{name}", here.filesystem.cat_file(f"{other.path}/{name}"))
    assert_same(here.newest(), checkpoint_of(1))
    assert all("not of this training (it is of another training)" in note for note in here.notes)
    assert len(here.notes) == 2


def test_a_folder_in_the_place_of_a_checkpoint(tmp_path):
    store = stored(str(tmp_path))
    os.mkdir(f"{store.path}/checkpoint-auto-000003-000000000")
    os.mkdir(f"{store.path}/.snapshot")  # of a file server
    assert_same(store.newest(), checkpoint_of(2))
    assert store.notes == [
        "The checkpoint checkpoint-auto-000003-000000000 is a folder. The one before it is used, if any."
    ]
    with pytest.raises(IsADirectoryError, match="is a folder: remove it"):
        store.write(checkpoint_of(3))
    store.write(checkpoint_of(4))
    assert_same(store.newest(), checkpoint_of(4))


@pytest.mark.parametrize("how", ["local", "faulty"])
def test_a_full_disk_leaves_nothing_unfinished(tmp_path, monkeypatch, how):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    if how == "faulty":
        FaultyStore.reset()
        fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    store = stored("faulty://x/y" if how == "faulty" else str(tmp_path), [1])
    if how == "faulty":
        monkeypatch.setattr(FaultyStore, "mv", fail)
    else:
        monkeypatch.setattr("cos_ml.stores.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        store.write(checkpoint_of(2))
    names = [path.rpartition("/")[2] for path in store.filesystem.ls(store.path, detail=False)]
    assert names == ["checkpoint-auto-000001-000000000"]


def test_a_writer_that_is_killed_leaves_the_old_checkpoint(url, monkeypatch):
    config = CheckpointConfig(url)
    acquire(config)
    store = CheckpointStore(config, ROWS)
    store.newest()
    store.write(checkpoint_of(1))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(store.filesystem), "mv", killed)  # after writing, before renaming
    with pytest.raises(KeyboardInterrupt):
        store.write(checkpoint_of(2))
    monkeypatch.undo()
    assert_same(CheckpointStore(config, ROWS).newest(), checkpoint_of(1))
    assert files(url) == ["checkpoint-auto-000001-000000000", "fit.json"]  # the unfinished file is gone


def test_the_error_for_another_fit_names_the_differences(url):
    acquire(CheckpointConfig(url, fit={"epochs": 3, "seed": 1, "loss": "mse"}))
    acquire(CheckpointConfig(url, fit={"epochs": 3, "seed": 1, "loss": "mse"}))
    with pytest.raises(InvalidInputError, match=r"another fit: epochs was 3 and is 10 now; clip was null"):
        acquire(CheckpointConfig(url, fit={"epochs": 10, "seed": 1, "loss": "mse", "clip": 1.0}))


def test_resume_never_deletes_earlier_checkpoints(url):
    one = CheckpointConfig(url, fit={"epochs": 3})
    acquire(one)
    store = CheckpointStore(one, ROWS)
    store.newest()
    store.write(checkpoint_of(2))
    for fit in ({"epochs": 3}, {"epochs": 4}):
        afresh = CheckpointConfig(url, fit=fit, run="f00")
        acquire(afresh)
        assert CheckpointStore(afresh, ROWS).newest() is None
        assert files(url) == ["fit.json"]
    store = CheckpointStore(afresh, ROWS)
    store.write(checkpoint_of(1))
    assert_same(CheckpointStore(afresh, ROWS).newest(), checkpoint_of(1))  # Spark's retry of the same run resumes
    assert_same(CheckpointStore(CheckpointConfig(url, fit={"epochs": 4}), ROWS).newest(), checkpoint_of(1))


@pytest.mark.parametrize(
    "content", [b"", b'{"epochs": 3', b"\xff\xfe", b"[" * 100_000, b"[1, 2]", b'{"name": "other"}']
)
def test_a_fit_json_that_is_damaged_or_foreign(url, content):
    """Nobody knows whose checkpoints are there: they are kept, until resume="never" says otherwise."""
    store = stored(url)
    store.filesystem.pipe_file(f"{store.root}/fit.json", content)
    damaged = "" if content.startswith((b"[1", b'{"n')) else "damaged "
    expected = f'contains a {damaged}fit.json.*Use another folder for this fit, or set resume="never" to delete'
    one = CheckpointConfig(url, fit={"epochs": 3})
    with pytest.raises(InvalidInputError, match=expected):
        acquire(one)
    assert len(files(url)) == 3
    acquire(CheckpointConfig(url, fit={"epochs": 3}, run="f00"))
    assert files(url) == ["fit.json"]
    acquire(one)


def test_a_fit_json_that_is_a_folder(tmp_path):
    (tmp_path / "fit.json").mkdir()
    for run in ("auto", "f00"):
        with pytest.raises(
            InvalidInputError, match=r"fit\.json is a folder, expected a file of cos_ml or none. Remove"
        ):
            acquire(CheckpointConfig(str(tmp_path), run=run))


def test_a_folder_that_can_not_be_read_is_another_error():
    FaultyStore.reset()
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    acquire(CheckpointConfig("faulty://x/y", fit={"epochs": 3}))
    FaultyStore.failures[:] = [None, None, PermissionError("denied")]
    with pytest.raises(InvalidInputError, match=r"can't be used: PermissionError: denied\. Expected a folder"):
        acquire(CheckpointConfig("faulty://x/y", fit={"epochs": 3}))


def test_checkpoints_of_other_rows_are_left_alone(url):
    config = CheckpointConfig(url)
    acquire(config)
    store = CheckpointStore(config, ROWS)
    store.newest()
    store.write(checkpoint_of(2))
    others = CheckpointStore(config, [{"train": 3, "validation": 2}])
    assert others.newest() is None
    assert "belong to other rows" in others.notes[0]
    assert_same(CheckpointStore(config, ROWS).newest(), checkpoint_of(2))


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"Param checkpointDir: .* can't be used"):
        acquire(CheckpointConfig(f"{tmp_path}/file/checkpoints"))
    with pytest.raises(SetupError, match="nosuchprotocol://somewhere can't be opened"):
        acquire(CheckpointConfig("nosuchprotocol://somewhere"))


def test_storage_that_does_not_answer_is_an_error_in_time(tmp_path, monkeypatch):
    """It is not known where the training is, so neither a start from its first epoch nor a retry would be right."""
    over = threading.Event()
    config = CheckpointConfig(str(tmp_path / "checkpoints"))
    monkeypatch.setattr(CheckpointStore, "newest", lambda *_: over.wait(60))
    with pytest.raises(RankError, match=r"checkpoints did not answer within 0\.1 s .*stallTimeout"):
        find(config, ROWS, 0.1)
    over.set()


def test_what_the_storage_raises_while_it_is_looked_for_is_raised(tmp_path):
    url = str(tmp_path)
    assert find(CheckpointConfig(url, fit={"epochs": 3}), ROWS, 60)[1] is None
    with pytest.raises(InvalidInputError, match="another fit"):
        find(CheckpointConfig(url, fit={"epochs": 4}), ROWS, 60)


def test_a_checkpoint_that_arrives_in_part_is_read_again(url, monkeypatch):
    store = CheckpointStore(CheckpointConfig(url), ROWS)
    store.newest()
    store.write(checkpoint_of(1))
    read, answers = store.filesystem.cat_file, iter([slice(100), slice(None)])
    monkeypatch.setattr(store.filesystem, "cat_file", lambda path: read(path)[next(answers)])
    assert_same(store.newest(), checkpoint_of(1))
    assert not store.notes
