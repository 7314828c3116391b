import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cos_ml.data.columns import Column
from cos_ml.data.pandas_internals import run_arrow
from cos_ml.data.parquet import column_names, values_of
from cos_ml.data.raw_columns import convert_arguments, stored_values
from cos_ml.errors import InvalidInputError

VECTORS = pa.array(
    [
        {"type": 1, "size": None, "indices": None, "values": [1.0, 0.0, 3.0]},
        {"type": 0, "size": 3, "indices": [0, 2], "values": [5.0, 6.0]},
        None,
        {"type": 0, "size": 3, "indices": [], "values": []},
    ],
    pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    ),
)


def converted(values, dtype="float32", **options):
    (found,) = convert_arguments({"x": values}, [Column("x", "x0", (3,), dtype, **options)])
    return found


def test_vectors():
    found = converted(VECTORS)
    assert found.to_pylist() == [[1, 0, 3], [5, 0, 6], None, [0, 0, 0]]
    assert found.type.value_type == pa.float32()
    assert converted(VECTORS[1:]).to_pylist() == [[5, 0, 6], None, [0, 0, 0]]
    assert converted(VECTORS[:1]).to_pylist() == [[1, 0, 3]]


@pytest.mark.parametrize(
    "parts",
    [
        {"size": None}, {"size": -1}, {"indices": None}, {"indices": [0]}, {"indices": [0, 1, 2]},
        {"indices": [0, 3]}, {"indices": [-1, 2]}, {"indices": [0, None]}, {"type": -1, "size": None},
    ],
)  # fmt: skip
def test_a_sparse_vector_whose_parts_contradict_each_other_is_none(parts):
    """As a damaged file may have it; those beside it are what they are."""
    rows = VECTORS.to_pylist()
    vectors = pa.array([rows[1], rows[1] | parts, rows[0]], VECTORS.type)
    assert converted(vectors).to_pylist() == [[5, 0, 6], None, [1, 0, 3]]
    columns = [Column("x.indices", "x0", (None,), "int32"), Column("x.values", "x1", (None,), "float32")]
    found = convert_arguments({"x": vectors}, columns)
    assert [one.to_pylist() for one in found] == [[[0, 2], None, [0, 2]], [[5, 6], None, [1, 3]]]


@pytest.mark.parametrize("other", [{"type": 1}, {"values": None}])
def test_indices_of_a_vector_that_is_not_sparse_or_none_are_not_anothers(other):
    sparse = VECTORS[1].as_py()
    found = converted(pa.array([sparse | {"indices": [1, 2]} | other, sparse], VECTORS.type)).to_pylist()
    assert found == [None if "values" in other else [5, 6], [5, 0, 6]]


def test_vectors_too_large_for_arrow_are_refused():
    huge = {"type": 0, "size": 2**31 - 1, "indices": [0], "values": [1.0]}
    with pytest.raises(InvalidInputError, match="2 Vectors have 4,294,967,294 numbers"):
        converted(pa.array([huge, huge], VECTORS.type))


def test_vectors_of_pandas():
    frame = pd.DataFrame(
        {
            "type": [1.0, 0.0, np.nan],
            "size": [np.nan, 3.0, np.nan],
            "indices": [None, np.array([2], np.int32), None],
            "values": [np.array([1.0, 2.0, 3.0]), np.array([4.0]), None],
        }
    )
    seen = []
    list(run_arrow(lambda batches: iter([seen.extend(batches) or pa.array([0])]), iter([frame])))
    assert converted(seen[0][0]).to_pylist() == [[1, 2, 3], [0, 0, 4], None]


def test_entries_of_vectors():
    columns = [Column("v.indices", "x0", (None,), "int32"), Column("v.values", "x1", (None,), "float32")]
    indices, values = convert_arguments({"v": VECTORS}, columns)
    assert indices.to_pylist() == [[0, 2], [0, 2], None, []]
    assert values.to_pylist() == [[1, 3], [5, 6], None, []]
    assert convert_arguments({"v.indices": VECTORS, "v.values": VECTORS}, columns) == (indices, values)
    with pytest.raises(InvalidInputError, match=r"Argument 'v' is of type list.*expected a Vector"):
        convert_arguments({"v": pa.array([[1.0]])}, columns)


def test_a_column_that_is_called_values_is_a_whole_one():
    column = Column("values", "x0", (None,))
    (found,) = convert_arguments({"values": VECTORS}, [column])
    assert found.to_pylist() == [[1, 0, 3], [5, 0, 6], None, [0, 0, 0]]
    assert values_of(pa.record_batch([VECTORS], ["values"]), "values", column, {}).to_pylist() == found.to_pylist()


