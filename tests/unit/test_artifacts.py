import io

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    with pytest.raises(ValueError, match=r"'network' has pieces \[\d, 2\]"):
        blobs.join(rows)


def test_record_batches():
    table = pa.Table.from_batches(blobs.record_batches(ITEMS))
    assert table.schema == pa.schema([("name", pa.string()), ("part", pa.int32()), ("data", pa.binary())])
    assert blobs.join((row["name"], row["part"], row["data"]) for row in table.to_pylist()) == ITEMS


@given(st.dictionaries(st.text(max_size=3), st.binary(max_size=20), max_size=4))
def test_what_is_written_is_read(items):
    file = io.BytesIO()
    blobs.write(file, items)
    assert blobs.read(file) == items
    assert blobs.read(file) == items  # from the start again


def test_nothing_written_nothing_read():
    assert blobs.read(io.BytesIO()) == {}
