import itertools
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.data import spool as spool_module
from cos_ml.data.columns import Column, RowError
from cos_ml.data.disk_arrays import RowsOnDisk
from cos_ml.data.ragged import Ragged, offsets_of
from cos_ml.data.spool import KEYS, Pass, Spool, SpooledRows, local_folder, raise_on_invalid, row_keys
from cos_ml.errors import InvalidInputError
from cos_ml.job import task
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.row_weights import RowWeights
from cos_ml.spec import TrainSpec
from tests.support.spools import inherited, record_batch, rows_of

X, Y = Column("features", "x0", (2,)), Column("label", "y0")
SPEC = TrainSpec(inputs=(X,), labels=(Y,))


def columns(count, seed=0):
    return {
        "x0": np.random.default_rng(seed).uniform(size=(count, 2)).astype(np.float32),
        "y0": np.arange(count, dtype=np.float32),
    }


def bytes_of(spool):
    return {
        part: {field: os.pread(fd, os.fstat(fd).st_size, 0) for field, fd in fields.items()}
        for part, fields in spool.descriptors().items()
    }


# ── barrier task ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=5))
def test_any_split_of_batches_gives_the_same_bytes(count, cuts):
    data = columns(count)
    whole = record_batch(data)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    spooled = Spool(SPEC)
    try:
        spooled.fill(whole.slice(start, stop - start) for start, stop in itertools.pairwise(edges))
        data[KEYS] = row_keys(data)
        assert bytes_of(spooled)["train"] == {field: array.tobytes() for field, array in data.items()}
        assert spooled.rows == {"train": count, "validation": 0}
        assert spooled.shapes == ({"x0": (2,), "y0": ()} if count else {})
    finally:
        spooled.close()


def test_rows_are_split_by_their_mark(spool):
    data = columns(5) | {"v": pa.array([False, True, False, True, False])}
    spec = TrainSpec(inputs=(X,), labels=(Y,), validation=Column("held", "v", dtype="bool"))
    spooled = spool(spec, data, size=2)
    assert spooled.rows == {"train": 3, "validation": 2}
    assert rows_of(spooled, "train").arrays["y0"].tolist() == [0, 2, 4]
    assert rows_of(spooled, "validation").arrays["y0"].tolist() == [1, 3]
    assert (rows_of(spooled, "validation").arrays["x0"] == data["x0"][[1, 3]]).all()
    assert "v" not in spooled.descriptors()["train"]


BAD = {
    "x0": pa.array([[1, 2], None, [3, 4], [5], [6, 7]], pa.list_(pa.float32())),
    "y0": pa.array([0, 1, None, 3, 4], pa.float32()),
}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_error_names_column_and_row(spool, size):
    with pytest.raises(InvalidInputError, match=r"^column 'features', row 1: is null\..*handleInvalid=\"skip\""):
        spool(SPEC, BAD, size)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_skip(spool, size):
    spooled = spool(TrainSpec(inputs=(X,), labels=(Y,), handle_invalid="skip"), BAD, size)
    assert spooled.rows["train"] == 2
    assert spooled.skipped == 3
    rows = rows_of(spooled)
    assert rows.arrays["x0"].tolist() == [[1, 2], [6, 7]]
    assert rows.arrays["y0"].tolist() == [0, 4]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_keep(spool, size):
    spooled = spool(TrainSpec(inputs=(X,), labels=(Y,), handle_invalid="keep"), BAD, size)
    assert spooled.rows["train"] == 5
    assert spooled.skipped == 0
    rows = rows_of(spooled)
    assert np.isnan(rows.arrays["x0"]).all(axis=1).tolist() == [False, True, False, True, False]
    assert np.isnan(rows.arrays["y0"]).tolist() == [False, False, True, False, False]


def test_skip_all(spool):
    spooled = spool(TrainSpec(inputs=(X,), labels=(Y,), handle_invalid="skip"), {k: v[1:4] for k, v in BAD.items()})
    assert spooled.rows == {"train": 0, "validation": 0}
    assert spooled.skipped == 3


