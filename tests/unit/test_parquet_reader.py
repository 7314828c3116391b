"""What the feed "parquet" reads that petastorm does not: types, folders, lists of files, file systems."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from cos_ml import stores
from cos_ml.data import parquet
from cos_ml.data.columns import Column
from cos_ml.data.parquet import Shards, plan
from cos_ml.data.table_formats import check_plain_files
from cos_ml.errors import InvalidInputError
from cos_ml.rank import parquet_reader, row_copies
from cos_ml.rank.shard_rows import ShardRows, reader_of
from cos_ml.spec import TrainSpec

Y = Column("y", "y0")
VIEWS = [pa.string_view()] if hasattr(pa, "string_view") else []  # pyarrow 16 and later
VECTOR = pa.struct([("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())),
                    ("values", pa.list_(pa.float64()))])  # fmt: skip


def shard(urls, spec, names, rank=0, ranks=1, part="train", **options):
    shards = plan(urls if isinstance(urls, list) else str(urls), spec, names, ranks, **options)
    return ShardRows(part, spec, Shards(**json.loads(json.dumps(asdict(shards)))), rank)


def rows_of(shard, shuffle=False, seed=(1,), size=4):
    """The arrays of one pass."""
    batches = list(shard.ordered(shuffle, seed).batches(size, -(-shard.count // size), {}))
    return {field: np.concatenate([batch.arrays[field] for batch in batches]) for field in batches[0].arrays}


def write(folder, rows=12, group=3, files=2, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    for index, numbers in enumerate(np.array_split(np.arange(rows), files)):
        table = pa.table({"x": [[float(n), -float(n)] for n in numbers], "y": numbers.astype(float)} | columns)
        pq.write_table(table, folder / f"part-{index}.parquet", row_group_size=group)
    return folder


SPEC = TrainSpec(inputs=(Column("x", "x0", (2,)),), labels=(Y,))
NAMES = {"x0": "x", "y0": "y"}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (pa.array([[1, 2], [3, 4]], pa.large_list(pa.float64())), "x"),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)), "x"),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.uint16())), "x"),
        (pa.array([[[1], [2]], [[3], [4]]], pa.list_(pa.list_(pa.float64()))), "x"),
        (pa.array([{"a": {"b": [1, 2]}}, {"a": {"b": [3, 4]}}]), [["x", "a", "b"]]),
        (pa.array([{"type": 1, "values": [1, 2]},
                   {"type": 0, "size": 2, "indices": [0, 1], "values": [3, 4]}], VECTOR), "x"),
        (pa.array([b"\1\2", b"\3\4"], pa.large_binary()), "x"),
        (pa.array([b"\1\2", b"\3\4"], pa.binary(2)), "x"),
    ],
    ids=["large_list", "fixed_size_list", "uint16", "nested", "struct", "Vector", "large_binary", "fixed_size_binary"],
)  # fmt: skip
def test_types(tmp_path, values, name):
    pq.write_table(pa.table({"x": values, "y": [0.0, 1.0]}), tmp_path / "rows.parquet")
    rows = rows_of(shard(tmp_path, SPEC, {"x0": name, "y0": "y"}))
    assert rows["x0"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), *VIEWS])
def test_strings(tmp_path, kind):
    texts = pa.array(["a", "b", "a"])
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    pq.write_table(pa.table({"x": texts, "y": [0.0] * 3}), tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (), "string"),), labels=(Y,))
    assert rows_of(shard(tmp_path, spec, NAMES))["x0"].tolist() == [b"a", b"b", b"a"]


def test_columns_that_are_joined(tmp_path):
    table = pa.table({"the price": [1.0, 2.0], "more": [[3, 4], [5, 6]], "y": [0.0, 1.0]})
    pq.write_table(table, tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (3,), parts=("the price", "more")),), labels=(Y,))
    assert rows_of(shard(tmp_path, spec, {"x0": [["the price"], ["more"]], "y0": "y"}))["x0"].tolist() == [
        [1, 3, 4], [2, 5, 6]]  # fmt: skip


def test_entries_of_sparse_vectors(tmp_path):
    vectors = pa.array(
        [{"type": 0, "size": 9, "indices": [2, 7], "values": [5, 0]}, {"type": 1, "values": [0, 3]}], VECTOR
    )
    pq.write_table(pa.table({"v": vectors, "y": [0.0, 1.0]}), tmp_path / "rows.parquet")
    columns = [Column(f"v.{part}", f"x{index}", (None,)) for index, part in enumerate(("indices", "values"))]
    spec = TrainSpec(inputs=tuple(columns), labels=(Y,))
    names = {"x0": [["v", "indices"]], "x1": [["v", "values"]], "y0": "y"}
    (batch,) = shard(tmp_path, spec, names).ordered(False, ()).batches(2, 1, {})
    assert batch.arrays["x0"].tolist() == [[2], [1]]
    assert batch.arrays["x1"].tolist() == [[5], [3]]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (pa.array(["a"]), "float32", r"Column 'x' of the file \S+ is stored as string: expected numbers"),
        (pa.array([1]), "string", "is stored as int64: expected strings"),
        (pa.array([[1]]).cast(pa.list_(pa.timestamp("us"))), "float32", "is stored as list.*expected numbers"),
    ],
)
def test_types_that_no_network_takes(tmp_path, values, dtype, message):
    pq.write_table(pa.table({"x": values, "y": [0.0]}), tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (), dtype),), labels=(Y,))
    with pytest.raises(InvalidInputError, match=message):
        plan(str(tmp_path), spec, NAMES, 1)


@pytest.mark.parametrize("name", ["label", "_label"])
def test_values_in_the_names_of_folders(tmp_path, name):
    for label in (0, 1):
        write(tmp_path / f"{name}={label}" / "held=__HIVE_DEFAULT_PARTITION__", rows=4, files=1)
    for hidden in ("_temporary", ".staging", f"{name}=1/_temporary"):
        write(tmp_path / hidden / f"{name}=1", rows=4, files=1)
    spec = TrainSpec(inputs=SPEC.inputs, labels=(Column(name, "y0", classes=2),), weight=None)
    rows = shard(tmp_path, spec, {"x0": "x", "y0": name})
    assert rows_of(rows)["y0"].tolist() == [0] * 4 + [1] * 4
    assert np.concatenate([piece["y0"] for piece in rows.scan(["y0"])]).sum() == 4  # reads no column of the files
    held = TrainSpec(inputs=SPEC.inputs, labels=(Column("held", "y0"),))
    with pytest.raises(InvalidInputError, match="column 'held', row 0: is null"):
        shard(tmp_path, held, {"x0": "x", "y0": "held"})


def test_a_list_of_files_is_read_in_its_order(tmp_path):
    write(tmp_path, rows=6, group=6)
    urls = [f"file://{tmp_path}/part-1.parquet", str(tmp_path / "part-0.parquet")]
    assert rows_of(shard(urls, SPEC, NAMES))["y0"].tolist() == [3, 4, 5, 0, 1, 2]
    with pytest.raises(InvalidInputError, match="no Parquet files in an empty list"):
        shard([], SPEC, NAMES)


@pytest.mark.parametrize("url", ["file://{}", "local://{}", "simplecache::file://{}", "{}/part-#0?.parquet"])
def test_any_file_system_of_fsspec(tmp_path, url):
    write(tmp_path / "rows", files=1)
    (tmp_path / "rows" / "part-0.parquet").rename(tmp_path / "rows" / "part-#0?.parquet")
    rows = shard(url.format(tmp_path / "rows"), SPEC, NAMES)
    assert rows_of(rows)["y0"].tolist() == list(range(12))


def test_a_store_in_memory():
    with fsspec.open("memory://rows-of-a-test/a.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [[1.0, 2.0]] * 5, "y": np.arange(5.0)}), file, row_group_size=2)
    assert rows_of(shard("memory://rows-of-a-test", SPEC, NAMES))["y0"].tolist() == [0, 1, 2, 3, 4]
    fsspec.filesystem("memory").rm("/rows-of-a-test", recursive=True)


class Store(MemoryFileSystem):
    """One that lists folders once, and whose files are read in blocks, as those of object stores; it notes requests."""

    protocol = "store"
    requests: ClassVar[list[Any]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("store://", "memory://"))

    def ls(self, path, detail=True, **options):
        self.requests.append(path)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        return self.dircache[path] if detail else [one["name"] for one in self.dircache[path]]

    def isdir(self, path):
        self.requests.append(path)
        return super().isdir(path)

    def invalidate_cache(self, path=None):
        self.dircache.clear()

    def _open(self, path, mode="rb", block_size=None, cache_type="readahead", **options):
        if mode == "rb":
            return Blocks(self, path, mode, 50 << 20, cache_type=cache_type)
        return super()._open(path, mode, block_size, **options)


class Blocks(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.requests.append(end - start)
        return self.fs.store[self.path].getvalue()[start:end]


@pytest.fixture
def store(tmp_path):
    """A store with 2 files of 4 row groups each."""
    fsspec.register_implementation("store", Store, clobber=True)
    found = fsspec.filesystem("store")
    found.put(str(write(tmp_path / "rows", rows=800, group=100)), "/rows-of-a-store", recursive=True)
    found.requests.clear()
    yield found
    found.invalidate_cache()
    found.rm("/rows-of-a-store", recursive=True)


def test_a_store_is_asked_for_what_is_read_alone(store):
    rows = shard("store://rows-of-a-store", SPEC, NAMES)
    rows_of(rows)  # reads the footers, too
    store.requests.clear()
    assert rows_of(rows)["y0"].tolist() == list(range(800))
    assert len(store.requests) == 8
    assert sum(store.requests) < sum(store.info(path)["size"] for path in store.find("/rows-of-a-store"))


@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_caches_of_fsspec(store, cache):
    assert rows_of(shard(f"{cache}::store://rows-of-a-store", SPEC, NAMES))["y0"].tolist() == list(range(800))


def test_a_store_whose_files_are_replaced_between_fits(store, tmp_path):
    assert shard("store://rows-of-a-store", SPEC, NAMES).count == 800
    for path in store.find("/rows-of-a-store"):
        store.store.pop(path)
    MemoryFileSystem.put(store, str(write(tmp_path / "new", rows=6, files=3)), "/rows-of-a-store", recursive=True)
    assert shard("store://rows-of-a-store", SPEC, NAMES).count == 6


def test_no_folder_is_asked_twice_whether_it_is_a_table(store):
    urls = [f"store:/{path}" for path in store.find("/rows-of-a-store")]
    store.requests.clear()
    shard(urls, SPEC, NAMES)
    assert sorted(one for one in store.requests if isinstance(one, str)) == [
        f"/rows-of-a-store/{name}" for name in (".hoodie", "_delta_log", "metadata")]  # fmt: skip


def test_a_row_group_is_read_while_another_one_is_used(tmp_path, monkeypatch):
    """However large they are."""
    monkeypatch.setattr(parquet_reader, "AHEAD", 1)
    rows = shard(write(tmp_path), SPEC, NAMES)
    convert, second = parquet_reader.ParquetReader._converted, threading.Event()

    def noted(self, index, *arguments):
        if index == 1:
            second.set()
        return convert(self, index, *arguments)

    monkeypatch.setattr(parquet_reader.ParquetReader, "_converted", noted)
    next(rows._pieces(rows.columns, 1, False, 16))
    assert second.wait(30)


def test_threads_leave_the_order(tmp_path, monkeypatch):
    """Also where a row group is decoded in pieces, and some take longer than others."""
    rows = shard(write(tmp_path, rows=120, group=5), SPEC, NAMES)
    orders = [rows_of(rows, shuffle=True, seed=(seed,))["y0"].tolist() for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == list(range(120))
    convert = parquet_reader.ParquetReader._converted

    def slow(self, index, *arguments):
        time.sleep(random.random() / 200)
        return convert(self, index, *arguments)

    monkeypatch.setattr(parquet_reader.ParquetReader, "_converted", slow)
    assert rows_of(rows, shuffle=True, seed=(1,))["y0"].tolist() == orders[0]
    monkeypatch.setattr(parquet_reader, "PIECE", 24)  # two rows
    assert rows_of(rows, shuffle=True, seed=(1,))["y0"].tolist() == orders[0]


def test_a_bad_row_of_a_later_piece_is_counted_within_its_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "PIECE", 24)
    write(tmp_path, rows=6, group=6, files=1, y=[0.0, 1.0, 2.0, 3.0, math.nan, 5.0])
    with pytest.raises(InvalidInputError, match="column 'y', row 4: is NaN"):
        rows_of(shard(tmp_path, SPEC, NAMES))
    monkeypatch.setattr(parquet, "SCANNED", 2)
    with pytest.raises(InvalidInputError, match="column 'y', row 4: is NaN"):
        plan(str(tmp_path), replace(SPEC, validation_fraction=0.5), NAMES, 1)  # reads the rows to count both sides


@pytest.mark.parametrize("left", [200, None])
def test_a_file_that_goes_away_is_an_error(tmp_path, left):
    rows = shard(write(tmp_path), SPEC, NAMES)
    content = (tmp_path / "part-1.parquet").read_bytes()
    (tmp_path / "part-1.parquet").unlink()
    if left is not None:
        (tmp_path / "part-1.parquet").write_bytes(content[:left])
    with pytest.raises(InvalidInputError, match=r"changed during the fit, or are damaged: row group 0 of \S+part-1"):
        rows_of(rows)


def test_a_store_that_fails_for_a_moment_is_asked_again(tmp_path, monkeypatch):
    rows = shard(write(tmp_path), SPEC, NAMES)
    expected, waits = rows_of(rows)["y0"].tolist(), []
    stored = parquet_reader.ParquetReader._stored

    def failing(self, index, *arguments):
        for number, batch in enumerate(stored(self, index, *arguments)):
            if number == 1 and index % 2 and waits.count(index) < 2:
                waits.append(index)
                raise OSError("503 Slow Down")
            yield batch

    monkeypatch.setattr(parquet_reader, "PIECE", 12)
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(parquet_reader.ParquetReader, "_stored", failing)
    assert rows_of(rows)["y0"].tolist() == expected
    assert sorted(waits) == [1, 1, 3, 3]


@pytest.fixture
def disk(monkeypatch):
    """A disk of so many free bytes, that loses 500 whenever somebody looks."""
    disk = SimpleNamespace(total=0, free=0)

    def usage(folder):
        disk.free -= 500
        return disk

    monkeypatch.setattr(row_copies.shutil, "disk_usage", usage)
    return disk


@pytest.mark.parametrize("free", [1 << 30, 3000, 0])
def test_rows_are_read_from_copies_in_later_epochs(tmp_path, monkeypatch, disk, free):
    """As far as there is room; those for which there is none are read again."""
    disk.free = free
    spec = TrainSpec(inputs=SPEC.inputs, labels=SPEC.labels, validation_fraction=0.3, seed=3)
    write(tmp_path, rows=60, group=5)
    shards = plan(str(tmp_path), spec, NAMES, 1, copied=True)
    reader = reader_of(shards, 0)
    train, validation = (ShardRows(part, spec, shards, 0, reader) for part in ("train", "validation"))
    epochs = [rows_of(train, shuffle=True, seed=(epoch,)) for epoch in range(2)]
    plain = shard(tmp_path, spec, NAMES)
    assert [epoch["y0"].tolist() for epoch in epochs] == [
        rows_of(plain, shuffle=True, seed=(epoch,))["y0"].tolist() for epoch in range(2)]  # fmt: skip
    copied = len(reader.copies.places)
    assert {1 << 30: copied == 12, 3000: 0 < copied < 12, 0: copied == 0}[free]
    if copied == 12:
        for path in tmp_path.iterdir():
            path.unlink()
        assert sorted(rows_of(train)["y0"].tolist() + rows_of(validation)["y0"].tolist()) == list(range(60))
        assert sum(len(piece["y0"]) for piece in train.scan(["y0"])) == train.count


@pytest.mark.parametrize(
    ("inside", "name", "remedy"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake", r'format\("delta"\).load\("file:///'),
        ("metadata/v1.metadata.json", "Iceberg", r'format\("iceberg"\)'),
        (".hoodie/hoodie.properties", "Hudi", r'format\("hudi"\)'),
    ],
)
@pytest.mark.parametrize("below", ["", "data/day=1", "data/day=1/part-0.parquet"])
def test_folders_of_tables_are_refused(tmp_path, inside, name, remedy, below):
    (tmp_path / inside).parent.mkdir()
    (tmp_path / inside).touch()
    write(tmp_path / "data" / "day=1", files=1)
    with pytest.raises(InvalidInputError, match=rf"table of {name}: .*deleted and replaced.*{remedy}"):
        plan(str(tmp_path / below), SPEC, NAMES, 1)
    with pytest.raises(InvalidInputError, match=f"table of {name}"):
        plan([str(write(tmp_path.parent / "other", files=1)), f"file://{tmp_path / below}"], SPEC, NAMES, 1)


def test_folders_above_that_nobody_may_look_at(tmp_path, monkeypatch):
    """As in a bucket of which a user may read a part."""
    filesystem = fsspec.filesystem("file")
    isdir = type(filesystem).isdir

    def guarded(self, path):
        if not path.startswith(f"{tmp_path}/rows/"):
            raise PermissionError(path)
        return isdir(self, path)

    monkeypatch.setattr(type(filesystem), "isdir", guarded)
    check_plain_files(filesystem, f"{tmp_path}/rows")
    with pytest.raises(PermissionError):
        check_plain_files(filesystem, f"{tmp_path}/others")


def test_a_folder_called_metadata_makes_no_table(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "readme.json").touch()
    check_plain_files(fsspec.filesystem("file"), str(tmp_path))
