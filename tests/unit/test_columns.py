from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cos_ml.data.columns import Column, RowError, as_list_array, decode, renumber, settle, spark_dtype
from cos_ml.errors import InvalidInputError

PIXELS = Column("pixels", "x0", (2,))
NUMBER = Column("size", "x0")


def messages(row_errors):
    return [str(error) for error in row_errors]


# ── good rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[1.5, 2.5], [3.5, 4.5]], pa.float32()),
        ([[1.5, 2.5], [3.5, 4.5]], pa.float64()),
        ([[1, 2], [3, 4]], pa.int32()),
        ([[1, 2], [3, 4]], pa.int64()),
        ([[True, False], [False, True]], pa.bool_()),
    ],
)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists(values, dtype, kind):
    numbers, row_errors = decode(pa.array(values, kind(dtype)), PIXELS)
    assert numbers.tolist() == values
    assert numbers.dtype == dtype.to_pandas_dtype()
    assert row_errors == []


@pytest.mark.parametrize(
    "values", [pa.array([1.5, -2.5], pa.float32()), pa.array([3, 4], pa.int32()), pa.array([True, False])]
)
def test_numbers(values):
    numbers, row_errors = decode(values, NUMBER)
    assert numbers.tolist() == values.to_pylist()
    assert numbers.shape == (2,)
    assert row_errors == []


def test_numbers_for_an_input_of_one():
    numbers, _ = decode(pa.array([1.5, -2.5], pa.float32()), Column("size", "x0", (1,)))
    assert numbers.tolist() == [[1.5], [-2.5]]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_binary(kind):
    numbers, row_errors = decode(pa.array([b"\x00\x01", b"\x02\xff"], kind), PIXELS)
    assert numbers.dtype == np.uint8
    assert numbers.tolist() == [[0, 1], [2, 255]]
    assert row_errors == []


def test_rows_take_the_shape_of_the_input():
    rows = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    image = Column("image", "x0", (8, 8, 1))
    numbers, row_errors = decode(as_list_array(rows), image)
    assert numbers.shape == (2, 8, 8, 1)
    assert (numbers.reshape(2, 64) == rows).all()
    assert row_errors == []
    numbers, _ = decode(pa.array([bytes(range(64)), bytes(64)]), image)
    assert numbers.shape == (2, 8, 8, 1)
    assert numbers[0, 1, 0, 0] == 8


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]),
        pa.array([[9, 9], [1, 2], [3, 4], [9, 9]], pa.list_(pa.int32())),
        pa.array([b"\x09\x09", b"\x01\x02", b"\x03\x04", b"\x09"]),
    ],
)
def test_slices(values):
    numbers, row_errors = decode(values.slice(1, 2), PIXELS)
    assert numbers.tolist() == [[1, 2], [3, 4]]
    assert row_errors == []


def test_slices_of_numbers():
    assert decode(pa.array([9.0, 1.0, 2.0, 9.0]).slice(1, 2), NUMBER)[0].tolist() == [1, 2]
    assert decode(pa.array([True, False, True]).slice(1, 2), NUMBER)[0].tolist() == [False, True]


def test_slices_with_bad_rows():
    values = pa.array([[9.0], None, [1.0, 2.0], [3.0, None], [4.0, 5.0], None]).slice(1, 4)
    numbers, row_errors = decode(values, PIXELS)
    assert messages(row_errors) == [
        "column 'pixels', row 0: is null",
        "column 'pixels', row 2: contains an element that is null",
    ]
    assert numbers[[1, 3]].tolist() == [[1, 2], [4, 5]]
    numbers, row_errors = decode(pa.array([b"\x09", None, b"\x01\x02", b"\x03"]).slice(1, 3), PIXELS)
    assert [error.row for error in row_errors] == [0, 2]
    assert numbers[1].tolist() == [1, 2]


