"""Converts Arrow values of any type to the form that ``columns.decode`` takes (driver, rank and scoring task side).

For the columns of a DataFrame, Spark does this by ``expressions``; the arguments of a registered function, and the
columns of Parquet files, are unconverted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cos_ml.data.columns import Column
from cos_ml.data.names import VECTOR_PARTS
from cos_ml.data.ragged import offsets_of
from cos_ml.errors import InvalidInputError

__all__ = ["convert_arguments", "is_readable", "is_vector", "plain", "stored_entries", "stored_values"]

VECTOR = ["type", "size", "indices", "values"]  # the fields of a Vector
MAX_LIST = 2**31 - 1  # values in the lists of an array
VIEWS = {"string_view": pa.string(), "binary_view": pa.binary()}  # types of pyarrow 16 and later, by name


def convert_arguments(arguments: Mapping[str, pa.Array], columns: Sequence[Column]) -> tuple[pa.Array, ...]:
    """The columns of a network, made of a function's arguments, which are given by name.

    Raises:
        InvalidInputError: an argument is of a type that the network does not take.
    """
    return tuple(
        _joined([_converted(arguments[name], column, name) for name in column.parts])
        if column.parts
        else _converted(*_found(arguments, column))
        for column in columns
    )


def stored_values(parts: Sequence[pa.Array], column: Column) -> pa.Array:
    """The values of a column of files, made of one or several arrays: a number, a string or bytes per row, or a list.

    Unlike those of ``convert_arguments``, numbers keep their type where there is one array.
    """
    parts = [_as_plain(values) for values in parts]
    if len(parts) > 1:  # else the column is stored as it was joined
        named = zip(parts, column.parts, strict=True)
        return _joined([_converted(values, column, name) for values, name in named])
    [values] = parts
    if is_vector(values.type):
        values = _dense(values)
    while _is_list(values.type) and _is_list(values.type.value_type):
        values = _flattened(values)
    return values


def stored_entries(vectors: pa.Array, part: str) -> pa.Array:
    """The "indices" or the "values" of the entries of Vectors in a file that are not 0."""
    return _entries(_as_plain(vectors), part)


def _as_plain(values: pa.Array) -> pa.Array:
    kind = plain(values.type)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    return values if values.type == kind else values.cast(kind)


def plain(kind: pa.DataType, spark: bool = False) -> pa.DataType:
    """The type without dictionaries, extensions, views and fixed sizes; for ``spark``, with numbers that it has."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type, spark)
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type, spark)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain(field.type, spark)) for field in kind])
    if pa.types.is_large_list(kind) and not spark:
        return pa.large_list(plain(kind.value_type))
    if _is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type, spark))
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if str(kind) in VIEWS:
        return VIEWS[str(kind)]
    if spark and pa.types.is_unsigned_integer(kind):
        return pa.int64()
    return pa.float32() if spark and pa.types.is_float16(kind) else kind