def test_rows_of_one_shape_after_rows_of_another(spool):
    """Nothing but an empty row says nothing about the shape of the others, and it was kept."""
    column = Column("tags", "y0", (2,), alternatives=((3,),))
    spec = TrainSpec(inputs=(), labels=(column,), handle_invalid="keep")
    with pytest.raises(InvalidInputError, match=r"'tags'.*\(3,\).*\(2,\)"):
        spool(spec, {"y0": pa.array([[], [1.0, 2.0, 3.0]])}, size=1)


@pytest.mark.parametrize(("handle_invalid", "train"), [("skip", [0, 2]), ("keep", [0, 1, 2])])
def test_a_row_whose_mark_is_null(spool, handle_invalid, train):
    data = columns(5) | {"v": pa.array([False, None, False, True, True])}
    spec = TrainSpec(inputs=(X,), labels=(Y,), validation=Column("held", "v", dtype="bool"))
    with pytest.raises(InvalidInputError, match="column 'held', row 1: is null"):
        spool(spec, data, size=2)
    spooled = spool(replace(spec, handle_invalid=handle_invalid), data, size=2)
    assert rows_of(spooled, "train").arrays["y0"].tolist() == train
    assert rows_of(spooled, "validation").arrays["y0"].tolist() == [3, 4]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("others", "shape"), [([1.0], (None,)), ([1.0] * 3, (None,)), ([1.0] * 4, (2, 2))])
def test_the_shape_of_a_partition_is_that_of_all_its_rows(spool, size, others, shape):
    column = Column("tags", "y0", (2, 2), alternatives=((2,), (None,)))
    spec = TrainSpec(inputs=(), labels=(column,), handle_invalid="skip")

    def spooled(rows):
        return spool(spec, {"y0": pa.array(rows, pa.list_(pa.float32()))}, size)

    rows = [[], others, None, others]  # what has no shape is skipped
    assert spooled(rows).shapes["y0"] == shape
    assert spooled(rows).skipped == 2
    for mixed in ([*rows, [1.0] * 2], [[1.0] * 2, *rows]):
        with pytest.raises(InvalidInputError, match="'tags' has inconsistent row shapes"):
            spooled(mixed)


ROWS = st.lists(st.lists(st.integers(0, 255), max_size=5), max_size=12)
DTYPES = ["bool", "int8", "uint8", "int16", "int64", "uint64", "float16", "float32", "float64"]


