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
from cos_ml.data import parquet_plan
from cos_ml.data.columns import Column
from cos_ml.data.parquet import Shards
from cos_ml.data.parquet_plan import plan
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

    def invalidate_cache(self, path=None):
        self.dircache.clear()

    def _open(self, path, mode="rb", block_size=None, cache_type="readahead", **options):
        if mode == "rb":
            return Blocks(self, path, mode, 50 << 20, cache_type=cache_type)
        return super()._open(path, mode, block_size, **options)


class Blocks(AbstractBufferedFile):
    delay = 0.0  # seconds that a request takes at most

    def _fetch_range(self, start, end):
        time.sleep(random.random() * self.delay)
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


def first_label(stored, *_):
    """The first label of rows of a file."""
    return int(stored.column("y")[0].as_py())


def test_a_row_group_is_read_while_another_one_is_used(tmp_path, monkeypatch):
    """However large they are, and never more than a piece of each."""
    monkeypatch.setattr(parquet_reader, "AHEAD", 1)
    reader, begun, second = shard(write(tmp_path), SPEC, NAMES).reader, [], threading.Event()

    def noted(stored, *_):
        begun.append(first_label(stored))
        if begun[-1] >= 3:
            second.set()
        return begun[-1]

    pieces = reader.read(["x0", "y0"], 1, False, parquet_reader.PIECE, noted)  # pieces of a row
    next(pieces)
    assert second.wait(30)
    for count, _ in enumerate(pieces, 2):
        assert len(begun) <= count + 2


def test_row_groups_take_turns_where_rows_are_shuffled(tmp_path):
    reader = shard(write(tmp_path, rows=18), SPEC, NAMES).reader
    row = parquet_reader.AHEAD // 9  # three of three rows are open
    labels = list(reader.read(["x0", "y0"], 1, True, row, first_label))
    assert sorted(labels) == list(range(18))
    groups = (np.array(labels) // 3).reshape(2, 3, 3)
    assert all(len(set(turn)) == 3 for half in groups.tolist() for turn in half)
    assert list(reader.read(["x0", "y0"], 1, False, row, first_label)) == list(range(18))


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("piece", [240, parquet_reader.PIECE], ids=["pieces", "row groups"])
def test_threads_and_slow_files_leave_the_order(store, tmp_path, monkeypatch, threads, piece):
    monkeypatch.setattr(parquet_reader, "PIECE", piece)
    plain, slow = (shard(url, SPEC, NAMES) for url in (tmp_path / "rows", "store://rows-of-a-store"))
    expected = rows_of(plain, shuffle=True)
    assert sorted(expected["y0"]) == list(range(800))
    assert (rows_of(plain, shuffle=True, seed=(2,))["y0"] != expected["y0"]).any()
    pool = parquet_reader.ThreadPoolExecutor
    monkeypatch.setattr(parquet_reader, "ThreadPoolExecutor", lambda _, name: pool(threads, name))
    monkeypatch.setattr(Blocks, "delay", 0.005)
    np.testing.assert_array_equal(rows_of(slow, shuffle=True)["x0"], expected["x0"])
    assert rows_of(slow)["y0"].tolist() == list(range(800))


def test_a_bad_row_of_a_later_piece_is_counted_within_its_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_reader, "PIECE", 24)
    write(tmp_path, rows=6, group=6, files=1, y=[0.0, 1.0, 2.0, 3.0, math.nan, 5.0])
    with pytest.raises(InvalidInputError, match="column 'y', row 4: is NaN"):
        rows_of(shard(tmp_path, SPEC, NAMES))
    monkeypatch.setattr(parquet_plan, "SCANNED", 2)
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


def test_a_store_that_stays_away_is_an_error_with_the_name_of_the_file(store, monkeypatch):
    rows = shard("store://rows-of-a-store", SPEC, NAMES)

    def away(*_):
        raise ConnectionError("away")

    monkeypatch.setattr(stores, "WAITS", (0.0,))
    monkeypatch.setattr(Blocks, "_fetch_range", away)
    with pytest.raises(ConnectionError, match="away") as error:
        rows_of(rows)
    assert error.value.__notes__ == ["This was while row group 0 of /rows-of-a-store/part-0.parquet was read."]


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
    resumed = ShardRows("train", spec, shards, 0, reader_of(shards, 0))  # has no copies yet
    assert rows_of(resumed, shuffle=True, seed=(1,))["y0"].tolist() == epochs[1]["y0"].tolist()
    copied = len(reader.copies.places)
    assert {1 << 30: copied == 12, 3000: 0 < copied < 12, 0: copied == 0}[free]
    if copied == 12:
        for path in tmp_path.iterdir():
            path.unlink()
        assert sorted(rows_of(train)["y0"].tolist() + rows_of(validation)["y0"].tolist()) == list(range(60))
        assert sum(len(piece["y0"]) for piece in train.scan(["y0"])) == train.count