def test_chunks():
    numbers, row_errors = decode(pa.chunked_array([[[1.0, 2.0]], [[3.0, 4.0], None]]), PIXELS)
    assert numbers[:2].tolist() == [[1, 2], [3, 4]]
    assert messages(row_errors) == ["column 'pixels', row 2: is null"]
    numbers, _ = decode(pa.chunked_array([[b"\x01\x02"], [b"\x03\x04"]]), PIXELS)
    assert numbers.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.binary()])
def test_no_rows(kind):
    numbers, row_errors = decode(pa.array([], kind), Column("image", "x0", (8, 8, 1)))
    assert numbers.shape == (0, 8, 8, 1)
    assert row_errors == []


def test_no_numbers():
    numbers, row_errors = decode(pa.array([], pa.float32()), Column("label", "y0", classes=3, low=0.0))
    assert numbers.shape == (0,)
    assert row_errors == []


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64()])
def test_infinite_numbers(dtype):
    values = [[1.0, 2.0], [np.inf, np.nan], [1.0, -np.inf], None]
    numbers, row_errors = decode(pa.array(values, pa.list_(dtype)), PIXELS)
    assert messages(row_errors) == [
        "column 'pixels', row 1: has an infinite number at position 0",
        "column 'pixels', row 2: has an infinite number at position 1",
        "column 'pixels', row 3: is null",
    ]
    assert np.isnan(numbers).tolist() == [[False, False], [True, True], [False, True], [True, True]]
    _, row_errors = decode(pa.array([np.inf, -np.inf, np.nan, 1.0], dtype), Column("weight", "w", low=0.0))
    assert messages(row_errors) == [
        f"column 'weight', row {row}: {what}" for row, what in enumerate(["is infinite", "is infinite", "is NaN"])
    ]
    rows, row_errors = decode(pa.array([[1.0], [], [1.0, np.inf]], pa.list_(dtype)), Column("steps", "x0", (None,)))
    assert messages(row_errors) == ["column 'steps', row 2: has an infinite number at position 1"]
    assert np.isnan(rows[2:].values).tolist() == [True]


def test_large_numbers_are_finite():
    values = np.array([[3e38, -3e38], [1e30, 0.0]], np.float32)  # whose squares are infinite
    numbers, row_errors = decode(as_list_array(values), PIXELS)
    assert (numbers == values).all()
    assert row_errors == []


@given(st.integers(0, 5), st.integers(0, 6), st.sampled_from([np.float32, np.float64, np.int32]), st.data())
def test_a_round_trip(rows, width, dtype, data):
    elements = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else None
    before = data.draw(arrays(dtype, (rows, width), elements=elements))
    values = as_list_array(before)
    assert values.type == pa.list_(pa.from_numpy_dtype(dtype))
    values.validate(full=True)
    after, row_errors = decode(values, Column("c", "x0", (width,)))
    assert after.dtype == before.dtype
    assert np.array_equal(after, before)
    assert row_errors == []


def test_a_round_trip_of_a_part():
    rows = np.arange(12.0).reshape(4, 3)[:, :2]  # not contiguous
    assert as_list_array(rows).to_pylist() == rows.tolist()


# ── unknown dimensions ────────────────────────────────────────────────────────────────────────────────────────────────


LISTS = st.lists(st.none() | st.lists(st.none() | st.sampled_from([0.0, 1.5, np.nan]), max_size=4), max_size=6)


@given(LISTS, st.integers(1, 2))
def test_rows_with_an_unknown_dimension_keep_their_length(lists, known):
    """Whether a row is good depends on nothing but the row."""
    column = Column("steps", "x0", (None, known))
    rows, row_errors = decode(pa.array(lists, pa.list_(pa.float32())), column)
    bad = [error.row for error in row_errors]
    assert bad == sorted(set(bad))
    assert rows.shape == (len(lists), None, known)
    for index, row in enumerate(lists):
        right = row is not None and None not in row and not np.isnan(row).any() and len(row) % known == 0
        assert right == (index not in bad)
        found = rows[index : index + 1].values
        assert found.tolist() == row if right else np.isnan(found).all() and len(found) == known


