"""The rows that an exported file is checked with, and what transform computes for them (driver side)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.columns import Column, decode, match_lengths
from cos_ml.data.expressions import expression
from cos_ml.data.names import quoted, resolve
from cos_ml.data.ragged import cut
from cos_ml.data.spool import raise_on_invalid
from cos_ml.errors import ExportError
from cos_ml.exports.signature import ExportedTensor, Images, Source
from cos_ml.sources.pixels import import_pillow

__all__ = ["arrays_of", "check_equal", "generated", "sources_of"]

ROWS = 32  # of the user's that are compared: transform, too, passes so many through the network together
GENERATED = 3
UNKNOWN = 8  # the length of generated rows in a dimension of None
TOLERANCE = 1e-3  # relative to the largest value of a column: rounding stays far below it
HALF_TOLERANCE = 2e-2  # of networks that compute in half precision


def sources_of(column: Column, images: Mapping[str, Images], decodes: bool, rows: DataFrame | None) -> list[Source]:
    """The exported inputs that fill one input of a network: one for each of its columns.

    Args:
        column: the network's input.
        images: by column of pixels, the files that they are decoded from.
        decodes: whether the format decodes image files.
        rows: the user's rows, whose types tell what the network does not; None if there are none.

    Raises:
        ExportError: several columns are joined, and only rows tell their sizes.
    """
    if column.parts:
        return [Source(one.name, one) for one in _parts(column, rows)]
    found = images.get(column.name)
    if found is not None:
        pixels = replace(column, dtype="uint8" if found.spec.output_type == "uint8" else "float32")
        return [Source(column.name, pixels, found if decodes else None)]
    is_binary = rows is not None and isinstance(resolve(rows, column.name).data_type, T.BinaryType)
    return [Source(column.name, replace(column, dtype="uint8") if is_binary else column)]


def _parts(column: Column, rows: DataFrame | None) -> list[Column]:
    """The columns that are joined to one, each with its shape."""
    names = column.parts
    if rows is None:
        if column.size != len(names):
            raise ExportError(
                f"The columns {list(names)} are joined to an input of {column.size or 'any number of'} values, and "
                "only rows tell the size of each: pass rows, a DataFrame that has these columns."
            )
        return [replace(column, name=name, shape=(), parts=()) for name in names]
    types = {name: resolve(rows, name).data_type for name in names}
    flat = [replace(column, name=name, shape=(None,), parts=()) for name in names]
    is_number = [isinstance(kind, (T.NumericType, T.BooleanType, T.StringType)) for kind in types.values()]
    arrays = [one for one, scalar in zip(flat, is_number, strict=True) if not scalar]
    first: Any = rows.select(*(F.size(expression(rows, one)) for one in arrays)).first() if arrays else []
    if first is None:
        raise ExportError("The DataFrame rows has no rows.")
    sizes = iter(first)
    return [replace(one, shape=() if scalar else (next(sizes),)) for one, scalar in zip(flat, is_number, strict=True)]


def generated(spark: SparkSession, sources: Sequence[Source], words: Sequence[str]) -> DataFrame:
    """Three rows of random numbers, strings or image files.

    Args:
        spark: the session.
        sources: what the rows have columns for.
        words: strings to choose from, those that the network knows among them.
    """
    random, columns = np.random.default_rng(0), {}
    for source in sources:
        if source.images:
            columns[source.images.files] = pa.array([_picture(random, source.images) for _ in range(GENERATED)])
            continue
        shape = tuple(UNKNOWN if side is None else side for side in source.column.shape)
        values = _values(random, (GENERATED, math.prod(shape)), source.column, words)
        if source.column.dtype == "uint8":
            columns[source.column.name] = pa.array([row.tobytes() for row in values])
        else:
            columns[source.column.name] = pa.array(values.tolist() if shape else values[:, 0].tolist())
    return spark.createDataFrame(pa.table(columns))


def _values(random: np.random.Generator, shape: tuple[int, ...], column: Column, words: Sequence[str]) -> np.ndarray:
    if column.dtype == "string":
        return random.choice(np.array(words, object), shape)
    if column.dtype.startswith("float"):
        return random.uniform(0, column.below or 1, shape).astype(column.dtype)
    high = 256 if column.dtype == "uint8" else 2
    return random.integers(0, column.below or high, shape).astype(column.dtype)


def _picture(random: np.random.Generator, images: Images) -> bytes:
    """A PNG file of another size than that of the pixels."""
    spec, file = images.spec, io.BytesIO()
    pixels = random.integers(0, 256, (spec.height * 2 + 3, spec.width * 3 + 1, 3)).astype(np.uint8)
    import_pillow().fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def arrays_of(
    scored: DataFrame, sources: Sequence[Source], outputs: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """The exported inputs of rows, and what transform has computed for them.

    Args:
        scored: what transform returns.
        sources: the exported inputs.
        outputs: the columns that transform has added.

    Returns:
        tuple: an array for each input, and for each output a list of numbers, arrays or strings.

    Raises:
        InvalidInputError: a row is invalid.
    """
    read = [(f"x{place}", _expression(scored, one)) for place, one in enumerate(sources)]
    read += [(f"y{place}", _plain(scored, name)) for place, name in enumerate(outputs)]
    table = scored.select(*(value.alias(name) for name, value in read)).toArrow()
    plain = [replace(one.column, field=f"x{place}") for place, one in enumerate(sources) if not one.images]
    arrays, errors = {}, []
    for column in plain:
        arrays[column.field], found = decode(table[column.field], column)
        errors += found
    if errors := errors + match_lengths(arrays, plain, errors):
        raise_on_invalid(errors, "error")
    padded = cut(arrays, slice(None))
    inputs: dict[str, np.ndarray] = {}
    for place, source in enumerate(sources):
        if source.images is None:
            inputs[source.name] = padded[f"x{place}"]
        else:
            inputs[source.name] = np.array([*table[f"x{place}"].to_pylist(), None], object)[:-1]
    return inputs, {name: table[f"y{place}"].to_pylist() for place, name in enumerate(outputs)}


def _expression(df: DataFrame, source: Source) -> Any:
    if source.images is None:
        return expression(df, source.column)
    found = resolve(df, source.images.files)
    if not isinstance(found.data_type, T.BinaryType):
        raise ExportError(
            f"Column {source.images.files!r} is of type {found.data_type.simpleString()}: the exported file decodes "
            "whole image files, so rows need them as binary values."
        )
    return found.values


def _plain(df: DataFrame, name: str) -> Any:
    column = F.col(quoted(name))
    return vector_to_array(column) if isinstance(df.schema[name].dataType, VectorUDT) else column


def check_equal(
    expected: Mapping[str, Sequence[Any]],
    found: Mapping[str, np.ndarray],
    outputs: Sequence[ExportedTensor],
    half: bool,
) -> float:
    """The largest difference between the outputs of transform and of an exported file, relative to the largest value.

    Args:
        expected: the rows of each column of transform.
        found: the arrays of the exported file.
        outputs: its outputs.
        half: whether the network computes in half precision.

    Raises:
        ExportError: a column differs by more than rounding.
    """
    worst = 0.0
    for output in outputs:
        difference = _difference(expected[output.column], found[output.name], output)
        if difference > (HALF_TOLERANCE if half else TOLERANCE):
            raise ExportError(
                f"The exported file computes something else than transform: column {output.column!r} differs by "
                f"{difference:.2g} of its largest value. Nothing was written."
            )
        worst = max(worst, difference)
    return worst


def _difference(expected: Sequence[Any], found: np.ndarray, output: ExportedTensor) -> float:
    """The largest difference of a column; infinite where strings, shapes or NaNs differ."""
    if len(expected) != len(found):
        return math.inf
    if output.dtype == "string":
        texts = [one.decode() if isinstance(one, bytes) else one for one in found.reshape(-1)]
        return 0.0 if texts == [one or "" for one in expected] else math.inf
    rows = [np.asarray(one, np.float64).reshape(-1) for one in expected]
    others = [_real(one.astype(np.float64), len(row), output) for one, row in zip(found, rows, strict=True)]
    if [one.shape for one in rows] != [one.shape for one in others]:
        return math.inf
    first, second = np.concatenate(rows), np.concatenate(others)
    if not (np.isnan(first) == np.isnan(second)).all():
        return math.inf
    scale = np.nanmax(np.abs(first), initial=0.0)
    return float(np.nanmax(np.abs(first - second), initial=0.0) / (scale or 1.0))


def _real(row: np.ndarray, size: int, output: ExportedTensor) -> np.ndarray:
    """The values of one row, without those that transform cuts off: what was computed for padding."""
    if row.size > size and None in output.shape[1:]:
        axis = output.shape[1:].index(None)
        row = np.take(row, range(size * row.shape[axis] // row.size), axis)
    return row.reshape(-1)