def is_readable(kind: pa.DataType, dtype: str) -> bool:
    """Whether ``stored_values`` and ``decode`` take values of a type for a column of ``dtype``."""
    kind = plain(kind)
    if dtype != "string" and (is_vector(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return True
    while _is_list(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text if dtype == "string" else _is_number(kind)


def _found(arguments: Mapping[str, pa.Array], column: Column) -> tuple[pa.Array, Column, str]:
    """The argument of a column, which may be the indices or the values of a Vector."""
    name, (whole, _, part) = column.name, column.name.lower().rpartition(".")
    if name not in arguments:  # one Vector fills two inputs
        name = name.rpartition(".")[0]
        if not (is_vector(arguments[name].type) or pa.types.is_null(arguments[name].type)):
            raise InvalidInputError(f"Argument {name!r} is of type {arguments[name].type}: expected a Vector.")
    values = arguments[name]
    if whole and part in VECTOR_PARTS and None in column.shape and is_vector(values.type):
        values = _entries(values, part)
    return values, column, name


def _converted(values: pa.Array, column: Column, name: str) -> pa.Array:
    """The values of an argument as numbers of the column's type, strings or bytes: one per row, or a list."""
    given = values.type
    is_binary = pa.types.is_binary(given) or pa.types.is_large_binary(given)
    if pa.types.is_null(given) or (is_binary and column.dtype != "string" and not column.parts):
        return values
    if is_vector(given):
        if column.is_bag:
            raise InvalidInputError(
                f"Argument {name!r} is a Vector, but the network's EmbeddingBag takes indices: name its column "
                f"'{name}.indices' in the model's input columns, or pass an array of integers."
            )
        values = _dense(values)
    while _is_list(values.type) and _is_list(values.type.value_type):
        values = _flattened(values)
    element = values.type.value_type if _is_list(values.type) else values.type
    if pa.types.is_null(element):
        return values
    is_text = pa.types.is_string(element) or pa.types.is_large_string(element)
    if not (is_text if column.dtype == "string" else _is_number(element)):
        expected = "a string or an array of strings" if column.dtype == "string" else "a Vector or numbers"
        raise InvalidInputError(f"Argument {name!r} is of type {given}: expected {expected}.")
    if is_text:
        return values
    if not _is_list(values.type):
        return _cast(values, column.dtype)
    return _list(np.maximum(_sizes(values), 0), _cast(values.flatten(), column.dtype), _nulls(values))


def _cast(numbers: pa.Array, dtype: str) -> pa.Array:
    """Numbers of another type; null where it can't hold them (1.5, NaN, 2**63 as int64)."""
    target = pa.from_numpy_dtype(np.dtype(dtype))
    if numbers.type == target:
        return numbers
    if pa.types.is_float16(numbers.type):  # pyarrow compares none, and older releases don't cast them
        numbers = pa.array(numbers.to_numpy(zero_copy_only=False).astype(np.float32), mask=_nulls(numbers))
    if pa.types.is_decimal(numbers.type):
        if pa.types.is_integer(target):
            return numbers  # which decode converts without a loss of digits
        numbers = numbers.cast(pa.float64(), safe=False)
    if pa.types.is_floating(target):
        return numbers.cast(target, safe=False)
    if pa.types.is_boolean(target):
        if pa.types.is_floating(numbers.type):
            numbers = pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, numbers.type))
        return pc.not_equal(numbers, pa.scalar(0, numbers.type))
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if pa.types.is_floating(numbers.type):
        # The largest number of a type may have no float of its own, but the one above it has: a power of two.
        fits = pc.and_(pc.greater_equal(numbers, float(low)), pc.less(numbers, float(high + 1)))
        fits = pc.and_(fits, pc.equal(pc.floor(numbers), numbers))
    else:
        if pa.types.is_uint64(numbers.type):
            small = pc.less_equal(numbers, pa.scalar(2**63 - 1, pa.uint64()))
            numbers = pc.if_else(small, numbers, pa.scalar(None, pa.uint64()))
        numbers = numbers.cast(pa.int64())
        fits = pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, min(high, 2**63 - 1)))
    return pc.if_else(fits, numbers, pa.scalar(None, numbers.type)).cast(target, safe=False)


def _joined(parts: list[pa.Array]) -> pa.Array:
    """The values of several columns as one list for each row; null where one of them is."""
    sizes = [_sizes(part) if _is_list(part.type) else np.ones(len(part), np.int64) for part in parts]
    bad = np.any([_nulls(part) for part in parts if _is_list(part.type)] or [np.zeros(len(parts[0]), bool)], axis=0)
    counts = np.maximum(np.array(sizes), 0)  # [parts, rows]
    flat = [part.flatten() if _is_list(part.type) else part for part in parts]
    element = next((one.type for one in flat if not pa.types.is_null(one.type)), pa.float64())
    everything = pa.concat_arrays([one.cast(element) for one in flat])
    starts = offsets_of(counts.reshape(-1))[:-1].reshape(counts.shape)  # of each row of each part in ``everything``
    order, lengths = starts.T.reshape(-1), counts.T.reshape(-1)
    places = np.repeat(order - offsets_of(lengths)[:-1], lengths) + np.arange(lengths.sum())
    return _list(counts.sum(axis=0), everything.take(pa.array(places)), bad, kept=True)


def _list(sizes: np.ndarray, flat: pa.Array, bad: np.ndarray, kept: bool = False) -> pa.Array:
    """Lists of these sizes; ``bad`` ones are null, and ``flat`` has values of them only if they are ``kept``."""
    sizes = sizes if kept else np.where(bad, 0, sizes)
    return pa.ListArray.from_arrays(pa.array(offsets_of(sizes).astype(np.int32)), flat, mask=pa.array(bad))


def _flattened(values: pa.Array) -> pa.Array:
    """Lists of lists as lists; null where a list or one in it is."""
    inner, outer = values.flatten(), np.maximum(_sizes(values), 0)
    ends, missing = offsets_of(np.maximum(_sizes(inner), 0)), offsets_of(_nulls(inner).astype(np.int64))
    edges = offsets_of(outer)
    bad = _nulls(values) | (missing[edges[1:]] > missing[edges[:-1]])
    return _list(np.diff(ends[edges]), inner.flatten(), bad, kept=True)