def test_errors_of_rows_with_an_unknown_dimension():
    column = Column("steps", "x0", (None, 2))
    _, row_errors = decode(pa.array([[1.0, 2, 3], None, [], [1.0, np.nan], [1.0, None]]), column)
    assert messages(row_errors) == [
        "column 'steps', row 0: has 3 numbers; the network expects a multiple of 2, of shape (None, 2)",
        "column 'steps', row 1: is null",
        "column 'steps', row 3: has NaN at position 1",
        "column 'steps', row 4: contains an element that is null",
    ]


def test_values_of_rows_with_an_unknown_dimension():
    ids = pa.array([[1, 2], [], [300, 1, 3], [4]], pa.list_(pa.int64()))
    rows, row_errors = decode(ids, Column("ids", "x0", (None,), "uint8", padding=7.0))
    assert rows.dtype == np.uint8
    assert messages(row_errors) == ["column 'ids', row 2: contains a number that is not a uint8"]
    assert rows.padded().tolist() == [[1, 2], [7, 7], [0, 7], [4, 7]]
    _, row_errors = decode(ids, Column("tags", "y0", (None,), "int64", classes=4))
    assert messages(row_errors)[0].startswith("column 'tags', row 2: is 300; expected an integer from 0 to 3")
    flags, row_errors = decode(pa.array([[True], [True, None]]), Column("flags", "x0", (None,), "bool"))
    assert flags.padded().tolist() == [[True], [False]]
    assert len(row_errors) == 1


def test_numbers_binary_and_strings_for_an_unknown_dimension():
    assert decode(pa.array([1.5, 2.5]), Column("one", "x0", (None, 1)))[0].padded().tolist() == [[[1.5]], [[2.5]]]
    blobs = pa.array([b"\x01", b"\x02\xff"])
    assert decode(blobs, Column("bytes", "x0", (None,)))[0].padded().tolist() == [[1, 0], [2, 255]]
    rows = decode(blobs, Column("bytes", "x0", (None,), padding=-1.0))[0].padded()
    assert rows.dtype == np.float32  # a byte can't hold the padding
    assert rows.tolist() == [[1, -1], [2, 255]]
    words, row_errors = decode(pa.array([["a"], ["b", "cd"], ["e", None]]), Column("words", "x0", (None,), "string"))
    assert words.padded().tolist() == [[b"a", b""], [b"b", b"cd"], [b"", b""]]
    assert [error.row for error in row_errors] == [2]


@pytest.mark.parametrize("values", [[], [[]], [None, []]])
def test_no_numbers_for_an_unknown_dimension(values):
    rows, _ = decode(pa.array(values, pa.list_(pa.float32())), Column("steps", "x0", (None, 2)))
    assert rows.padded().shape == (len(values), 1, 2)


@pytest.mark.parametrize(("size", "shape"), [(6, (3, 2)), (3, (3,)), (5, (None,)), (1, (None,)), (12, (None,))])
def test_the_rows_choose_among_shapes(size, shape):
    column = Column("tags", "y0", (3, 2), alternatives=((3,), (None,)))
    values = pa.array([None, [], list(range(size)), [1] * size], pa.list_(pa.float32()))
    assert settle(values, column) == Column("tags", "y0", shape, alternatives=(shape,))
    assert [error.row for error in decode(values, column)[1]] == [0, 1]
    assert decode(values, column)[0].shape[1:] == shape
    assert settle(values[:2], column) == column
    assert settle(values, Column("tags", "y0", (3, 2), alternatives=((3,),))).shape == (shape if shape[0] else (3, 2))


@given(st.permutations([6, 6, 3, 5, 12]), st.integers(1, 5))
def test_rows_of_several_shapes_are_an_error_in_any_order(sizes, count):
    column = Column("tags", "y0", (3, 2), alternatives=((3,), (None,)))
    values = pa.array([[1.0] * size for size in sizes[:count]])
    if len({{6: (3, 2), 3: (3,)}.get(size) for size in sizes[:count]}) == 1:
        settle(values, column)
    else:
        with pytest.raises(InvalidInputError, match="'tags' has inconsistent row shapes"):
            settle(values, column)


