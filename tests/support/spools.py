"""Arrow batches and the rows of a spool, without Spark."""

from __future__ import annotations

import os

import pyarrow as pa

from cos_ml.data.columns import as_list_array
from cos_ml.data.spool import SpooledRows


def record_batch(columns):
    """An Arrow batch as Spark sends it, of arrays by field: rows of numbers become lists."""
    arrays = [
        value if isinstance(value, pa.Array) else as_list_array(value) if value.ndim > 1 else pa.array(value)
        for value in columns.values()
    ]
    return pa.RecordBatch.from_arrays(arrays, list(columns))


def inherited(spool, part):
    """The descriptors of one part, doubled, as a rank inherits them."""
    return {field: os.dup(descriptor) for field, descriptor in spool.descriptors()[part].items()}


def rows_of(spool, part="train"):
    return SpooledRows(inherited(spool, part), spool.rows[part], spool.shapes, spool.dtypes)
