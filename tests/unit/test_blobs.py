import io
import subprocess
import sys

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cos_ml.data import blobs

ITEMS = {"network": b"0123456789", "empty": b"", "summary": b"{}"}


def test_pieces():
    assert list(blobs.pieces(ITEMS, size=4)) == [
        ("network", 0, b"0123"),
        ("network", 1, b"4567"),
        ("network", 2, b"89"),
        ("empty", 0, b""),
        ("summary", 0, b"{}"),
    ]


def test_a_whole_number_of_pieces_has_no_empty_one():
    assert list(blobs.pieces({"a": b"01234567"}, size=4)) == [("a", 0, b"0123"), ("a", 1, b"4567")]


@given(st.dictionaries(st.text(max_size=3), st.binary(max_size=20), max_size=4), st.integers(1, 7), st.randoms())
def test_join_in_any_order(items, size, random):
    rows = list(blobs.pieces(items, size))
    random.shuffle(rows)
    assert blobs.join(rows) == items


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_piece(missing):
    rows = [row for row in blobs.pieces(ITEMS, size=4) if row[:2] != ("network", missing)]
    with pytest.raises(ValueError, match=r"'network' is incomplete: received pieces \[\d, 2\]"):
        blobs.join(rows)


def test_record_batches():
    table = pa.Table.from_batches(blobs.record_batches(ITEMS))
    assert table.schema == pa.schema([("name", pa.string()), ("part", pa.int32()), ("data", pa.binary())])
    assert blobs.join((row["name"], row["part"], row["data"]) for row in table.to_pylist()) == ITEMS


NAMES = st.text(max_size=3)
DTYPES = st.sampled_from(["<f4", "<f8", ">i4", "|u1", "|b1", "<U3", "|S2", "<f2"])
ARRAYS = arrays(DTYPES, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
STRINGS = arrays(object, array_shapes(min_dims=0, max_dims=2, min_side=0), elements=st.binary(max_size=4))


def assert_same(items, others):
    assert list(items) == list(others)
    for name, item in items.items():
        assert type(others[name]) is type(item)
        if isinstance(item, bytes):
            assert others[name] == item
        else:
            assert (others[name].dtype, others[name].shape) == (item.dtype, item.shape)
            np.testing.assert_array_equal(others[name], item)


@given(st.dictionaries(NAMES, st.binary(max_size=20) | ARRAYS | STRINGS, max_size=4))
def test_what_is_written_is_read(items):
    file = io.BytesIO()
    blobs.write(file, items)
    assert_same(items, blobs.read(file))
    assert_same(items, blobs.read(file))  # from the start again
    assert_same(items, blobs.load(file.getvalue()))


def test_nothing_written_nothing_read():
    assert blobs.read(io.BytesIO()) == {}


def test_arrays_are_not_copied():
    rows = np.arange(12.0).reshape(3, 4)
    _, piece = blobs.dump({"rows": rows})
    assert np.shares_memory(piece, rows)
    data = b"".join(blobs.dump({"rows": rows, "part": rows[:, 1]}))
    loaded = blobs.load(data)
    assert np.shares_memory(loaded["rows"], np.frombuffer(data, np.uint8))
    assert not loaded["rows"].flags.writeable
    assert loaded["part"].tolist() == [1, 5, 9]


def test_number_types_that_numpy_does_not_have():
    """They are found by name in a process that has not used them before."""
    numbers = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    data = b"".join(blobs.dump({"numbers": numbers}))
    code = "import sys; from cos_ml.data import blobs; print(blobs.load(sys.stdin.buffer.read()))"
    shown = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout.decode()
    assert "dtype=bfloat16" in shown
    assert_same({"numbers": numbers}, blobs.load(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a header"),
        (b"[]", "expected a header"),
        (b"no JSON\n", "expected a header"),
        (b"{}\n", "expected a header"),
        (b"7\n", "expected a header"),
        (b'[["a", 3]]\nabc', "expected a header"),
        (b'[["a", -3, null, null]]\n', "expected a header"),
        (b'[["a", 3, null, null]]\nab', "'a' has only 2 of 3 bytes"),
        (b'[["a", 3, null, null]]\nabcd', "unexpected data"),
        (b'[["a", 3, "<f4", [1]]]\nabc', "not an array"),
        (b'[["a", 4, "<f4", [2]]]\nabcd', "not an array"),
        (b'[["a", 4, "<f4", "one"]]\nabcd', "not an array"),
        (b'[["a", 4, "float5", [1]]]\nabcd', "not an array"),
        (b'[["a", 4, "object", [1]]]\nabcd', "not an array"),
        (b'[["a", 4, "|O", [1]]]\nabcd', "not an array"),
        (b'[["a", 8, "|O", [1]]]\n\1\0\0\0\0\0\0\0', "its strings end at byte 9"),
    ],
)
def test_damaged_data(data, message):
    with pytest.raises(ValueError, match=message):
        blobs.load(data)
    if data:
        with pytest.raises(ValueError, match=message):
            blobs.read(io.BytesIO(data))


def test_a_file_that_is_cut_short():
    data = b"".join(blobs.dump({"a": b"abc", "b": np.arange(3)}))
    for length in range(1, len(data)):
        with pytest.raises(ValueError, match=r"expected a header|has only"):
            blobs.read(io.BytesIO(data[:length]))
