import importlib.util
import itertools
import json
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cos_ml.data import parquet_plan
from cos_ml.data.columns import Column
from cos_ml.data.parquet import Shards
from cos_ml.data.parquet_cache import to_stored, usable_batches
from cos_ml.data.parquet_plan import plan
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.job import fit
from cos_ml.rank import petastorm_reader, shard_rows
from cos_ml.rank.shard_rows import ShardRows
from cos_ml.spec import TrainSpec

PETASTORM = ["petastorm"] if importlib.util.find_spec("petastorm") else []  # the "latest" stack has none


@pytest.fixture(params=["parquet", *PETASTORM], autouse=True)
def reader(request, monkeypatch):
    """Both readers: they differ in nothing that a test here sees."""
    if request.param == "petastorm":
        monkeypatch.setattr("tests.unit.test_parquet.plan", partial(parquet_plan.plan, reader="petastorm"))
    return request.param


X, Y = Column("features", "x0", (2,)), Column("label", "y0")
SPEC = TrainSpec(inputs=(X,), labels=(Y,), weight=Column("weight", "w", low=0.0))
NAMES = {"x0": "features", "y0": "label", "w": "weight", "v": "held"}


def write(folder, groups, *, files=1, held=None):
    """Parquet files with row groups of so many rows; a row's label is its number, and its weight follows from it."""
    folder.mkdir(exist_ok=True)
    edges = np.cumsum([0, *groups])
    tables = []
    for start, stop in itertools.pairwise(edges):
        number = np.arange(start, stop)
        columns = {
            "features": pa.array([[n, -n] for n in number.tolist()], pa.list_(pa.float64())),
            "label": pa.array(number, pa.int64()),
            "weight": pa.array(number % 5, pa.float64()),
        }
        if held is not None:
            columns["held"] = pa.array([held(n) for n in number.tolist()], pa.bool_())
        tables.append(pa.table(columns))
    for index in range(files):
        with pq.ParquetWriter(folder / f"part-{index}.parquet", tables[0].schema) as writer:
            for table in tables[index::files]:
                writer.write_table(table)
    (folder / "_SUCCESS").touch()
    return str(folder)


def shard(url, spec, ranks, rank, part="train"):
    shards = plan(url, spec, NAMES, ranks)
    return ShardRows(part, spec, Shards(**json.loads(json.dumps(asdict(shards)))), rank)


