import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.sources import datum
from tests.support.datums import JPEG, RAW, blob, number, one_float, varint


def floats_of(found, row):
    return [float(value) for piece in found.floats if piece.row == row for value in piece.values]


def data_of(found, row):
    return found.data[row].as_py()


def test_records_of_all_kinds_in_one_batch():
    unpacked = number(1, 2) + number(2, 1) + number(3, 1) + one_float(0.5) + one_float(-2.0) + number(5, 1)
    packed = blob(6, struct.pack("<3f", 1, 2, 3)) + number(5, 2)
    found = datum.decode([RAW, JPEG, unpacked, packed, b""])
    assert found.channels.tolist() == [3, 0, 2, 0, 0]
    assert found.height.tolist() == [2, 0, 1, 0, 0]
    assert found.width.tolist() == [1, 0, 1, 0, 0]
    assert found.label.tolist() == [7, 300, 1, 2, 0]
    assert found.encoded.tolist() == [False, True, False, False, False]
    assert [data_of(found, row) for row in range(5)] == [b"abcdef", b"\xff\xd8 a picture", None, None, None]
    assert [floats_of(found, row) for row in range(5)] == [[], [], [0.5, -2.0], [1.0, 2.0, 3.0], []]


@pytest.mark.parametrize("label", [-1, -(2**31), 2**31 - 1, 127, 128])
def test_labels_of_any_int32(label):
    assert datum.decode([number(5, label), RAW]).label.tolist() == [label, 7]


def test_fields_in_any_order_the_last_of_a_number_counts_and_floats_add_up():
    value = number(5, 1) + one_float(1) + number(1, 9) + blob(6, struct.pack("<f", 2)) + number(5, 2) + one_float(3)
    found = datum.decode([RAW, value])
    assert found.label.tolist() == [7, 2]
    assert found.channels.tolist() == [3, 9]
    assert floats_of(found, 1) == [1.0, 2.0, 3.0]


def test_fields_of_later_versions_are_passed_over():
    extra = number(100, 5) + blob(101, b"xyz") + varint(102 * 8 + 1) + b"8 bytes." + varint(103 * 8 + 5) + b"four"
    found = datum.decode([extra + RAW, RAW + extra])
    assert found.label.tolist() == [7, 7]
    assert data_of(found, 0) == data_of(found, 1) == b"abcdef"


@pytest.mark.parametrize(
    "records",
    [
        [RAW, RAW + number(5, 300), RAW],
        [RAW, RAW.replace(b"abcdef", b"fedcba"), RAW + one_float(2.0)],
        [RAW, number(1, 3) + number(2, 2) + number(3, 1) + blob(4, b"longer"[:5])],
        [RAW, RAW + blob(4, b"again"), RAW],  # the last of a field counts
        [RAW, RAW + number(1, 9)],
        [number(5, -7) + RAW] * 3,
        [blob(4, bytes(300)) + number(5, label) for label in (1, 200, 70_000)],
    ],
)
def test_records_that_begin_alike_are_those_that_do_not(records):
    """Behind one that begins otherwise, each is looked at from its beginning."""
    other = number(2, 8) + blob(4, b"xy")
    found, apart = datum.decode(records), datum.decode([other, *records])
    for name in ("channels", "height", "width", "label", "encoded"):
        assert getattr(found, name).tolist() == getattr(apart, name).tolist()[1:]
    assert found.data.to_pylist() == apart.data.to_pylist()[1:]
    assert [piece.values.tolist() for piece in found.floats] == [piece.values.tolist() for piece in apart.floats]


def test_no_records_at_all():
    assert len(datum.decode([]).label) == 0


@pytest.mark.parametrize("length", [length for length in range(1, len(RAW)) if length not in (2, 4, 6, 14, 16)])
def test_a_record_that_is_cut_short(length):
    with pytest.raises(datum.BadDatum, match="record 1 is truncated or not a Datum"):
        datum.decode([RAW, RAW[:length], RAW])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x00\x01", "field 0 with protobuf's wire type 0"),
        (number(4, 1), "field 4 with protobuf's wire type 0"),
        (blob(5, b"label"), "field 5 with protobuf's wire type 2"),
        (varint(20 * 8 + 3), "field 20 with protobuf's wire type 3"),
        (blob(6, b"12345"), "5 bytes of float_data"),
        (b"\x28" + b"\xff" * 10 + b"\x01", "a number that does not end"),
        (varint(4 * 8 + 2) + varint(2**63 + 5), "truncated"),
        (one_float(1)[:-1], "truncated"),
        (one_float(1) + one_float(1)[:-1], "truncated"),
    ],
)
def test_what_is_no_datum(value, message):
    with pytest.raises(datum.BadDatum, match=message) as error:
        datum.decode([RAW, RAW, value])
    assert error.value.row == 2
    with pytest.raises(datum.BadDatum, match=message):
        datum.decode([value, value])


@given(
    st.lists(
        st.tuples(
            *[st.integers(-(2**31), 2**31 - 1)] * 4,
            st.none() | st.binary(max_size=300),
            st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_what_is_written_is_read(rows):
    found = datum.decode(
        [datum.encode(c, h, w, data, label, floats, enc) for c, h, w, label, data, floats, enc in rows]
    )
    for at, (channels, height, width, label, data, floats, encoded) in enumerate(rows):
        assert (found.channels[at], found.height[at], found.width[at]) == (channels, height, width)
        assert (found.label[at], found.encoded[at]) == (label, encoded)
        assert data_of(found, at) == data
        assert floats_of(found, at) == (floats or [])


def test_it_is_written_as_caffe_writes_it():
    assert datum.encode(3, 2, 1, b"abcdef", 7, None, False) == RAW
    floats = number(1, 1) + number(2, 1) + number(3, 2) + number(5, -1) + one_float(0.5) + one_float(2) + number(7, 0)
    assert datum.encode(1, 1, 2, None, -1, np.array([0.5, 2]), False) == floats