def _is_number(given: pa.DataType) -> bool:
    tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean
    return any(test(given) for test in tests)


def _is_list(given: pa.DataType) -> bool:
    return pa.types.is_list(given) or pa.types.is_large_list(given)


def is_vector(given: pa.DataType) -> bool:
    """Whether values are Vectors as Spark stores them."""
    return pa.types.is_struct(given) and [field.name for field in given] == VECTOR


def _sizes(lists: pa.Array) -> np.ndarray:
    """int64 [rows]: the sizes of lists, -1 for null."""
    return pc.list_value_length(lists).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _nulls(values: pa.Array) -> np.ndarray:
    return values.is_null().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _places(vectors: pa.StructArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, pa.Array]:
    """Of Vectors: which are null, which are dense, how many entries each has, and the entries' places and values."""
    kind, _, indices, values = vectors.flatten()
    bad, is_dense = _nulls(values), pc.equal(kind.cast(pa.float64()), 1.0).fill_null(False)
    is_dense = is_dense.to_numpy(zero_copy_only=False)
    counts = np.maximum(_sizes(values), 0) if _is_list(values.type) else np.zeros(len(values), np.int64)
    flat = values.flatten() if _is_list(values.type) else pa.array([], pa.float64())
    places = np.arange(counts.sum()) - np.repeat(offsets_of(counts)[:-1], counts)
    if _is_list(indices.type):
        sparse = indices.filter(pa.array(~is_dense & ~bad))  # in a damaged file others may have some, too
        places[~np.repeat(is_dense, counts)] = sparse.flatten().to_numpy(zero_copy_only=False)
    return bad, is_dense, counts, places, flat


def _sound(vectors: pa.StructArray) -> pa.StructArray:
    """The Vectors, with null in place of sparse ones whose parts contradict each other, as in a damaged file."""
    kind, size, indices, values = vectors.flatten()
    is_sparse = pc.not_equal(kind.cast(pa.float64()), 1.0).fill_null(True).to_numpy(zero_copy_only=False)
    is_sparse &= ~_nulls(values)
    if not is_sparse.any():
        return vectors
    wrong = np.ones(len(vectors), bool)
    if _is_list(indices.type):
        sizes = size.cast(pa.float64()).fill_null(-1.0).to_numpy(zero_copy_only=False)
        counts = np.maximum(_sizes(indices), 0)
        places = indices.flatten().cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        outside = offsets_of((places < 0) | (places >= np.repeat(sizes, counts)))[offsets_of(counts)]
        wrong = (sizes < 0) | (counts != _sizes(values)) | (np.diff(outside) > 0)
    return pc.if_else(pa.array(is_sparse & wrong), pa.scalar(None, vectors.type), vectors)


def _dense(vectors: pa.StructArray) -> pa.Array:
    """The numbers of Vectors, with the zeros of sparse ones."""
    vectors = _sound(vectors)
    bad, is_dense, counts, places, flat = _places(vectors)
    if (is_dense | bad).all():
        return _list(counts, flat, bad)
    size = vectors.flatten()[1].cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    sizes = np.where(is_dense, counts, np.where(bad, 0, np.nan_to_num(size))).astype(np.int64)
    if sizes.sum() > MAX_LIST:
        raise InvalidInputError(
            f"{len(vectors):,} Vectors have {sizes.sum():,} numbers, more than an Arrow array holds. Unless they are "
            "damaged, send fewer rows at a time: lower spark.sql.execution.arrow.maxRecordsPerBatch."
        )
    numbers = np.zeros(sizes.sum())
    numbers[np.repeat(offsets_of(sizes)[:-1], counts) + places] = flat.to_numpy(zero_copy_only=False)
    return _list(sizes, pa.array(numbers), bad)


def _entries(vectors: pa.StructArray, part: str) -> pa.Array:
    """The indices or the values of the entries of Vectors that are not 0."""
    bad, _, counts, places, flat = _places(_sound(vectors))
    numbers = flat.to_numpy(zero_copy_only=False)
    kept = numbers != 0
    sizes = np.bincount(np.repeat(np.arange(len(counts)), counts)[kept], minlength=len(counts))
    return _list(sizes, pa.array(places[kept] if part == "indices" else numbers[kept]), bad)