def seen(rows, shuffle=True, seed=(3, 0, 0), size=4, more=0):
    """The real rows' labels of one pass, and each batch."""
    batches = list(rows.ordered(shuffle, seed).batches(size, -(-rows.count // size) + more, {}))
    labels = [batch.arrays["y0"][: batch.num_valid] for batch in batches]
    return np.concatenate([*labels, np.empty(0)]).astype(int).tolist(), batches


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9), min_size=1, max_size=7), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_every_row_is_read_once_by_one_rank(tmp_path_factory, groups, ranks, files, shuffle):
    url = write(tmp_path_factory.mktemp("rows"), [*groups, 1], files=min(files, len(groups)))
    shares = [seen(shard(url, SPEC, ranks, rank), shuffle)[0] for rank in range(ranks)]
    assert sorted(itertools.chain(*shares)) == list(range(sum(groups) + 1))
    assert [len(share) for share in shares] == [one["train"] for one in plan(url, SPEC, NAMES, ranks).rows]


def test_the_order_follows_from_the_seed(tmp_path):
    rows = shard(write(tmp_path / "rows", [5] * 8), SPEC, 1, 0)
    orders = [seen(rows, seed=seed)[0] for seed in ((3, 0, 0), (3, 1, 0), (3, 0, 1), (4, 0, 0))]
    assert len({tuple(order) for order in orders}) == 4
    assert seen(rows, seed=(3, 1, 0))[0] == orders[1]
    assert seen(rows, shuffle=False)[0] == list(range(40))


def test_rows_mix_within_windows_and_row_groups_move(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_rows, "WINDOW", 16 * 10)  # rows of 16 bytes: two row groups of 5
    order = np.array(seen(shard(write(tmp_path / "rows", [5] * 8), SPEC, 1, 0))[0])
    windows = (order // 5).reshape(4, 10)
    assert all(len(set(window.tolist())) == 2 for window in windows)
    assert (np.diff(order) != 1).sum() > 20
    assert windows[:, 0].tolist() != [0, 2, 4, 6]


def test_weights_add_up(tmp_path):
    rows = shard(write(tmp_path / "rows", [7, 3, 8, 2, 6]), SPEC, 2, 1)
    labels = np.concatenate([batch.arrays["y0"] for batch in rows.ordered(True, (1, 2, 1)).batches(4, 2, {})])
    assert sum(piece["w"].sum() for piece in rows.scan(["w"])) == (labels % 5).sum()


def test_batches_are_full_and_then_empty(tmp_path):
    rows = shard(write(tmp_path / "rows", [7, 3, 8]), SPEC, 1, 0)
    _, batches = seen(rows, size=5, more=2)
    assert [batch.num_valid for batch in batches] == [5, 5, 5, 3, 0, 0]
    assert batches[-1].arrays["x0"].shape == (0, 2)
    assert (batches[0].arrays["x0"][:, 0] == batches[0].arrays["y0"]).all()
    assert batches[0].arrays["x0"].dtype == batches[-1].arrays["x0"].dtype == np.float32


def test_a_rank_without_a_row_group(tmp_path):
    rows = shard(write(tmp_path / "rows", [5, 5]), SPEC, 3, 2)
    assert rows.count == len(list(rows.scan(["w"]))) == 0
    batches = list(rows.ordered(True, (1,)).batches(4, 2, {}))
    assert [(batch.num_valid, batch.arrays["x0"].shape) for batch in batches] == [(0, (0, 2))] * 2


def test_marked_rows_validate(tmp_path):
    spec = TrainSpec(inputs=(X,), labels=(Y,), weight=SPEC.weight, validation=Column("held", "v", dtype="bool"))
    url = write(tmp_path / "rows", [6, 6, 6, 6], held=lambda n: n % 3 == 0)
    held = [n for n in range(24) if n % 3 == 0]
    validation = [seen(shard(url, spec, 2, rank, "validation"), shuffle=False)[0] for rank in range(2)]
    train = [seen(shard(url, spec, 2, rank))[0] for rank in range(2)]
    assert sorted(itertools.chain(*validation)) == held
    assert sorted(itertools.chain(*train)) == sorted(set(range(24)) - set(held))


def test_marks_that_are_null(tmp_path):
    spec = TrainSpec(inputs=(X,), labels=(Y,), weight=SPEC.weight, validation=Column("held", "v", dtype="bool"))
    url = write(tmp_path / "rows", [6, 6], held=lambda n: None if n == 9 else n % 3 == 0)
    with pytest.raises(InvalidInputError, match=r"column 'held', row 3: is null.*within a row group"):
        plan(url, spec, NAMES, 1)
    assert 9 in seen(shard(url, replace(spec, handle_invalid="keep"), 1, 0))[0]  # trains


def test_each_network_sees_rows_in_its_own_shape(tmp_path):
    rows = shard(write(tmp_path / "rows", [6]), SPEC, 1, 0)
    square = rows.reshaped((Column("features", "x0", (1, 2, 1)), Y))
    (batch,) = square.ordered(False, ()).batches(6, 1, {})
    assert batch.arrays["x0"].shape == (6, 1, 2, 1)
    assert square.arrays["x0"].shape == (0, 1, 2, 1)


def test_a_bad_row_is_named(tmp_path):
    folder = tmp_path / "rows"
    write(folder, [4])
    table = pa.table({"features": [[1.0, 2.0], [1.0, float("nan")]], "label": [0, 1], "weight": [1.0, 1.0]})
    pq.write_table(table, folder / "part-9.parquet")
    rows = shard(str(folder), SPEC, 1, 0)
    with pytest.raises(InvalidInputError, match=r"column 'features', row 1: has NaN at position 1.*within a row group"):
        seen(rows, shuffle=False)


def test_rows_have_as_many_values_as_indices(tmp_path):
    names, folder = {"x0": "ids", "x1": "counts", "y0": "label"}, tmp_path / "rows"
    columns = [Column(names[one], one, (None,), paired=other) for one, other in (("x0", "x1"), ("x1", "x0"))]
    folder.mkdir()
    table = pa.table({"ids": [[1.0, 2.0], [3.0]], "counts": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    pq.write_table(table, folder / "part-0.parquet")
    spec = TrainSpec(inputs=tuple(columns), labels=(Y,))
    rows = ShardRows("train", spec, plan(str(folder), spec, names, 1), 0)
    message = r"column 'counts', row 1: has 2 numbers, but column 'ids' has 1; .*within a row group"
    with pytest.raises(InvalidInputError, match=message):
        seen(rows, shuffle=False)
    with pytest.raises(InvalidInputError, match=message):
        plan(str(folder), replace(spec, validation_fraction=0.5), names, 1)


def test_nothing_to_read(tmp_path):
    (tmp_path / "_temporary").mkdir()
    pq.write_table(pa.table({"label": [1]}), tmp_path / "_temporary" / "a.parquet")
    with pytest.raises(InvalidInputError, match="There are no Parquet files at"):
        plan(str(tmp_path), SPEC, NAMES, 2)
    with pytest.raises(InvalidInputError, match="There are no rows to train on"):
        plan(write(tmp_path / "none", [0]), SPEC, NAMES, 2)


def test_a_file_that_is_written_anew_has_another_digest(tmp_path):
    """Its footer would be the same: labels have changed places."""
    for name, labels in (("a", [0, 1, 2]), ("b", [0, 1, 2]), ("c", [1, 0, 2])):
        table = pa.table({"features": [[1.0, 2.0]] * 3, "label": labels, "weight": [1.0] * 3})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="none")
    url = str(tmp_path / "a.parquet")
    digest = plan(url, SPEC, NAMES, 1).digest
    (tmp_path / "a.parquet").chmod(0o600)
    assert plan(url, SPEC, NAMES, 1).digest == digest
    (tmp_path / "b.parquet").replace(tmp_path / "a.parquet")
    anew = plan(url, SPEC, NAMES, 1).digest
    (tmp_path / "c.parquet").replace(tmp_path / "a.parquet")
    assert len({digest, anew, plan(url, SPEC, NAMES, 1).digest}) == 3


def test_row_groups_are_part_of_the_digest_where_the_order_is(tmp_path):
    """Ranks would have other rows, and go on after those that they have not seen."""
    one, other = (write(tmp_path / name, groups) for name, groups in (("one", [4, 4]), ("other", [5, 3])))
    digests = [plan(url, SPEC, NAMES, 2, "of the rows").digest for url in (one, other)]
    assert digests == ["of the rows"] * 2
    assert (
        plan(one, SPEC, NAMES, 2, "of the rows", True).digest != plan(other, SPEC, NAMES, 2, "of the rows", True).digest
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("before", "after"), [([4, 4], [4, 5]), ([4, 4], [4, 8]), ([4, 4], [4, 3]), ([4, 4], [4, 0])])
def test_files_that_change_during_a_fit_are_an_error(tmp_path, before, after, weighted):
    """Before the last batch is out: nobody asks for one more."""
    spec = SPEC if weighted else TrainSpec(inputs=SPEC.inputs, labels=SPEC.labels)
    rows = shard(write(tmp_path / "rows", before), spec, 1, 0)
    write(tmp_path / "rows", after)
    one = rows.ordered(False, (3,))
    steps = rows.count // 4
    with pytest.raises(InvalidInputError, match=r"changed during the fit: this rank.s shard had 8 rows, now"):
        list(itertools.islice(one.batches(4, steps, {}), steps))
    if weighted:
        with pytest.raises(InvalidInputError, match="changed during the fit"):
            list(rows.scan(["w"]))


@pytest.mark.parametrize("dictionary", [False, True])
def test_windows_count_what_strings_take(tmp_path, monkeypatch, dictionary):
    monkeypatch.setattr(shard_rows, "WINDOW", 5000)
    table = pa.table({"x": ["a" * 1000] * 20, "y": np.arange(20.0)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=10, use_dictionary=dictionary, compression="none")
    spec = TrainSpec(inputs=(Column("x", "x0", (), "string"),), labels=(Column("y", "y0"),))
    shards = plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 1)
    windows = list(ShardRows("train", spec, shards, 0).windows(spec.columns, 1, shuffle=True))
    assert max(len(window["y0"]) for window in windows) <= 6


@pytest.mark.parametrize("reader", PETASTORM, indirect=True)
def test_empty_row_groups_are_not_waited_for(tmp_path, monkeypatch):
    passes = []
    read = petastorm_reader.read_groups
    monkeypatch.setattr(petastorm_reader, "read_groups", lambda *args: passes.append(1) or read(*args))
    rows = shard(write(tmp_path / "rows", [3, 0, 2]), SPEC, 1, 0)
    assert seen(rows, shuffle=False)[0] == [0, 1, 2, 3, 4]
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("kind", "values", "dtype", "message"),
    [
        (pa.list_(pa.int32()), [[1, 2], [1, None]], "int32", "contains an element that is null or not an int32"),
        (pa.list_(pa.int32()), [[1, 2], None], "int32", "is null or not an int32"),
        (pa.list_(pa.int64()), [[1, 2], [1, 2**40]], "int32", "contains a number that is not an int32"),
        (pa.list_(pa.float64()), [[1, 2], [1, math.nan]], "int32", "has NaN at position 1"),
        (pa.list_(pa.float64()), [[1, 2], [1, 1e20]], "int64", "contains a number that is not an int64"),
        (pa.list_(pa.float32()), [[1, 2], [1, math.nan]], "bool", "has NaN at position 1"),
        (pa.list_(pa.float32()), [[1, 2], [1, 2, 3]], "float32", "has 3 numbers"),
        (pa.list_(pa.float64()), [[1, 2], [1e300, -1e300]], "float32", "has an infinite number at position 0"),
        (pa.list_(pa.float64()), [[1, 2], [1, 1.5]], "int32", "contains a number that is not an int32"),
        (pa.list_(pa.bool_()), [[True, True], [None, True]], "bool", "contains an element that is null or not a bool"),
        (pa.list_(pa.string()), [["a", "b"], ["a", None]], "string", "contains an element that is null"),
    ],
)
@pytest.mark.parametrize("bad", [0, 1, 20])
def test_rows_with_holes_are_named_and_kept(tmp_path, kind, values, dtype, message, bad):
    good = values[:1]
    rows = pa.array({0: values[::-1], 1: values, 20: good * 20 + values[1:]}[bad], kind)
    pq.write_table(pa.table({"x": rows, "y": np.arange(float(len(rows)))}), tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (2,), dtype),), labels=(Column("y", "y0"),))
    kept = TrainSpec(inputs=spec.inputs, labels=spec.labels, handle_invalid="keep")
    with pytest.raises(InvalidInputError, match=rf"column 'x', row {bad}: {message}.*within a row group"):
        seen(ShardRows("train", spec, plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 1), 0))
    shards = plan(str(tmp_path), kept, {"x0": "x", "y0": "y"}, 1)
    labels, batches = seen(ShardRows("train", kept, shards, 0), shuffle=False)
    assert labels == list(range(len(rows)))
    got = np.concatenate([batch.arrays["x0"] for batch in batches])[bad].tolist()
    assert got == {"f": [math.nan] * 2, "s": [b"", b""]}.get(dtype[0], [0, 0]) or np.isnan(got).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.float64()), pa.binary(), pa.list_(pa.string())])
