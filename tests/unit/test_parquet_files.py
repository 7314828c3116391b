"""Folders of Parquet files as others write them: what is read of them, and what is an error by name."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cos_ml.data.columns import Column
from cos_ml.data.parquet_plan import plan
from cos_ml.errors import InvalidInputError
from cos_ml.rank import parquet_reader, shard_rows
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import TrainSpec

SPEC = TrainSpec(inputs=(Column("x", "x0", (2,)),), labels=(Column("y", "y0"),))
NAMES = {"x0": "x", "y0": "y"}


def table(start, stop, kind=None):
    """Rows that are numbered by their label."""
    kind = kind or pa.list_(pa.float64())
    return pa.table({"x": pa.array([[n, -n] for n in range(start, stop)], kind), "y": np.arange(start, stop, 1.0)})


def read(url, spec=SPEC, names=NAMES, ranks=1, shuffle=False, field="y0"):
    """What all ranks read of a field in an epoch."""
    shards = plan(str(url), spec, names, ranks)
    found = []
    for rank in range(ranks):
        rows = ShardRows("train", spec, shards, rank)
        batches = rows.ordered(shuffle, (1,)).batches(4, -(-rows.count // 4), {})
        found += [tuple(row) for one in batches for row in zip(*(one.arrays[name].tolist() for name in ("x0", "y0")),
                                                               strict=True)]  # fmt: skip
    return [row[("x0", "y0").index(field)] for row in found] if field else found


KINDS = [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.int32()),
         pa.list_(pa.decimal128(9, 2))]  # fmt: skip
CODECS = [name for name in ("none", "snappy", "gzip", "brotli", "lz4", "zstd") if
          name == "none" or pa.Codec.is_available(name)]  # fmt: skip
FILE = st.tuples(
    st.integers(0, 7), st.integers(1, 4), st.sampled_from(CODECS), st.sampled_from([("1.0", "1.0"), ("2.6", "2.0")]),
    st.booleans(), st.sampled_from(["a=1", "a=2/b=x", "a=__HIVE_DEFAULT_PARTITION__", "c"]),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FILE, min_size=1, max_size=4), st.sampled_from(KINDS), st.integers(1, 3), st.booleans())
def test_ranks_read_the_rows_that_arrow_reads(tmp_path, monkeypatch, files, kind, ranks, shuffle):
    monkeypatch.setattr(parquet_reader, "PIECE", 24)  # two rows
    monkeypatch.setattr(shard_rows, "WINDOW", 60)  # five rows
    shutil.rmtree(tmp_path)
    edges = np.cumsum([0, 1, *(count for count, *_ in files)]).tolist()
    files = [(1, 1, "none", ("1.0", "1.0"), False, "c"), *files]
    for index, (_, group, codec, (version, pages), reverse, folder) in enumerate(files):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        rows = table(*edges[index : index + 2], kind).select(["y", "x"] if reverse else ["x", "y"])
        pq.write_table(rows, tmp_path / folder / f"{index}.parquet", row_group_size=group, compression=codec,
                       version=version, data_page_version=pages)  # fmt: skip
    expected = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table(columns=["x", "y"]).to_pylist()
    found = read(tmp_path, ranks=ranks, shuffle=shuffle, field=None)
    assert Counter((*map(float, row["x"]), row["y"]) for row in expected) == Counter((*x, y) for x, y in found)


def test_numbers_of_another_type_in_each_file(tmp_path):
    for name, (kind, value) in {"a": ("int32", 1), "b": ("int64", 2**40), "c": ("float64", 0.5)}.items():
        rows = pa.table({"x": pa.array([[value, 2]], pa.list_(getattr(pa, kind)())), "y": pa.array([value], kind)})
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    assert read(tmp_path) == [1, 2**40, 0.5]
    (tmp_path / "c.parquet").unlink()
    spec = TrainSpec(inputs=(Column("x", "x0", (2,), "int64"),), labels=SPEC.labels)
    assert read(tmp_path, spec, field="x0") == [[1, 2], [2**40, 2]]
    pq.write_table(table(0, 1).select(["x"]), tmp_path / "d.parquet")
    with pytest.raises(InvalidInputError, match=r"The file \S+d.parquet has no column 'y'; it has \['x'\]"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a b", "a.b", "ä", "#1", "100%", "a%20b", "?", "[x]", "{a,b}", "a*", "a:b", "-a"])
def test_names_of_folders_and_files(tmp_path, name):
    (tmp_path / name).mkdir()
    pq.write_table(table(0, 2), tmp_path / name / f"{name}.parquet")
    assert read(tmp_path / name) == [0, 1]


def test_files_of_all_names_are_read_but_for_those_that_spark_hides(tmp_path):
    for index, name in enumerate(["000000_0", "a.PARQUET", "b.snappy.parquet", "c=1/d"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(index, index + 1), tmp_path / name)
    for name in ("_SUCCESS", "readme.txt", "empty"):
        (tmp_path / name).write_text(name[: len(name) * (name != "empty")])
    for name in (".b.parquet.crc", "_temporary/0/x.parquet", ".x.parquet", "_metadata", "_x.parquet", "x._COPYING_"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(8, 9), tmp_path / name)
    assert read(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (["1", "2.5", "__HIVE_DEFAULT_PARTITION__"], "float32", [1, 2.5, None]),
        (["a%2Fb%20c", "ä", "07"], "string", [b"a/b c", "ä".encode(), b"07"]),
        (["2024-01-31"], "float32", r"Column 'the k' of the file \S+ is '2024-01-31': expected a number"),
        (["false"], "bool", "is 'false': expected a number"),
    ],
)
def test_values_in_the_names_of_folders(tmp_path, values, dtype, expected):
    for value in values:
        (tmp_path / f"the%20k={value}").mkdir()
        pq.write_table(table(0, 1), tmp_path / f"the%20k={value}" / "a.parquet")
    spec = TrainSpec(inputs=(Column("the k", "x0", (), dtype),), labels=SPEC.labels, handle_invalid="keep")
    names = {"x0": "the k", "y0": "y"}
    if isinstance(expected, str):
        with pytest.raises(InvalidInputError, match=expected):
            read(tmp_path, spec, names)
    else:
        found = read(tmp_path, spec, names, field="x0")
        assert [None if one != one else one for one in sorted(found, key=str)] == sorted(expected, key=str)


def test_links_to_folders_and_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pq.write_table(table(*((0, 2) if name == "a" else (2, 4))), tmp_path / name / "0.parquet")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "rows" / "z.parquet").symlink_to(tmp_path / "b" / "0.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    assert read(tmp_path / "rows") == read(tmp_path / "link") == [0, 1, 2, 3]
    (tmp_path / "rows" / "above").symlink_to(tmp_path / "rows")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(tmp_path / "rows")


@pytest.mark.parametrize("denied", ["", "a=2"])
def test_a_folder_that_can_not_be_listed_is_no_empty_one(tmp_path, monkeypatch, denied):
    """fsspec's ``find`` would leave out its rows without a word."""
    for name in ("a=1", "a=2"):
        (tmp_path / name).mkdir()
        pq.write_table(table(0, 2), tmp_path / name / "0.parquet")
    listed = LocalFileSystem.ls

    def ls(self, path, *arguments, **options):
        if path == str(tmp_path / denied):
            raise PermissionError(f"{path} is not yours")
        return listed(self, path, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    with pytest.raises(PermissionError, match="is not yours"):
        read(tmp_path)


def test_files_and_row_groups_without_rows(tmp_path):
    empty = table(0, 1).slice(0, 0)
    pq.write_table(empty, tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "b.parquet", empty.schema) as writer:
        for rows in (table(0, 2), empty, table(2, 4)):
            writer.write_table(rows)
    assert pq.ParquetFile(tmp_path / "b.parquet").num_row_groups == 3
    assert list(itertools.chain(read(tmp_path), read(tmp_path, ranks=2, shuffle=True))).count(3) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "Parquet file size is 0 bytes"),
        (lambda content: b"no Parquet" * 9, "magic bytes not found"),
        (lambda content: content[:100] + content[200:], "."),
        (lambda content: content[:-20] + b"\xff" * 12 + content[-8:], "deserialize|Thrift|thrift"),
        (lambda content: b"PARE" + content[4:-4] + b"PARE", "encrypted"),
    ],
    ids=["empty", "text", "cut", "footer", "encrypted"],
)
def test_files_that_are_damaged(tmp_path, damage, message):
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 9), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidInputError, match=rf"The file \S+a.parquet can't be read as Parquet: .*({message})"):
        read(tmp_path)


