"""The means of columns over a DataFrame, computed on the cluster (driver side)."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.ml.linalg import VectorUDT
from pyspark.ml.stat import Summarizer
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml.data.names import resolve

__all__ = ["means"]


def means(scored: DataFrame, columns: Sequence[str], weight: str | None) -> DataFrame:
    """One row with the mean of each of ``columns`` that holds numbers or Vectors.

    Args:
        scored: the rows.
        columns: names of columns, which the result has too; those of other types are left out.
        weight: the column by which rows count; None for all alike.
    """
    weights = F.lit(1.0) if weight is None else resolve(scored, weight).values.cast("double")
    # Vectors are summed as such: an array of columns would be as many expressions as it has numbers.
    fields = {name: scored.schema[name] for name in columns}
    kept = {name: field for name, field in fields.items() if isinstance(field.dataType, (T.NumericType, VectorUDT))}
    found = [_mean(name, field.dataType, weights).alias(name, metadata=field.metadata) for name, field in kept.items()]
    return scored.agg(*found)


def _mean(name: str, kind: T.DataType, weights: SparkColumn) -> SparkColumn:
    column = F.col(f"`{name.replace('`', '``')}`")
    if isinstance(kind, VectorUDT):
        return Summarizer.mean(column, weights)
    return F.sum(column * weights) / F.sum(F.when(column.isNotNull(), weights))