def test_rows_that_differ_in_length(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(shard_rows, "WINDOW", 200)  # several windows
    random = np.random.default_rng(0)
    rows = [random.integers(1, 99, count).tolist() for count in random.integers(0, 6, 40)]
    texts = [[str(value) for value in row] for row in rows]
    column = Column("x", "x0", (None,), "string" if pa.list_(pa.string()) == kind else "float32")
    stored = pa.array({pa.binary(): list(map(bytes, rows)), pa.list_(pa.string()): texts}.get(kind, rows), kind)
    pq.write_table(pa.table({"x": stored, "y": np.arange(40.0)}), tmp_path / "rows.parquet", row_group_size=6)
    spec = TrainSpec(inputs=(column,), labels=(Column("y", "y0"),))
    shards = plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 2)
    seen = []
    for rank in range(2):
        mine = ShardRows("train", spec, Shards(**json.loads(json.dumps(asdict(shards)))), rank)
        assert mine.arrays["x0"].shape == (0, None)
        one = mine.ordered(True, (rank,))
        lengths = one.lengths(5, 6)
        for step, batch in enumerate(one.batches(5, 6, lengths)):
            chosen = batch.arrays["y0"].astype(int).tolist()
            assert batch.arrays["x0"].shape == (len(chosen), lengths["x0"][step])
            assert lengths["x0"][step] == (max([1, *(len(rows[row]) for row in chosen)]) if chosen else 0)
            for row, values in zip(chosen, batch.arrays["x0"].tolist(), strict=True):
                padding = [b"" if column.dtype == "string" else 0] * (len(values) - len(rows[row]))
                own = [text.encode() for text in texts[row]] if column.dtype == "string" else rows[row]
                assert values == own + padding
            seen += chosen
    assert sorted(seen) == list(range(40))


