"""Files at URLs for readers that need a local disk: copied once, to the executor's folder."""

import errno
from pathlib import Path

import fsspec
import lmdb
import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.sources.lmdb import LmdbDataSource, LmdbReader
from tests.support.stores import FaultyStore

pytestmark = pytest.mark.once


class CountingStore(FaultyStore):
    """Counts how often a file is copied from it."""

    protocol = "counting"
    copied = 0

    def get_file(self, *args, **options):
        self._fail()
        type(self).copied += 1
        super().get_file(*args, **options)


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A database at a URL, read by an executor with a folder of its own."""
    with lmdb.open(str(tmp_path / "database")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", b"1")
        transaction.put(b"b", b"2")
    (tmp_path / "executor").mkdir()
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path / 'executor'},/other")
    monkeypatch.setattr("cos_ml.stores.WAITS", (0, 0))
    CountingStore.reset()
    CountingStore.copied = 0
    fsspec.register_implementation("counting", CountingStore, clobber=True)
    CountingStore().pipe_file("/sets/database/data.mdb", (tmp_path / "database" / "data.mdb").read_bytes())
    yield "counting://sets/database"
    CountingStore.reset()


def keys(reader):
    return [row["key"] for part in reader.partitions() for batch in reader.read(part) for row in batch.to_pylist()]


def test_a_database_at_a_url_is_copied_once_to_an_executor(url, tmp_path):
    CountingStore.failures = [ConnectionError("away")]
    assert keys(LmdbReader(url, True, 2, ["key"])) == [b"a", b"b"]
    assert keys(LmdbReader(f"{url}/data.mdb", True, 1, ["key"])) == [b"a", b"b"]
    assert CountingStore.copied == 1
    assert not [path.name for path in (tmp_path / "executor").iterdir() if path.name.endswith(".part")]


def test_a_copy_that_fails_takes_no_room(url, tmp_path, monkeypatch):
    def full(self, path, local):
        Path(local).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CountingStore, "get_file", full)
    with pytest.raises(OSError, match="No space left"):
        keys(LmdbReader(url, True, 1, ["key"]))
    assert [path.suffix for path in (tmp_path / "executor").iterdir()] == [".lock"]


def test_errors_name_the_url(url):
    with pytest.raises(InvalidInputError, match=r"There is no file data\.mdb at counting://sets"):
        keys(LmdbReader("counting://sets/none", True, 1, ["key"]))
    with pytest.raises(InvalidInputError, match=f"{url} has no database 'x'"):
        keys(LmdbReader(url, True, 1, ["key"], "x"))


def test_without_spark_nothing_is_left_behind(url, monkeypatch):
    monkeypatch.delenv("SPARK_LOCAL_DIRS")
    with pytest.raises(InvalidInputError, match="Only Spark can read"):
        keys(LmdbReader(url, True, 1, ["key"]))


def test_a_path_without_a_scheme_is_where_hadoop_has_it(tmp_path, monkeypatch):
    core = "<configuration><property><name>fs.defaultFS</name><value>{}</value></property></configuration>"
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    for default, expected in [("hdfs://name:8020/", "hdfs://name:8020/data/set"), ("file:///", "/data/set")]:
        (tmp_path / "core-site.xml").write_text(core.format(default))
        assert LmdbDataSource({"path": "/data/set"}).path == expected
        assert LmdbDataSource({"path": "file:///data/set"}).path == "/data/set"
        assert LmdbDataSource({"path": "s3a://b/set"}).path == "s3a://b/set"
    (tmp_path / "core-site.xml").write_text(core.format("hdfs://name:8020"))
    with pytest.raises(InvalidInputError, match="'set' is a relative path on hdfs://name:8020"):
        LmdbDataSource({"path": "set"})
    with pytest.raises(InvalidInputError, match="can't be written to hdfs://name:8020/data/set"):
        LmdbDataSource({"path": "/data/set"}).writer(None, True)