def test_pages_that_are_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table(0, 5000), path, compression="gzip", use_dictionary=False)
    shards, content = plan(str(path), SPEC, NAMES, 1), path.read_bytes()
    path.write_bytes(content[:200] + bytes(2000) + content[2200:])
    rows = ShardRows("train", SPEC, shards, 0)
    with pytest.raises(InvalidInputError, match=r"or are damaged: row group 0 of \S+a.parquet"):
        list(rows.scan(["x0"]))


def test_memory_does_not_grow_with_the_row_groups(tmp_path):
    values = pa.array(np.random.default_rng(0).random(4_000_000, np.float32))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, 1000, np.int32)), values)
    rows = pa.table({"x": lists, "y": np.arange(float(len(lists)))})
    pq.write_table(rows, tmp_path / "a.parquet", use_dictionary=False)  # a row group of 16 MB
    spec = TrainSpec(inputs=(Column("x", "x0", (1000,)),), labels=SPEC.labels)
    del values, lists, rows
    before = pa.total_allocated_bytes()
    part = ShardRows("train", spec, plan(str(tmp_path), spec, NAMES, 1), 0)
    most = max(pa.total_allocated_bytes() for _ in part.ordered(True, (1,)).batches(100, 40, {}))
    assert most - before < 10 << 20