def test_lengths_of_a_rank_without_rows(tmp_path):
    pq.write_table(pa.table({"x": [[1.0]], "y": [0.0]}), tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (None, 1), padding=5.0),), labels=(Column("y", "y0"),))
    one = ShardRows("train", spec, plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 2), 1).ordered(True, (1,))
    assert {field: lengths.tolist() for field, lengths in one.lengths(4, 2).items()} == {"x0": [0, 0]}
    (batch, *_) = one.batches(4, 2, {"x0": np.array([7, 1])})
    assert batch.arrays["x0"].shape == (0, 7, 1)


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.binary(), pa.list_(pa.decimal128(20, 0))])
def test_rows_that_differ_in_length_are_stored_as_they_came(kind):
    rows = [b"\x01\x02", b"", b"\x03"] if kind == pa.binary() else [[1, 2], [], [3]]
    values = pa.array(rows, kind)
    dtype = "float32" if kind == pa.binary() else "uint64"
    spec = TrainSpec(inputs=(Column("x", "x0", (None,), dtype, padding=0.0 if dtype == "uint64" else -1.0),), labels=())
    batches = [pa.RecordBatch.from_arrays([values[start : start + 2]], ["x0"]) for start in (0, 2)]
    stored = list(usable_batches(spec, batches))
    assert pa.chunked_array([batch.column(0) for batch in stored]).combine_chunks() == values