@given(ROWS, st.integers(1, 4), st.integers(1, 5), st.sampled_from(DTYPES), st.integers(0, 9), st.integers(0, 2))
def test_batches_of_rows_that_differ_in_length(rows, cut, size, dtype, seed, more):
    """What NumPy pads row by row, however the rows reach the spool."""
    rows = [np.array(row, np.uint8).repeat(2).astype(dtype) for row in rows]
    column = Column("steps", "x0", (None, 2), dtype, padding=1.0)
    spooled = Spool(TrainSpec(inputs=(column, Column("id", "x1", (), "int64")), labels=()))
    lists = pa.ListArray.from_arrays(
        pa.array(np.cumsum([0, *map(len, rows)]), pa.int32()), pa.array(np.concatenate([np.empty(0, dtype), *rows]))
    )
    batch = pa.RecordBatch.from_arrays([lists, pa.array(np.arange(len(rows)))], ["x0", "x1"])
    try:
        spooled.fill(batch.slice(start, cut) for start in range(0, len(rows), cut))
        spooled.shapes, spooled.dtypes = {"x0": (None, 2), "x1": ()}, {"x0": np.dtype(dtype).str, "x1": "<i8"}
        one = rows_of(spooled).reshaped(spooled.spec.columns).ordered(True, (seed,))
    finally:
        spooled.close()
    steps = -(-len(rows) // size) + more
    lengths = one.lengths(size, steps)
    assert list(lengths) == ["x0"]
    for step, batch in enumerate(one.batches(size, steps, {"x0": lengths["x0"] + 1})):
        chosen = [rows[place].reshape(-1, 2) for place in batch.arrays["x1"]]
        assert lengths["x0"][step] == (max([1, *map(len, chosen)]) if chosen else 0)
        expected = np.full((len(chosen), lengths["x0"][step] + 1, 2), 1, dtype)
        for place, row in enumerate(chosen):
            expected[place, : len(row)] = row
        assert batch.arrays["x0"].dtype == dtype
        assert batch.arrays["x0"].tobytes() == expected.tobytes()


@given(ROWS, st.integers(1, 4))
def test_keys_of_rows_that_differ_in_length(rows, size):
    """A key depends on its row alone, and on its length too: zeros at the end count."""
    for dtype in ("uint8", "float32", "float64", object):
        values = np.array([value for row in rows for value in row], np.uint8)
        values = np.array([b"%d" % value for value in values], object) if dtype is object else values.astype(dtype)
        ragged = Ragged(values, offsets_of(np.array([len(row) for row in rows], int)), (None,))
        keys = row_keys({"x0": ragged})
        assert len(np.unique(keys)) == len({tuple(row) for row in rows})
        parts = [row_keys({"x0": ragged[start : start + size]}) for start in range(0, len(rows), size)]
        assert np.concatenate([*parts, np.empty(0, np.uint64)]).tolist() == keys.tolist()


def test_long_rows_that_differ_in_length_are_read_and_not_mapped(spool, monkeypatch):
    monkeypatch.setattr(spool_module, "MAPPED", 64)
    spec = TrainSpec(inputs=(Column("steps", "x0", (None,)),), labels=())
    lists = [list(range(count)) for count in (9, 0, 30, 1)]
    rows = rows_of(spool(spec, {"x0": pa.array(lists, pa.list_(pa.float32()))}, size=3))
    assert isinstance(rows.arrays["x0"].values, RowsOnDisk)
    (batch,) = Pass(rows.arrays, np.array([2, 3, 1, 0])).batches(4, 1, {})
    assert [row[: len(lists[place])].tolist() for row, place in zip(batch.arrays["x0"], (2, 3, 1, 0), strict=True)] == [
        lists[place] for place in (2, 3, 1, 0)
    ]


def test_strings_of_rows_that_differ_in_length(spool):
    spec = TrainSpec(inputs=(Column("words", "x0", (None,), "string"),), labels=())
    rows = rows_of(spool(spec, {"x0": pa.array([["a", "bcd"], [], ["", "e", "f"]])}, size=2))
    (batch,) = Pass(rows.arrays, np.array([2, 0, 1])).batches(3, 1, {})
    assert batch.arrays["x0"].tolist() == [[b"", b"e", b"f"], [b"a", b"bcd", b""], [b"", b"", b""]]


def test_raise_on_invalid():
    null, label = RowError(3, "features", "is null"), RowError(5, "label", "is 9", fatal=True)
    with pytest.raises(InvalidInputError, match="column 'features', row 3: is null"):
        raise_on_invalid([null, label][:1], "error")
    for handle_invalid in ("error", "skip", "keep"):  # data that does not fit the network is no bad row
        with pytest.raises(InvalidInputError, match="column 'label', row 5: is 9"):
            raise_on_invalid([null, label], handle_invalid)
    raise_on_invalid([null], "skip")
    raise_on_invalid([null], "keep")


def test_no_name_on_disk(monkeypatch, tmp_path, spool):
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"/nowhere,{tmp_path}")
    assert local_folder() == str(tmp_path)
    spooled = spool(SPEC, columns(100))
    places = [os.readlink(f"/proc/self/fd/{fd}") for fields in spooled.descriptors().values() for fd in fields.values()]
    assert len(places) == 6
    assert all(place.startswith(str(tmp_path)) for place in places)  # it is there ...
    assert list(tmp_path.iterdir()) == []  # ... and has no name
    rows = rows_of(spooled)
    spooled.close()
    assert list(tmp_path.iterdir()) == []
    assert all(file.closed for files in spooled.files.values() for file in files.values())
    assert rows.arrays["y0"].tolist() == list(range(100))  # who has it open keeps it


