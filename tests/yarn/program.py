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
    """Rows that a pipeline of another application has scored, and a fit on two ranks; where Python is."""
    df = frame(spark, [rows_of(*part) for part in split(reference.data(64), 32, 32)])
    rows = PipelineModel.load(path).transform(df).select("prediction", "lr_prediction").collect()
    model = estimator(reference.network(), epochs=1).fit(df)
    return {
        "scores": [list(row) for row in rows], "loss": model.summary.history["loss"][0],
        "ranks": len(model.summary.ranks), "python": sys.executable, "path": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip


def memory():
    """What explain says of two ranks in a container of Spark's default size, and how their fit ends."""
    df = frame(spark, [rows_of(*part) for part in split(reference.data(4000), 2000, 2000)])
    est = estimator(reference.network(), epochs=10_000)
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
