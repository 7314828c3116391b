import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.data.ragged import Ragged, bucket, cut, offsets_of

SIZES = st.lists(st.integers(0, 4), max_size=8)
DIMS = st.sampled_from([(None,), (None, 2), (2, None), (2, None, 3), (None, 2, 1)])


def ragged(lengths, dims, padding=0.0):
    sizes = np.array(lengths, int) * int(np.prod([side for side in dims if side]))
    return Ragged(np.arange(1.0, sizes.sum() + 1), offsets_of(sizes), dims, padding)


def expected(rows, length):
    """What ``np.pad`` makes of each row."""
    axis = rows.dims.index(None)
    found = np.empty((0, *(length if side is None else side for side in rows.dims)))
    for start, stop, own in zip(rows.offsets, rows.offsets[1:], rows.lengths, strict=False):
        row = rows.values[start:stop].reshape([own if side is None else side for side in rows.dims])
        padded = np.pad(
            row, [(0, length - own if axis == place else 0) for place in range(row.ndim)], constant_values=rows.padding
        )
        found = np.concatenate([found, padded[None]])
    return found


@given(SIZES, DIMS, st.integers(0, 2), st.sampled_from([0.0, -1.5, np.nan]))
def test_rows_are_padded_at_their_end(lengths, dims, more, padding):
    rows = ragged(lengths, dims, padding)
    length = max([1, *lengths]) + more
    assert np.array_equal(rows.padded(length), expected(rows, length), equal_nan=True)
    if not more:
        assert np.array_equal(rows.padded(), rows.padded(length), equal_nan=True)


@given(SIZES, DIMS, st.data())
def test_rows_are_chosen_as_those_of_an_array(lengths, dims, data):
    rows = ragged(lengths, dims)
    array = rows.padded(4)
    assert rows.lengths.tolist() == lengths
    assert rows.shape == (len(lengths), *dims)
    edges = st.integers(-9, 9) | st.none()
    part = slice(data.draw(edges), data.draw(edges))
    indices = np.array(
        data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9) if lengths else st.just([])), int
    )
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))), bool)
    for chosen in (part, mask, indices, indices.astype(np.uint32)):
        assert np.array_equal(rows[chosen].padded(4), array[chosen])
        assert np.array_equal(rows[chosen][1:].padded(4), array[chosen][1:])


@given(SIZES, SIZES, DIMS)
def test_join(lengths, others, dims):
    one, other = ragged(lengths, dims), ragged(others, dims)
    assert np.array_equal(Ragged.join([one, other[1:]]).padded(4), np.concatenate([one.padded(4), other[1:].padded(4)]))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float64"])
def test_the_type_stays(dtype):
    rows = Ragged(np.array([1, 0, 1], dtype), np.array([0, 2, 3]), (None,), 1.0)
    assert rows.dtype == rows.padded().dtype == dtype
    assert rows.padded().tolist() == [[1, 0], [1, 1]]


def test_strings_are_padded_with_empty_ones():
    rows = Ragged(np.array([b"a", b"b", b"c"], object), np.array([0, 0, 2, 3]), (None,), 5.0)
    assert rows.padded().tolist() == [[b"", b""], [b"a", b"b"], [b"c", b""]]


def test_rows_of_one_length_are_not_copied():
    rows = Ragged(np.arange(6.0), np.array([0, 3, 6]), (None,))
    assert np.shares_memory(rows[1:].padded(), rows.values)
    assert rows[1:].padded(3).tolist() == [[3, 4, 5]]


def test_cut():
    arrays = {"x0": ragged([1, 3, 2], (None,)), "x1": ragged([1, 1, 1], (None,)), "y0": np.arange(3)}
    batch = cut(arrays, np.array([True, False, True]), {"x1": 2})
    assert {field: rows.tolist() for field, rows in batch.items()} == {
        "x0": [[1, 0], [5, 6]], "x1": [[1, 0], [3, 0]], "y0": [0, 2]
    }  # fmt: skip


def test_buckets_are_few_and_not_much_longer():
    lengths = np.arange(5000)
    rounded = bucket(lengths)
    assert np.unique(rounded).tolist()[:10] == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24]
    assert len(np.unique(rounded)) == 26
    assert (rounded >= lengths).all()
    assert (rounded <= np.maximum(lengths * 1.5, lengths)).all()
    assert bucket(bucket(lengths)).tolist() == rounded.tolist()
    assert int(bucket(5)) == 6
