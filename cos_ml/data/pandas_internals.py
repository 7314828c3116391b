"""What goes from a pandas UDF to Spark without a detour over Python objects (scoring task side).

Spark turns every row of an array column into a Python list, by ``Series.apply``, which takes longer than the network.
A subclass of pandas's Series whose ``apply`` does nothing hands over Arrow arrays as they are. Where Spark or pandas no
longer take it, the rows go as Python objects: ten times slower, with the same result.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cos_ml import spark_internals

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["arrow_frame", "takes_arrow"]


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
