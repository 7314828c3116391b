"""Folders of tables, by the marks of their logs; ``tests/tables`` has real ones."""

from __future__ import annotations

import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from cos_ml import stores
from cos_ml.commands import data
from cos_ml.data.columns import Column
from cos_ml.data.parquet_plan import plan
from cos_ml.data.table_formats import check_no_table, check_plain_files
from cos_ml.errors import InvalidInputError
from cos_ml.spec import TrainSpec

pytestmark = pytest.mark.once

SPEC = TrainSpec(inputs=(Column("x", "x0", ()),), labels=(Column("y", "y0"),))
NAMES = {"x0": "x", "y0": "y"}
MARKS = {
    "delta": ("Delta Lake", "_delta_log/00000000000000000000.json"),
    "iceberg": ("Iceberg", "metadata/version-hint.text"),
    "hudi": ("Hudi", ".hoodie/hoodie.properties"),
}
every_format = pytest.mark.parametrize("kind", MARKS)


def table(folder, kind, inside="day=1"):
    """A folder with a file of two rows and the mark of a table."""
    mark = folder / MARKS[kind][1]
    for one in (mark.parent, folder / inside):
        one.mkdir(parents=True, exist_ok=True)
    mark.touch()
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [1.0, 2.0]}), folder / inside / "part-0.parquet")
    return folder


def remedy(urls):
    """What the error for these URLs advises."""
    with pytest.raises(InvalidInputError, match="also has files of deleted and replaced rows") as error:
        plan(urls, SPEC, NAMES, 1)
    return str(error.value).partition(" Instead: ")[2]


@every_format
@pytest.mark.parametrize(
    ("below", "where"),
    [("", ""), ("/", ""), ("/day=1", ".where(\"day = '1'\")"), ("/day=1/part-0.parquet", ".where(\"day = '1'\")")],
)
def test_a_table_and_what_is_in_it(tmp_path, kind, below, where):
    url = table(tmp_path, kind).as_uri()
    assert remedy(url + below) == f'est.fit(spark.read.format("{kind}").load("{url}"){where}).'


@every_format
@pytest.mark.parametrize("above", ["warehouse", "warehouse/day=1"])
def test_folders_that_contain_a_table(tmp_path, kind, above):
    """Also those of a partitioned dataset."""
    found = table(tmp_path / above / "t", kind)
    assert remedy(str(tmp_path / "warehouse")) == f'est.fit(spark.read.format("{kind}").load("{found}")).'


def test_a_table_in_a_list(tmp_path):
    plain = tmp_path / "plain" / "part-0.parquet"
    plain.parent.mkdir()
    pq.write_table(pa.table({"x": [1.0], "y": [1.0]}), plain)
    found = table(tmp_path / "t", "delta")
    assert f'load("{found}")' in remedy([str(plain), f"{found}/day=1/part-0.parquet"])


def test_the_remedy_has_the_url_of_the_user(tmp_path):
    """With its scheme and host, which file systems of fsspec replace or leave out: s3a, hdfs."""
    folder = str(table(tmp_path, "delta"))
    for url, path in (("s3a://bucket/t/day=1/", f"{folder}/day=1/"), ("s3a://bucket", str(tmp_path.parent))):
        with pytest.raises(InvalidInputError) as error:
            check_plain_files(url, fsspec.filesystem("file"), path, [f"{folder}/_delta_log/0.json"])
        loaded = "s3a://bucket/t" if "day" in url else f"s3a://bucket/{tmp_path.name}"
        assert f'load("{loaded}")' in str(error.value)


def test_iceberg_in_a_catalog_is_read_by_its_name(tmp_path):
    """Only the catalog knows which of the files with metadata counts."""
    found = table(tmp_path, "iceberg")
    (found / "metadata" / "version-hint.text").rename(found / "metadata" / "00000-5f3c.metadata.json")
    assert remedy(str(found)) == 'est.fit(spark.read.format("iceberg").load("CATALOG.DATABASE.TABLE")).'


@every_format
def test_a_cache_is_kept_out_of_tables(tmp_path, kind):
    table(tmp_path / "t", kind)
    check_no_table(str(tmp_path))
    for folder in (tmp_path / "t", tmp_path / "t" / "not" / "yet"):
        with pytest.raises(
            InvalidInputError, match=rf"Param cacheDir: {folder} is in {tmp_path}/t, a table of .*outside"
        ):
            check_no_table(str(folder))


@every_format
@pytest.mark.parametrize("path", ["t", "t/day=1", ".", "*", "t/*/*.parquet"])
def test_commands_refuse_tables_and_globs_of_them(tmp_path, kind, path):
    found = table(tmp_path / "t", kind)
    with pytest.raises(InvalidInputError) as error:
        data._check_plain(f"{tmp_path}/{path}".removesuffix("/."))
    where = " --where \"day = '1'\"" if path == "t/day=1" else ""
    assert f"Instead: --data {found} --format {kind}{where}." in str(error.value).replace("file://", "")


def test_folders_above_that_nobody_may_look_at(tmp_path, monkeypatch):
    """As in a bucket of which a user may read a part."""
    info = LocalFileSystem.info

    def guarded(self, path, **options):
        if not path.startswith(f"{tmp_path}/rows/"):
            raise PermissionError(path)
        return info(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", guarded)
    filesystem = fsspec.filesystem("file")
    check_plain_files("rows", filesystem, f"{tmp_path}/rows", [])
    with pytest.raises(PermissionError):
        check_plain_files("others", filesystem, f"{tmp_path}/others", [])


def test_a_store_that_does_not_answer_at_once(tmp_path, monkeypatch):
    info, failures = LocalFileSystem.info, [OSError("busy")]
    found = table(tmp_path, "delta")

    def busy(self, path, **options):
        if path.endswith("_delta_log") and failures:
            raise failures.pop()
        return info(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "info", busy)
    monkeypatch.setattr(stores, "WAITS", (0.0,))
    with pytest.raises(InvalidInputError, match="is in"):
        check_no_table(f"{found}/cache")
    assert not failures


def test_no_folder_is_asked_twice(tmp_path, monkeypatch):
    info, asked = LocalFileSystem.info, []
    monkeypatch.setattr(LocalFileSystem, "info", lambda self, path, **options: asked.append(path) or info(self, path))
    files = [tmp_path / "day=1" / f"{index}.parquet" for index in range(3)]
    files[0].parent.mkdir()
    for file in files:
        pq.write_table(pa.table({"x": [1.0], "y": [1.0]}), file)
    assert plan([str(file) for file in files], SPEC, NAMES, 1).groups == 3
    logs = [path for path in asked if re.search(r"/(_delta_log|\.hoodie|metadata)$", str(path))]
    assert f"{tmp_path}/day=1/_delta_log" in logs
    assert len(logs) == len(set(logs))


def test_a_folder_called_metadata_makes_no_table(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "readme.json").touch()
    check_no_table(str(tmp_path))