@pytest.mark.parametrize("dtype", ["int8", "uint64", "int64", "float64"])
def test_decimals(dtype):
    values = [Decimal(-1), Decimal("2.5"), Decimal(2**64 - 1), Decimal(2**64), None]
    numbers, row_errors = decode(pa.array(values, pa.decimal128(25, 1)), Column("c", "x0", (), dtype))
    low, high = (0, 2**64 - 1) if dtype == "uint64" else (-(2**63), 2**63 - 1) if dtype == "int64" else (-128, 127)
    if dtype == "float64":
        assert numbers[:4].tolist() == [-1, 2.5, 2.0**64, 2.0**64]
    else:
        right = [value is not None and low <= value <= high and value == int(value) for value in values]
        assert numbers.tolist() == [int(value) if good else 0 for value, good in zip(values, right, strict=True)]
        assert [error.row for error in row_errors] == [row for row, good in enumerate(right) if not good]


def test_two_unknown_dimensions_are_an_error():
    # An Input of (None, None, 3) is common among image networks, and how a flat row divides over it is unknown.
    with pytest.raises(ValueError, match="'image'"):
        decode(pa.array([[1.0] * 48]), Column("image", "x0", (None, None, 3)))


# ── bad rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_null_rows_become_nan():
    numbers, row_errors = decode(pa.array([[1.0, 2.0], None, [3.0, 4.0]]), PIXELS)
    assert messages(row_errors) == ["column 'pixels', row 1: is null"]
    assert np.isnan(numbers[1]).all()
    assert numbers[[0, 2]].tolist() == [[1, 2], [3, 4]]


def test_null_rows_of_integers_become_0():
    numbers, row_errors = decode(pa.array([[1, 2], None], pa.list_(pa.int32())), PIXELS)
    assert numbers.tolist() == [[1, 2], [0, 0]]
    assert numbers.dtype == np.int32
    assert len(row_errors) == 1
    numbers, row_errors = decode(pa.array([b"\x01\x02", None]), PIXELS)
    assert numbers.tolist() == [[1, 2], [0, 0]]
    assert len(row_errors) == 1


def test_null_numbers():
    numbers, row_errors = decode(pa.array([1.0, None, 3.0]), NUMBER)
    assert messages(row_errors) == ["column 'size', row 1: is null"]
    assert numbers[[0, 2]].tolist() == [1, 3]
    assert np.isnan(numbers[1])


def test_null_rows_over_bytes_that_are_there():
    # Arrow allows a null row to have something under it.
    whole = pa.array([b"\x01\x02", b"\x09\x09", b"\x03\x04"])
    masked = pa.Array.from_buffers(pa.binary(), 3, [pa.py_buffer(b"\x05"), *whole.buffers()[1:]])
    numbers, row_errors = decode(masked, PIXELS)
    assert [error.row for error in row_errors] == [1]
    assert numbers[[0, 2]].tolist() == [[1, 2], [3, 4]]
    whole = pa.array([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0]])
    masked = pa.ListArray.from_arrays(whole.offsets, whole.values, mask=pa.array([False, True, False]))
    numbers, row_errors = decode(masked, PIXELS)
    assert [error.row for error in row_errors] == [1]
    assert numbers[[0, 2]].tolist() == [[1, 2], [3, 4]]


def test_nulls_inside_lists():
    numbers, row_errors = decode(pa.array([[1.0, None], [3.0, 4.0]]), PIXELS)
    assert messages(row_errors) == ["column 'pixels', row 0: contains an element that is null"]
    assert np.isnan(numbers[0]).all()
    assert numbers[1].tolist() == [3, 4]