def test_columns_of_files_are_what_their_paths_say():
    file = pa.record_batch([VECTORS, pa.StructArray.from_arrays([VECTORS], ["values"])], ["v", "s"])
    entries, dense = [[1, 3], [5, 6], None, []], [[1, 0, 3], [5, 0, 6], None, [0, 0, 0]]
    for shape in [(3,), (None,)]:
        assert values_of(file, [["v", "values"]], Column("v.values", "x0", shape), {}).to_pylist() == entries
        assert values_of(file, [["s", "values"]], Column("s.values", "x0", shape), {}).to_pylist() == dense
    joined = Column("v.values, v", "x0", (None,), parts=("v.values", "v"))
    assert values_of(file, [["v", "values"], ["v"]], joined, {}).to_pylist()[:2] == [[1, 3, 1, 0, 3], [5, 6, 5, 0, 6]]
    assert values_of(file, "v", joined, {}).to_pylist() == dense  # cacheDir has what Spark has joined
    assert column_names([[["v", "indices"]], [["v", "values"]], "values"], {}) == ["v", "values"]


def test_a_vector_is_no_row_of_indices():
    with pytest.raises(InvalidInputError, match=r"Argument 'x' is a Vector.*EmbeddingBag takes indices"):
        converted(VECTORS, "int32", below=3, padding=-1.0)


def test_nested_arrays_are_flattened():
    nested = pa.array([[[1.0], [2.0, 3.0]], None, [[4.0], None], []], pa.list_(pa.list_(pa.float64())))
    assert converted(nested).to_pylist() == [[1, 2, 3], None, None, []]
    assert converted(pa.array([[nested.to_pylist()[0]]])).to_pylist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int8", [1.0, 1.5, 300.0, float("nan"), float("inf"), None], [1, None, None, None, None, None]),
        ("int8", [127, 128, -128], [127, None, -128]),
        ("int64", [2.0**63, -(2.0**63), 2.0**62], [None, -(2**63), 2**62]),  # as Spark casts them
        ("uint64", [-1, 2**62], [None, 2**62]),
        ("uint64", [-1.0, 2.0**63, 2.0**64], [None, 2**63, None]),
        ("bool", [0, 2, None], [False, True, None]),
        ("float32", [True, False], [1.0, 0.0]),
        ("float64", [1, None], [1.0, None]),
    ],
)
def test_numbers_become_those_of_the_network(dtype, values, expected):
    assert converted(pa.array(values), dtype).to_pylist() == expected
    assert converted(pa.array([values]), dtype).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (pa.array([1, 2**64 - 1, None], pa.uint64()), "int32", [1, None, None]),
        (pa.array([1, 2**64 - 1, None], pa.uint64()), "int64", [1, None, None]),
        (pa.array([1, 2**64 - 1], pa.uint64()), "float64", [1.0, 2.0**64]),
        (pa.array(np.float16([1, 1.5, np.nan])), "int32", [1, None, None]),
        (pa.array([np.float16(1.5), None], pa.float16()), "float32", [1.5, None]),
        (pa.array(np.float16([0, 1.5, np.inf])), "bool", [False, True, None]),
    ],
)
def test_numbers_of_files_that_spark_does_not_have(values, dtype, expected):
    found = stored_values([values, values], Column("x", "x0", (2,), dtype, parts=("a", "b")))
    assert found.to_pylist() == [[one, one] for one in expected]


def test_columns_are_joined():
    column = Column("x", "x0", (4,), parts=("a", "b", "v"))
    arguments = {
        "a": pa.array([1, 2, 3]),
        "b": pa.array([[1.5], None, [2.5]]),
        "v": VECTORS[:3].take(pa.array([0, 1, 1])),
    }
    (found,) = convert_arguments(arguments, [column])
    assert found.to_pylist() == [[1, 1.5, 1, 0, 3], None, [3, 2.5, 5, 0, 6]]


def test_strings_and_bytes_stay():
    assert converted(pa.array(["a", None]), "string").to_pylist() == ["a", None]
    assert converted(pa.array([b"abc"])).to_pylist() == [b"abc"]
    assert converted(pa.array([b"abc"], pa.large_binary())).to_pylist() == [b"abc"]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(pa.array(["a"]), "float32"), (pa.array([datetime.date(2026, 1, 1)]), "int32"), (pa.array([1]), "string")],
)
def test_other_types_are_refused_by_the_name_of_the_argument(values, dtype):
    with pytest.raises(InvalidInputError, match=r"Argument 'x' is of type .*expected"):
        converted(values, dtype)
