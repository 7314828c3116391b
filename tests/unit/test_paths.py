"""What Spark means by a path, and files on storage that is away, slow or read-only."""

import errno
import tempfile

import fsspec
import pytest

from cos_ml import callbacks, paths, stores
from cos_ml.caffe.prototxt import read_bytes
from cos_ml.commands.session import write_json
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.network.archive import read_file
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore, acquire
from cos_ml.rank.copied_files import with_local_path
from cos_ml.spec import CheckpointConfig
from tests.support.stores import FaultyStore, ObjectStore, Session

pytestmark = pytest.mark.once

HDFS, LOCAL = "hdfs://name:8020/user/me", "file:/home/my folder"
NAMENODE = 'user=me, inode="/x":other'


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch, tmp_path):
    """A rank's temporary folder, which ends with it."""
    (tmp_path / "of the rank").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "of the rank"))


@pytest.mark.parametrize(
    ("home", "path", "expected"),
    [
        (HDFS, "/data/x", "hdfs://name:8020/data/x"),
        (HDFS, "x/y", "hdfs://name:8020/user/me/x/y"),
        (HDFS, "../x", "hdfs://name:8020/user/x"),
        (HDFS, "hdfs:///data/x", "hdfs://name:8020/data/x"),
        (HDFS, "hdfs:/data/x", "hdfs://name:8020/data/x"),
        (HDFS, "hdfs://other/x", "hdfs://other/x"),
        (HDFS, "file:/x", "file:/x"),
        (HDFS, "s3a://bucket/x", "s3a://bucket/x"),
        (HDFS, "/a b/[x]", "hdfs://name:8020/a b/[x]"),
        ("s3a://bucket/user/me", "/x", "s3a://bucket/x"),
        ("hdfs://name:8020/", "x", "hdfs://name:8020/x"),
        (LOCAL, "/data/x", "/data/x"),
        (LOCAL, "x", "/home/my folder/x"),
        (LOCAL, "hdfs:///x", "hdfs:///x"),
        (LOCAL, "~/x", "~/x"),
    ],
)
def test_a_path_means_what_it_means_to_spark(home, path, expected):
    assert paths.qualified(Session(home), path) == expected


def test_spark_is_asked_once_in_a_session_and_again_where_its_default_changes():
    session = Session(HDFS)
    for name in ("a", "b"):
        paths.qualified(session, name)
    assert session.asked == 1
    session.default = "file:///"
    session.home = LOCAL
    assert paths.qualified(session, "x") == "/home/my folder/x"


def test_a_default_file_system_that_does_not_answer_is_no_local_one():
    with pytest.raises(InvalidInputError, match=r"fs\.defaultFS.*Connection refused.*file:///data/x"):
        paths.qualified(Session(ConnectionError("Connection refused")), "/data/x")
    with pytest.raises(InvalidInputError, match=r"fs\.defaultFS.*Connection refused\. .*hdfs://HOST"):
        paths.qualified(Session(ConnectionError("Connection refused.")), "hdfs:///data/x")


@pytest.mark.parametrize(("known", "expected"), [(True, "s3://b/x"), (False, "s3a://b/x")])
def test_spark_gets_s3a_where_it_does_not_know_s3(known, expected):
    assert paths.for_spark(Session(LOCAL, s3=known), "s3://b/x") == expected
    assert paths.for_spark(Session(LOCAL), "s3a://b/x") == "s3a://b/x"


def test_callbacks_write_where_spark_would():
    def qualified(plain, home=HDFS):
        return callbacks.with_qualified_path(plain, lambda path: paths.qualified(Session(home), path))["arguments"]

    table, board = callbacks.callback("CSVLogger", filename="/logs/a.csv"), callbacks.callback("TensorBoard")
    assert qualified(table)["filename"] == "hdfs://name:8020/logs/a.csv"
    assert qualified(board)["log_dir"] == "hdfs://name:8020/user/me/logs"
    assert qualified(table, LOCAL) == table["arguments"]
    mounted = callbacks.callback("ModelCheckpoint", filepath="file:///mnt/{epoch}.keras")
    assert qualified(mounted)["filepath"] == "/mnt/{epoch}.keras"
    remote = callbacks.callback("RemoteMonitor", root="http://host")
    assert qualified(remote) == remote["arguments"]