def test_nan():
    _, row_errors = decode(pa.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]]), PIXELS)
    assert messages(row_errors) == [
        "column 'pixels', row 1: has NaN at position 1",
        "column 'pixels', row 2: has NaN at position 0",
    ]
    _, row_errors = decode(pa.array([1.0, np.nan]), NUMBER)
    assert messages(row_errors) == ["column 'size', row 1: is NaN"]


@pytest.mark.parametrize(
    ("values", "count"), [([[1.0, 2.0], [3.0]], 1), ([[1.0, 2.0], [3.0, 4.0, 5.0]], 3), ([[1.0, 2.0], []], 0)]
)
def test_wrong_sizes(values, count):
    numbers, row_errors = decode(pa.array(values), PIXELS)
    assert [error.row for error in row_errors] == [1]
    assert str(row_errors[0]).startswith(f"column 'pixels', row 1: has {count} numbers")
    assert str(row_errors[0]).endswith("the network expects 2, of shape (2,)")
    assert numbers[0].tolist() == [1, 2]
    assert np.isnan(numbers[1]).all()


def test_wrong_sizes_of_all_rows():
    numbers, row_errors = decode(pa.array([[1.0, 2.0, 3.0]] * 2), PIXELS)
    assert numbers.shape == (2, 2)
    assert [error.row for error in row_errors] == [0, 1]


def test_everything_wrong_comes_in_the_order_of_the_rows():
    values = pa.array([[np.nan, 1.0], None, [1.0], [1.0, None], [5.0, 6.0], [7.0, np.nan]])
    numbers, row_errors = decode(values, PIXELS)
    assert messages(row_errors) == [
        "column 'pixels', row 0: has NaN at position 0",
        "column 'pixels', row 1: is null",
        "column 'pixels', row 2: has 1 numbers; the network expects 2, of shape (2,)",
        "column 'pixels', row 3: contains an element that is null",
        "column 'pixels', row 5: has NaN at position 1",
    ]
    assert numbers[4].tolist() == [5, 6]
    assert not any(error.fatal for error in row_errors)


@given(
    st.lists(
        st.none() | st.lists(st.none() | st.floats(width=32, allow_infinity=False), max_size=3), max_size=6
    )
)  # fmt: skip
def test_a_row_is_good_or_has_an_error(rows):
    numbers, row_errors = decode(pa.array(rows, pa.list_(pa.float32())), PIXELS)
    bad = [error.row for error in row_errors]
    assert bad == sorted(set(bad))
    for index, row in enumerate(rows):
        right = row is not None and len(row) == 2 and None not in row and not np.isnan(row).any()
        assert right == (index not in bad)
        if right:
            assert numbers[index].tolist() == row


@pytest.mark.parametrize(("value", "shown"), [(3.0, "3"), (-1.0, "-1"), (0.5, "0.5")])
def test_labels_out_of_range(value, shown):
    _, row_errors = decode(pa.array([0.0, 2.0, value]), Column("digit", "y0", classes=3))
    assert messages(row_errors) == [
        f"column 'digit', row 2: is {shown}; expected an integer from 0 to 2, because the network's "
        "output has 3 classes"
    ]
    assert row_errors[0].fatal


def test_labels_in_range():
    for values in (pa.array([0.0, 2.0]), pa.array([0, 2], pa.int32())):
        assert decode(values, Column("digit", "y0", classes=3))[1] == []


def test_labels_of_several_positions_are_shown_by_the_one_that_is_out_of_range():
    _, row_errors = decode(pa.array([[0.0, 1.0], [0.0, 5.0]]), Column("digits", "y0", (2,), classes=3))
    assert [error.row for error in row_errors] == [1]
    assert "is 5;" in str(row_errors[0])


def test_null_labels_are_null_and_not_out_of_range():
    _, row_errors = decode(pa.array([0.0, None, np.nan]), Column("digit", "y0", classes=3))
    assert messages(row_errors) == ["column 'digit', row 1: is null", "column 'digit', row 2: is NaN"]


