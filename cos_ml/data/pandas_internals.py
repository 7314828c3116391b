"""Converts columns of a pandas UDF to Arrow arrays, and back without Python objects (scoring task side).

Needed before Spark 4.1: earlier releases have no Arrow UDFs.

Spark turns every row of an array column into a Python list, by ``Series.apply``, which takes longer than the network.
A subclass of pandas's Series whose ``apply`` does nothing hands over Arrow arrays as they are. Where Spark or pandas no
longer take it, the rows go as Python objects: ten times slower, with the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cos_ml import spark_internals

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["arrow_column", "arrow_frame", "in_parts", "run_arrow", "takes_arrow"]

ARROW_TYPES: dict[type, pa.DataType] = {bytes: pa.binary(), bytearray: pa.binary(), str: pa.large_string()}


def run_arrow(
    function: Callable[[Iterator[tuple[pa.Array, ...]]], Iterator[pa.Array]],
    batches: Iterator[pd.Series | pd.DataFrame | tuple[pd.Series | pd.DataFrame, ...]],
) -> Iterator[pd.Series | pd.DataFrame]:
    """Run a ``function`` of Arrow columns in a pandas UDF; each struct that it returns becomes a DataFrame.

    Args:
        function: takes a tuple of columns for each batch; the batches that it returns may have other sizes.
        batches: what Spark passes: a tuple of columns, or a single column without a tuple.
    """

    def converted() -> Iterator[tuple[pa.Array, ...]]:
        for batch in batches:
            columns = tuple(map(arrow_column, batch if isinstance(batch, tuple) else (batch,)))
            del batch  # a copy of images
            yield columns

    for result in function(converted()):
        if pa.types.is_struct(result.type):
            yield arrow_frame({field.name: result.field(index) for index, field in enumerate(result.type)})
        else:
            yield arrow_frame({"result": result})["result"]


def in_parts(batches: Iterator[Any], rows: int) -> Iterator[tuple[pd.Series, ...]]:
    """The rows of a pandas UDF's columns, at most ``rows`` at a time."""
    for batch in batches:
        columns = batch if isinstance(batch, tuple) else (batch,)
        for start in range(0, len(columns[0]), rows):
            yield tuple(column.iloc[start : start + rows] for column in columns)


def arrow_column(series: pd.Series | pd.DataFrame) -> pa.Array:
    """A column that Spark converted to pandas, as an Arrow array again; a DataFrame was a struct."""
    import pandas as pd

    if isinstance(series, pd.DataFrame):
        return pa.StructArray.from_arrays([arrow_column(field) for _, field in series.items()], list(series))
    if isinstance(series.dtype, pd.StringDtype):  # of pandas 3, in which a missing string is NaN
        return pa.Array.from_pandas(series, type=pa.large_string())
    if isinstance(series.dtype, pd.ArrowDtype):  # from another UDF in this worker, such as ImageAssembler's
        return pa.array(series.array)
    rows = series.to_numpy()
    if rows.dtype != object:
        return pa.array(rows)
    first = next((row for row in rows if row is not None), None)
    if not isinstance(first, np.ndarray):
        return pa.array(rows, ARROW_TYPES.get(type(first)))
    if first.dtype == object or any(row is None for row in rows):
        return pa.array(list(rows), from_pandas=False)
    # Takes a tenth of the time of from_pandas, and mostly copies nothing: Spark's rows are slices of one array.
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = first.base
    if not isinstance(values, np.ndarray) or values.size != offsets[-1] or any(row.base is not values for row in rows):
        values = np.concatenate(rows)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def arrow_frame(columns: dict[str, pa.Array]) -> pd.DataFrame:
    """A DataFrame of Arrow columns for Spark, which keeps NaN, also in lists, apart from null.

    Args:
        columns: name -> an array of numbers, or of lists of numbers; all of one length.
    """
    import pandas as pd

    if takes_arrow():
        return _arrow_types()({name: pd.arrays.ArrowExtensionArray(array) for name, array in columns.items()})
    return pd.DataFrame({name: _ordinary(array) for name, array in columns.items()})


def _ordinary(array: pa.Array) -> pd.Series:
    """A column that any Spark takes: lists are Arrow scalars, in which Spark does not mistake NaN for null."""
    import pandas as pd

    if not pa.types.is_list(array.type):
        return pd.Series(pd.arrays.ArrowExtensionArray(array))
    return pd.Series([row if row.is_valid else None for row in array], dtype=object)


@functools.cache
def takes_arrow() -> bool:
    """Whether Spark and pandas leave the columns of an ``_arrow_types()`` frame as they are. Unknown: False."""
    import pandas as pd

    array = pa.array([[1.0]])
    try:
        frame = _arrow_types()({"a": pd.arrays.ArrowExtensionArray(array), "b": pd.arrays.ArrowExtensionArray(array)})
        column = frame[["b", "a"]]["a"]
        kept = spark_internals.passes_unchanged(column)
        return kept and pa.Array.from_pandas(column, type=array.type).equals(array)
    except Exception:  # whatever has changed
        return False


@functools.cache
def _arrow_types() -> Any:
    """The subclass of DataFrame whose columns do not apply functions to their rows."""
    import pandas as pd

    class ArrowSeries(pd.Series):
        @property
        def _constructor(self) -> Any:
            return ArrowSeries

        def apply(self, *_: Any, **__: Any) -> Any:
            return self

    class ArrowFrame(pd.DataFrame):
        @property
        def _constructor(self) -> Any:  # Spark 4.3 reorders the columns first, which makes a new frame
            return ArrowFrame

        @property
        def _constructor_sliced(self) -> Any:
            return ArrowSeries

    return ArrowFrame