def test_rows_of_another_shape_than_the_first_are_an_error_where_others_were_skipped(tmp_path):
    table = pa.table({"x": [[1, 2]] * 20 + [[1, 2, 3]], "y": np.arange(21.0)})
    pq.write_table(table, tmp_path / "rows.parquet")
    column = Column("x", "x0", (2,), "int32", alternatives=((3,),))
    spec = TrainSpec(inputs=(column,), labels=(Column("y", "y0"),), handle_invalid="skip")
    shards = plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 1)
    with pytest.raises(InvalidInputError, match="column 'x', row 20: has 3 numbers"):
        seen(ShardRows("train", spec, shards, 0))


@pytest.mark.parametrize("reader", PETASTORM, indirect=True)
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"y": [0.0]}, "has no column 'x'; it has"),
        ({"x": pa.array([[1.0]], pa.large_list(pa.float64())), "y": [0.0]}, "stored as large_list"),
        ({"x": pa.array([[1]], pa.list_(pa.uint32())), "y": [0.0]}, "stored as list<.*uint32>"),
        ({"x": pa.array(["a"], pa.large_string()), "y": [0.0]}, "stored as large_string"),
    ],
)
def test_files_without_a_column_that_petastorm_reads(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    spec = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=(Column("y", "y0"),))
    with pytest.raises(InvalidInputError, match=message):
        plan(str(tmp_path), spec, {"x0": "x", "y0": "y"}, 1)


@pytest.mark.parametrize("reader", PETASTORM, indirect=True)
def test_urls_that_petastorm_would_cut_off_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="can't read paths with #"):
        parquet_plan.check_petastorm(["/data", "/data/run#1"])
    Path(write(tmp_path / "rows", [1]), "part-0.parquet").rename(tmp_path / "rows" / "part?0.parquet")
    with pytest.raises(InvalidInputError, match="can't read paths with #"):
        plan(str(tmp_path / "rows"), SPEC, NAMES, 1)


def test_a_table_is_looked_for_where_spark_would_write(tmp_path, monkeypatch):
    """fs.defaultFS may be elsewhere than the path without a scheme."""
    (tmp_path / "_delta_log").mkdir()
    monkeypatch.setattr(fit, "qualified", lambda spark, path: f"local://{tmp_path}{path}")
    with pytest.raises(InvalidInputError, match="table of Delta Lake"):
        fit.cache_folder(None, SimpleNamespace(feed="parquet", cache_dir="/cache", copied=False))


def test_strings_are_stored_as_they_came():
    texts = np.array([b"a", b"b"], object)
    assert to_stored(texts, pa.string()).to_pylist() == ["a", "b"]
    assert to_stored(texts.reshape(1, 2), pa.list_(pa.string())).to_pylist() == [["a", "b"]]
    assert to_stored(texts[:0], pa.string()).to_pylist() == []


def test_row_groups_of_several_types_become_one_that_holds_both():
    """One file may store whole numbers in a byte, and the next one may need more."""
    pieces = [{"x0": np.array([[1], [2]], np.uint8)}, {"x0": np.array([[1000]], np.int32)}]
    parts = [arrays["x0"] for arrays in shard_rows.shuffled(pieces, 3, 2, np.random.default_rng(0))]
    assert [len(part) for part in parts] == [2, 1]
    order = np.random.default_rng(0).permutation(3)
    assert np.concatenate(parts).tolist() == np.array([[1], [2], [1000]])[order].tolist()


@pytest.mark.parametrize("reader", PETASTORM, indirect=True)
def test_a_petastorm_without_its_pool_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("petastorm.reader.make_batch_reader", lambda *_, **__: nullcontext())
    rows = shard(write(tmp_path / "rows", [3]), SPEC, 1, 0)
    with pytest.raises(SetupError, match=r"This version of petastorm is not supported"):
        list(rows.scan(["y0"]))