def test_negative_weights():
    weight = Column("weight", "w", low=0.0)
    assert decode(pa.array([0.0, 2.0]), weight)[1] == []
    _, row_errors = decode(pa.array([1.0, -2.5, 0.0]), weight)
    assert messages(row_errors) == ["column 'weight', row 1: is -2.5; must be >= 0"]
    assert row_errors[0].fatal
    _, row_errors = decode(pa.array([None, -2.5]), weight)
    assert [error.row for error in row_errors] == [0, 1]


def test_nothing_but_null_weights():
    _, row_errors = decode(pa.array([None, None], pa.float32()), Column("weight", "w", low=0.0))
    assert messages(row_errors) == ["column 'weight', row 0: is null", "column 'weight', row 1: is null"]


def test_renumber():
    assert renumber([RowError(1, "c", "is null", fatal=True)], 10) == [RowError(11, "c", "is null", fatal=True)]


@pytest.mark.parametrize(
    ("tensor", "travels"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("int8", "int8"),
        ("int32", "int32"),
        ("uint8", "uint8"),
        ("uint64", "uint64"),
        ("int64", "int64"),
        ("bool", "bool"),
    ],
)
def test_spark_dtype(tensor, travels):
    assert spark_dtype(tensor) == travels


def test_nulls_among_booleans():
    column = Column("flags", "x0", (2,), "bool")
    flags, row_errors = decode(pa.array([[True, False], [None, True], None], pa.list_(pa.bool_())), column)
    assert flags.tolist() == [[True, False], [False, False], [False, False]]
    assert messages(row_errors) == [
        "column 'flags', row 1: contains an element that is null or not a bool",
        "column 'flags', row 2: is null or not a bool",
    ]


# ── number types ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers_keep_every_digit(dtype):
    limits = np.iinfo(dtype)
    values = [int(limits.min), int(limits.max)]
    given = pa.decimal128(20, 0) if dtype == "uint64" else pa.int64()  # as Spark sends them
    numbers, row_errors = decode(pa.array([values, None], pa.list_(given)), Column("ids", "x0", (2,), dtype))
    assert numbers.dtype == dtype
    assert numbers[0].tolist() == values
    assert messages(row_errors) == [f"column 'ids', row 1: is null or not {'an' if dtype[0] == 'i' else 'a'} {dtype}"]


WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@given(st.sampled_from(WHOLE), st.floats(width=32) | st.integers(-(2**65), 2**65).map(float), st.data())
def test_a_float_is_a_whole_number_that_the_type_holds_or_a_bad_row(dtype, value, data):
    kind = data.draw(st.sampled_from([pa.float32(), pa.float64()]))
    value = pa.scalar(value, pa.float64()).cast(kind, safe=False).as_py()
    limits = np.iinfo(dtype)
    right = np.isfinite(value) and value == int(value) and limits.min <= int(value) <= limits.max
    for column, values in ((Column("c", "x0", (), dtype), [value]), (Column("c", "x0", (None,), dtype), [[value]])):
        numbers, row_errors = decode(pa.array(values, kind if column.size else pa.list_(kind)), column)
        assert len(row_errors) == (not right)
        found = numbers if column.size else numbers.flat_values
        assert found.dtype == dtype
        assert found.tolist() == [int(value) if right else 0]


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float64(), pa.decimal128(38, 2)])
def test_the_limits_of_whole_numbers(dtype, kind):
    limits = np.iinfo(dtype)
    for value in (limits.min, limits.max, int(limits.min) - 1, int(limits.max) + 1):
        value = int(value)
        try:
            values = pa.array([Decimal(value) if pa.types.is_decimal(kind) else value], kind)
        except (pa.ArrowInvalid, OverflowError):
            continue  # the column's own type does not hold it
        if values[0].as_py() != value:
            continue
        numbers, row_errors = decode(values, Column("c", "x0", (), dtype))
        right = limits.min <= value <= limits.max
        assert (numbers.tolist(), len(row_errors)) == ([value if right else 0], not right)


