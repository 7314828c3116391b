"""A program that tests submit: ``program.py score PIPELINE`` or ``program.py memory``; prints what it found as JSON."""

import json
import os
import sys

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from cos_ml.errors import CosMLError
from tests.support import reference
from tests.support.reference import estimator, split
from tests.support.sessions import frame, rows_of


def score(path):
    """Rows that a pipeline of another application has scored, and a fit on two ranks from files; where Python is."""
    df = frame(spark, [rows_of(*part) for part in split(reference.data(200), 120, 80)])
    rows = PipelineModel.load(path).transform(df).select("prediction", "lr_prediction").collect()
    df.write.parquet("/tests/rows")  # on HDFS, as is every path without a scheme
    model = estimator(reference.network(), epochs=1, checkpointDir="/tests/checkpoints").fitParquet("/tests/rows")
    return {
        "scores": [list(row) for row in rows], "rows": model.summary.rows, "notes": model.summary.notes,
        "ranks": len(model.summary.ranks), "python": sys.executable, "path": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip


def memory():
    """What explain says of two ranks in a container that is too small for them, and how their fit ends."""
    df = frame(spark, [rows_of(*part) for part in split(reference.data(4000), 2000, 2000)])
    est = estimator(reference.network(), epochs=1000)
    found = {"explain": est.explain(df)}
    try:
        est.fit(df)
    except CosMLError as error:
        found |= {"error": f"{type(error).__name__}: {error}"}
    return found


spark = SparkSession.builder.getOrCreate()
found = {"score": score, "memory": memory}[sys.argv[1]](*sys.argv[2:])
print("FOUND", json.dumps(found), flush=True)
spark.stop()
