"""Calls functions where the files of executors are (driver and task side).

That is here, or in a task for a client of Spark Connect, which may reach neither the server's disks nor its stores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cos_ml.errors import InvalidInputError, SetupError, from_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["call_at_files"]

KINDS = {kind.__name__: kind for kind in (InvalidInputError, SetupError)}  # errors that no retry can fix


def call_at_files(spark: SparkSession, function: Callable[[], Any]) -> Any:
    """What ``function`` returns, called where executors reach their files; with Connect, values that survive JSON.

    Raises:
        InvalidInputError, SetupError: the function raised it.
    """
    from cos_ml import spark_internals  # ranks import this module, too

    if not spark_internals.is_connect(spark):
        return function()
    try:
        [row] = spark.range(1, numPartitions=1).mapInArrow(partial(_call, function), "answer string").collect()
    except Exception as error:
        raise from_spark(error) or error from None
    answer = json.loads(row["answer"])
    if "error" in answer:
        raise KINDS[answer["error"]](answer["text"])
    return answer["value"]


def _call(function: Callable[[], Any], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The value that a function returns, or its error, as a row of JSON (task side)."""
    for _ in batches:
        pass
    try:
        answer = {"value": function()}
    except tuple(KINDS.values()) as error:
        kind = next(name for name, one in KINDS.items() if isinstance(error, one))
        answer = {"error": kind, "text": str(error)}
    yield pa.RecordBatch.from_arrays([pa.array([json.dumps(answer)])], ["answer"])