def test_fractions_are_no_whole_numbers():
    column = Column("ids", "x0", (2,), "int32")
    for kind in (pa.float32(), pa.float64()):
        _, row_errors = decode(pa.array([[1, 2], [1, 1.5]], pa.list_(kind)), column)
        assert messages(row_errors) == ["column 'ids', row 1: contains a number that is not an int32"]


def test_bytes_for_signed_ones():
    numbers, row_errors = decode(pa.array([b"\x7f", b"\x80"]), Column("c", "x0", (1,), "int8"))
    assert numbers.tolist() == [[127], [0]]
    assert messages(row_errors) == ["column 'c', row 1: contains a number that is not an int8"]


@pytest.mark.parametrize(("dtype", "kind"), [("int32", pa.int32()), ("float32", pa.float32()), ("uint8", pa.uint8())])
def test_indices_of_an_embedding(dtype, kind):
    column = Column("ids", "x0", (2,), dtype, below=9)
    values = [[0, 8], [1, 9], [3, 4], None, [-1 if kind != pa.uint8() else 200, 1]]
    numbers, row_errors = decode(pa.array(values, pa.list_(kind)), column)
    expected = "expected an index from 0 to 8, because the network's Embedding has 9 rows"
    assert messages(row_errors)[0] == f"column 'ids', row 1: has 9 at position 1; {expected}"
    assert [error.row for error in row_errors] == [1, 3, 4]
    assert not any(error.fatal for error in row_errors)
    assert numbers.tolist() == [[0, 8], [0, 0], [3, 4], [0, 0], [0, 0]]
    ragged, found = decode(pa.array(values, pa.list_(kind)), Column("ids", "x0", (None,), dtype, below=9))
    assert [str(error) for error in found][::2] == [str(error).replace("has", "is", 1).replace(
        " at position 1", "").replace(" at position 0", "") for error in row_errors][::2]  # fmt: skip
    assert ragged.padded().tolist() == [[0, 8], [0, 0], [3, 4], [0, 0], [0, 0]]


@pytest.mark.parametrize(("dtype", "value"), [("uint8", -1), ("uint8", 256), ("int8", 128), ("uint32", -1)])
def test_integers_never_wrap(dtype, value):
    numbers, row_errors = decode(pa.array([1, value]), Column("ids", "x0", (), dtype))
    article = "an" if dtype[0] == "i" else "a"
    assert messages(row_errors) == [f"column 'ids', row 1: contains a number that is not {article} {dtype}"]
    assert numbers.tolist() == [1, 0]


def test_doubles_keep_every_digit():
    numbers, _ = decode(pa.array([[1_700_000_000.25]]), Column("time", "x0", (1,), "float64"))
    assert numbers.tolist() == [[1_700_000_000.25]]


# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ignored_class_is_valid():
    column = Column("tag", "y0", (2,), "int32", classes=3, ignored=-1.0)
    values = pa.array([[0, -1], [2, 1]], pa.list_(pa.int32()))
    assert decode(values, column)[1] == []
    _, row_errors = decode(pa.array([[0, -1], [-2, 1]], pa.list_(pa.int32())), column)
    assert "row 1: is -2; expected an integer from 0 to 2, or -1, because" in messages(row_errors)[0]


def test_probabilities_are_from_0_to_1():
    column = Column("click", "y0", (1,), low=0.0, high=1.0)
    assert decode(pa.array([0.0, 0.3, 1.0]), column)[1] == []
    _, row_errors = decode(pa.array([0.0, 1.5]), column)
    expected = "is 1.5; expected a number from 0 to 1, because the loss compares probabilities"
    assert messages(row_errors) == [f"column 'click', row 1: {expected}"]
    assert row_errors[0].fatal


def test_rows_of_another_size_have_the_hint_of_their_column():
    _, row_errors = decode(pa.array([[0, 1, 0]]), Column("digit", "y0", (1,), hint="Use another loss."))
    assert messages(row_errors)[0].endswith("the network expects 1, of shape (1,). Use another loss.")
