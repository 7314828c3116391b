"""The means of columns over a DataFrame, computed on the cluster (driver side)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.stat import Summarizer
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.names import quoted, resolve

__all__ = ["means"]


def means(scored: DataFrame, columns: Sequence[str], weight: str | None, skip: bool = False) -> DataFrame:
    """One row with the mean of each of ``columns`` that holds numbers or Vectors; NaN without rows.

    Args:
        scored: the rows.
        columns: names of columns, which the result has too; those of other types are left out.
        weight: the column of row weights; None if all rows count alike.
        skip: whether rows without a finite weight are left out; otherwise they are an error.
    """
    weights = F.lit(1.0)
    if weight is not None:
        given = resolve(scored, weight).values.cast("double")
        weights = F.when((given >= 0) & (given < math.inf), given).otherwise(F.raise_error(_bad_weight(weight, given)))
        if skip:
            scored = scored.where(F.coalesce(given < math.inf, F.lit(False)))
        scored = scored.where(weights > 0)  # Summarizer fails where no row has counted
    # Vectors are summed as such: an array of columns would be as many expressions as it has numbers.
    fields = {name: scored.schema[name] for name in columns}
    kept = {name: field for name, field in fields.items() if isinstance(field.dataType, (T.NumericType, VectorUDT))}
    found = [_mean(name, field.dataType, weights).alias(name) for name, field in kept.items()]
    grouped = scored.groupBy(F.lit(0).alias("-".join(["rows", *kept]))).agg(*found)
    always = scored.sparkSession.range(1).select().join(grouped, F.lit(True), "left")  # a row, also without groups
    return always.select(
        *(
            F.coalesce(F.col(quoted(name)), _nan(field)).alias(name, metadata=field.metadata)
            for name, field in kept.items()
        )
    )


def _mean(name: str, kind: T.DataType, weights: SparkColumn) -> SparkColumn:
    column = F.col(quoted(name))
    if isinstance(kind, VectorUDT):
        return Summarizer.mean(column, weights)
    return F.sum(column * weights) / F.sum(F.when(column.isNotNull(), weights))


def _nan(field: T.StructField) -> SparkColumn:
    """What a column has without rows; null for a Vector whose size only rows can tell."""
    if not isinstance(field.dataType, VectorUDT):
        return F.lit(math.nan)
    size = field.metadata.get("ml_attr", {}).get("num_attrs")
    return F.lit(None) if size is None else array_to_vector(F.array_repeat(F.lit(math.nan), size))


def _bad_weight(name: str, given: SparkColumn) -> SparkColumn:
    text = f"Column {name!r} (weightCol): expected a finite number >= 0, received "
    return F.concat(F.lit(text), F.coalesce(given.cast("string"), F.lit("null")), F.lit("."))