@pytest.mark.parametrize(
    ("raised", "url", "expected"),
    [
        (OSError("Unable to load libjvm: /usr/java/lib"), "hdfs://name/x", r'pip install "cos-ml\[hdfs\]"'),
        (ImportError("Install s3fs to access S3"), "s3a://b/x", r'pip install "cos-ml\[s3\]"'),
        (ImportError("Install s3fs to access S3"), "zip://a::s3://b/x", r'pip install "cos-ml\[s3\]"'),
        (ImportError('requires "aiohttp"'), "http://host/x", 'http://host/x can.t be opened .* requires "aiohttp"'),
        (ValueError("Protocol not known: foo"), "foo://x", "foo://x can.t be opened"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, raised, url, expected):
    def fail(url):
        raise raised

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(SetupError, match=expected):
        stores.open_filesystem(url)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited."""
    found = []
    monkeypatch.setattr(stores.time, "sleep", found.append)
    return found


@pytest.fixture(params=[FaultyStore, ObjectStore])
def store(request, tmp_path):
    """A store whose next operations fail as the test says."""
    kind = request.param
    kind.reset()
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    yield kind
    kind.reset()


def checkpoint_of(epoch):
    return Checkpoint(epoch, 0, {}, {})


def test_what_a_busy_store_refuses_is_tried_again(store, waits):
    config = CheckpointConfig(f"{store.protocol}://checkpoints")
    busy = OSError(errno.EBUSY, "503 Slow Down")
    store.failures = [busy, ConnectionError("away")]
    acquire(config)
    assert waits == [1, 2]
    folder = CheckpointStore(config, [])
    folder.newest()
    for epoch in (1, 2, 3):
        store.failures = [busy]
        folder.write(checkpoint_of(epoch))
    assert CheckpointStore(config, []).newest().epoch == 3
    assert not [path for path in store().find("/") if "/." in path]


def test_a_store_that_stays_away_is_given_up_and_nothing_is_lost(store, waits):
    config = CheckpointConfig(f"{store.protocol}://checkpoints")
    acquire(config)
    folder = CheckpointStore(config, [])
    folder.newest()
    folder.write(checkpoint_of(1))
    waits.clear()
    store.failures = [ConnectionError("away")] * 100
    with pytest.raises(ConnectionError, match="away"):
        folder.write(checkpoint_of(2))
    assert waits == list(stores.WAITS)
    store.failures = []
    assert CheckpointStore(config, []).newest().epoch == 1


def test_a_store_that_does_not_answer_is_not_an_empty_one(store, waits):
    config = CheckpointConfig(f"{store.protocol}://checkpoints")
    acquire(config)
    CheckpointStore(config, []).write(checkpoint_of(1))
    store.failures = [ConnectionError("away")] * 2  # the checkpoints of another fit would be deleted
    acquire(config)
    assert CheckpointStore(config, []).newest().epoch == 1


def test_a_rename_whose_answer_was_lost_loses_no_file(monkeypatch):
    def moved(store, *paths):
        move(store, *paths)
        raise ConnectionError("away")

    FaultyStore.reset()
    move = FaultyStore.mv
    monkeypatch.setattr(FaultyStore, "mv", moved)
    stores.write_whole(FaultyStore(), "/x/file", [b"whole"])
    assert FaultyStore().cat_file("/x/file") == b"whole"
    FaultyStore.reset()


def test_what_could_not_be_written_leaves_nothing(waits):
    FaultyStore.reset()
    FaultyStore.failures = [None, PermissionError("read-only")]  # the file is written, and not renamed
    with pytest.raises(PermissionError):
        stores.write_whole(FaultyStore(), "/x/file", [b"whole"])
    assert not FaultyStore().find("/")


def test_early_versions_of_fsspec_rename_local_files_too(monkeypatch, tmp_path):
    system = fsspec.filesystem("file")
    monkeypatch.setattr(type(system), "mv", fsspec.AbstractFileSystem.mv)
    stores.make_folder(system, str(tmp_path / "folder"))
    for content in (b"1", b"2"):
        stores.write_whole(system, str(tmp_path / "folder" / "file"), [content])
    assert [path.read_bytes() for path in (tmp_path / "folder").iterdir()] == [b"2"]


def test_a_file_that_is_read_has_the_same_version():
    """HDFS notes when, and a fit would not resume on its files."""
    info = {"name": "/x", "size": 3, "type": "file", "modification_time": 1, "access_time": 2}
    assert stores.version_of(info) == stores.version_of(info | {"access_time": 9}) == ["3", "1"]
    assert stores.version_of({"size": 3, "hash": "a"}) != stores.version_of({"size": 3, "hash": "b"})


def test_a_client_that_has_tried_for_long_is_not_asked_again(waits, monkeypatch):
    def fail():
        raise ConnectionError("away")

    times = iter([0, stores.LONGEST + 1])
    monkeypatch.setattr(stores.time, "monotonic", lambda: next(times))
    with pytest.raises(ConnectionError):
        stores.retried(fail)
    assert not waits


def test_an_object_store_gets_no_folders(waits):
    ObjectStore.reset()
    stores.make_folder(ObjectStore(), "/bucket-of-a-typo/x")
    assert not ObjectStore().exists("/bucket-of-a-typo")


def test_what_a_store_denies_is_not_tried_again(store, waits):
    store.failures = [PermissionError("read-only")]
    with pytest.raises(InvalidInputError, match=r"Param checkpointDir: .* can't be used: PermissionError: read-only"):
        acquire(CheckpointConfig(f"{store.protocol}://checkpoints"))
    store.failures = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(InvalidInputError, match="No space left"):
        acquire(CheckpointConfig(f"{store.protocol}://checkpoints"))
    assert not waits


@pytest.mark.parametrize(
    ("kind", "expected", "waited"),
    [
        ("AccessControlException", PermissionError(NAMENODE), []),
        ("protocol.DSQuotaExceededException", OSError(errno.EDQUOT, NAMENODE), []),
        ("namenode.SafeModeException", RuntimeError(f"SafeModeException: {NAMENODE}"), list(stores.WAITS)),
    ],
)
def test_a_name_node_answers_without_its_stack_trace(waits, kind, expected, waited):
    def denied():
        raise RuntimeError(rf'RPCError("org.apache.hadoop.{kind}", "user=me, inode=\"/x\":other\n\tat org.apache")')

    with pytest.raises(type(expected)) as found:
        stores.retried(denied)
    assert repr(found.value) == repr(expected)
    assert waits == waited


def test_a_network_is_read_from_any_store(store, waits, monkeypatch, tmp_path):
    store().pipe_file("/nets/x.keras", b"network")
    store.failures = [ConnectionError("away")]
    assert read_file(f"{store.protocol}://nets/x.keras") == b"network"
    local = tmp_path / "x.keras"
    local.write_bytes(b"network")
    monkeypatch.setattr("cos_ml.network.archive.qualified_file", lambda path: f"{store.protocol}:/{path}")
    with pytest.raises(FileNotFoundError, match=f"does not exist. For the file on this machine: file://{local}"):
        read_file(str(local))


def test_other_files_are_read_and_written_whole_on_any_store(store, waits):
    store().pipe_file("/nets/x.prototxt", b"name: 'x'")
    store.failures = [ConnectionError("away")]
    assert read_bytes(f"{store.protocol}://nets/x.prototxt", "a network") == b"name: 'x'"
    store.failures = [ConnectionError("away")]
    write_json({"loss": 0.5}, f"{store.protocol}://results/x.json")
    assert store().cat_file("/results/x.json") == b'{\n  "loss": 0.5\n}\n'
    assert waits == [1, 1]
    assert not [path for path in store().find("/") if "/." in path]


def test_files_of_callbacks_are_copied_to_a_store(store, waits):
    url, notes = f"{store.protocol}://logs", []
    store().pipe_file("/logs/a.csv", b"epoch\n0\n")
    plain = callbacks.callback("CSVLogger", filename=f"{url}/a.csv", append=True)
    local, copies = with_local_path(plain, lambda **event: notes.append(event["text"]))
    with open(local["arguments"]["filename"], "a") as file:  # it is there
        file.write("1\n")
    store.failures = [ConnectionError("away")]
    copies.on_epoch_end(1)
    assert store().cat_file("/logs/a.csv") == b"epoch\n0\n1\n"
    with open(local["arguments"]["filename"], "a") as file:
        file.write("2\n")
    store.failures = [PermissionError("read-only")]
    copies.on_epoch_end(2)
    assert notes == [f"CSVLogger's files could not be written to {url} after epoch 3: PermissionError('read-only')."]
    copies.on_train_end()
    assert store().cat_file("/logs/a.csv") == b"epoch\n0\n1\n2\n"


def test_fields_of_a_callbacks_path_stay(store):
    plain = callbacks.callback("ModelCheckpoint", filepath=f"{store.protocol}://nets/run-{{epoch}}/x.keras")
    local, copies = with_local_path(plain, None)
    assert local["arguments"]["filepath"] == f"{copies.local}/run-{{epoch}}/x.keras"
    assert with_local_path(local, None) == (local, None)