def test_the_folder_without_spark(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert local_folder() == str(tmp_path)


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_read_what_was_spooled(spool):
    data = columns(7)
    rows = rows_of(spool(SPEC, data, size=3))
    assert all((rows.arrays[field] == data[field]).all() for field in data)
    assert rows.arrays["x0"].dtype == np.float32
    assert not rows.arrays["x0"].flags.writeable
    assert [piece["y0"].tolist() for piece in rows.scan(["y0"])] == [data["y0"].tolist()]


def test_rows_of_integers_and_bytes(spool):
    spec = TrainSpec(inputs=(Column("image", "x0", (2, 1)), Column("id", "x1", (), "int64")), labels=(Y,))
    data = {"x0": pa.array([b"\x01\x02", b"\xfe\xff"]), "x1": np.array([1, 2**40]), "y0": np.zeros(2, np.float32)}
    arrays = rows_of(spool(spec, data)).arrays
    assert arrays["x0"].dtype == np.uint8
    assert arrays["x0"].tolist() == [[[1], [2]], [[254], [255]]]
    assert arrays["x1"].tolist() == [1, 2**40]


def mean_weight(spec, rows):
    return 1 / RowWeights("train", spec, rows, Communicator(1), rows.count).scale


def test_weights(spool):
    spec = TrainSpec(inputs=(X,), labels=(Y,), weight=Column("weight", "w", low=0.0))
    weights = np.array([1e16, 0.5, -1e16, 0.25, 2])
    for order in (slice(None), slice(None, None, -1), [1, 0, 2, 3, 4]):
        rows = rows_with(np.arange(5), w=weights[order])
        assert mean_weight(spec, rows) == 2.75 / 5  # a plain sum depends on the order
    rows = rows_of(spool(spec, columns(3) | {"w": np.array([0, 0.5, 2], np.float32)}))
    assert mean_weight(spec, rows) == 2.5 / 3


def test_the_order_has_every_row_once(spool):
    rows = rows_of(spool(SPEC, columns(50)))
    assert rows.ordered(False, (7, 0, 0)).order.tolist() == list(range(50))
    orders = [rows.ordered(True, seed).order.tolist() for seed in ((7, 0, 0), (7, 1, 0), (7, 0, 1), (8, 0, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4  # by epoch, by rank, by seed
    assert rows.ordered(True, (7, 1, 0)).order.tolist() == orders[1]


def rows_with(keys, **arrays):
    """Rows of these arrays, made without a spool."""
    rows = SpooledRows.__new__(SpooledRows)
    rows.count, rows.keys, rows.arrays = len(keys), keys, arrays
    return rows


def test_batches(spool):
    data = columns(5)
    rows = rows_of(spool(SPEC, data))
    batches = list(Pass(rows.arrays, np.array([4, 0, 3, 1, 2])).batches(2, 4, {}))
    assert [batch.num_valid for batch in batches] == [2, 2, 1, 0]
    assert [batch.arrays["y0"].tolist() for batch in batches] == [[4, 0], [3, 1], [2], []]
    assert batches[-1].arrays["x0"].shape == (0, 2)
    assert all((batch.arrays["x0"] == data["x0"][batch.arrays["y0"].astype(int)]).all() for batch in batches)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_batches_have_every_row_once(count, size, more, shuffle):
    rows = rows_with(np.arange(count), y0=np.arange(count))
    steps = -(-count // size) + more
    one = rows.ordered(shuffle, (1, 2, 3))
    batches = list(one.batches(size, steps, {}))
    assert len(batches) == steps
    assert np.concatenate([batch.arrays["y0"][: batch.num_valid] for batch in batches]).tolist() == one.order.tolist()
    assert all(batch.num_valid == len(batch.arrays["y0"]) <= size for batch in batches)
    assert [batch.num_valid for batch in batches[steps - more :]] == [0] * more


def test_the_order_does_not_depend_on_the_one_rows_came_in(spool):
    data = columns(50)
    moved = np.random.default_rng(3).permutation(50)
    one, other = spool(SPEC, data, size=7), spool(SPEC, {field: rows[moved] for field, rows in data.items()})
    assert one.digest == other.digest
    assert one.digest["train"] != spool(SPEC, columns(49)).digest["train"]
    batches = [next(rows_of(rows).ordered(True, (1, 2)).batches(50, 1, {})).arrays["y0"] for rows in (one, other)]
    assert batches[0].tolist() == batches[1].tolist()
    assert sorted(batches[0]) == list(range(50))


def test_the_key_of_a_row_is_its_own():
    rows = np.random.default_rng(0).integers(0, 3, (500, 5)).astype(np.uint8)
    texts = np.array([str(row).encode() for row in rows], object)
    for array in (rows, rows.astype(np.float32), rows.astype(np.float64), texts):
        keys = row_keys({"x0": array})
        assert len(np.unique(keys)) == len(np.unique(rows, axis=0))
        assert row_keys({"x0": array[7:9]}).tolist() == keys[7:9].tolist()
    one, other = np.arange(4.0), np.arange(4.0)[::-1].copy()
    swapped = row_keys({"x0": one, "y0": other}).sum(), row_keys({"x0": one, "y0": one}).sum()
    assert swapped[0] != swapped[1]  # the same numbers, in other rows


def test_neighbours_are_not_gathered(spool):
    rows = rows_of(spool(SPEC, columns(4)))
    (first, _) = rows.ordered(False, ()).batches(2, 2, {})
    assert np.shares_memory(first.arrays["x0"], rows.arrays["x0"])


def test_a_rank_without_rows(spool):
    empty = spool(SPEC, columns(0))
    rows = SpooledRows(inherited(empty, "train"), 0, {"x0": [2], "y0": []}, {"x0": "<f4", "y0": "<f4"})
    assert list(rows.scan(["y0"])) == []
    batches = list(rows.ordered(True, (1,)).batches(2, 3, {}))
    assert [batch.num_valid for batch in batches] == [0, 0, 0]
    assert all(batch.arrays["x0"].shape == (0, 2) for batch in batches)


def resident():
    """Bytes of this process's memory that are pages of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssFile"].split()[0]) << 10


def test_many_rows_are_read_and_not_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_module, "MAPPED", 8 << 20)
    count, width = 16_384, 1024  # 64 MiB of float32
    np.arange(count, dtype=np.float32).repeat(width).tofile(tmp_path / "rows")
    np.arange(count, dtype=np.uint64).tofile(tmp_path / "keys")
    descriptor, keys = (os.open(tmp_path / name, os.O_RDONLY) for name in ("rows", "keys"))
    rows = SpooledRows({"x0": descriptor, KEYS: keys}, count, {"x0": [width]}, {"x0": "<f4"})
    rows = rows.reshaped((Column("features", "x0", (width // 2, 2)),))
    before, most = resident(), 0
    for shuffle in (False, True):
        one = rows.ordered(shuffle, (1,))
        for step, batch in enumerate(one.batches(128, count // 128, {})):
            assert batch.arrays["x0"].shape == (128, width // 2, 2)
            assert (batch.arrays["x0"] == one.order[step * 128 : step * 128 + 128, None, None]).all()
            most = max(most, resident() - before)
    os.close(descriptor)
    assert most < 16 << 20
    with pytest.raises(OSError, match="Bad file descriptor"):
        next(rows.ordered(False, ()).batches(1, 1, {}))


def test_a_full_disk_is_reported(spool):
    spooled = spool(SPEC, columns(0))
    spooled.files["train"]["x0"].close()
    spooled.files["train"]["x0"] = open("/dev/full", "wb", buffering=0)
    message = task._fill(spooled, [record_batch(columns(5))])
    assert f"The host {socket.gethostname()} has no room for the rows of its partition in" in message
    assert "No space left on device" in message
    assert "spark.local.dir" in message


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 6))
def test_strings_of_chosen_rows(chosen, size):
    strings = [[b"x" * row, f"-{row}".encode()] for row in range(6)]
    column = Column("words", "x0", (2,), "string")
    spooled = Spool(TrainSpec(inputs=(column,), labels=()))
    try:
        rows = pa.array([[string.decode() for string in row] for row in strings])
        batch = pa.RecordBatch.from_arrays([rows], ["x0"])
        spooled.fill(batch.slice(start, size) for start in range(0, 6, size))
        words = rows_of(spooled).arrays["x0"]
    finally:
        spooled.close()
    assert words[np.array(chosen, np.uint32)].tolist() == [strings[row] for row in chosen]
    rows = slice(min(chosen, default=0), max(chosen, default=0))
    assert words[rows].tolist() == strings[rows]
    assert words.reshape(12)[rows].tolist() == [string for row in strings for string in row][rows]


def test_no_strings_and_empty_ones(spool):
    spec = TrainSpec(inputs=(Column("word", "x0", (), "string"),), labels=())
    assert rows_of(spool(spec, {"x0": pa.array(["", "", "a"])}, size=1)).arrays["x0"][:].tolist() == [b"", b"", b"a"]
    empty = spool(spec, {"x0": pa.array([], pa.string())})
    assert len(SpooledRows(inherited(empty, "train"), 0, {"x0": []}, {"x0": "|O"}).arrays["x0"][:0]) == 0
