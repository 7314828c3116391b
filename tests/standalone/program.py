"""A program that a test submits: a fit on two ranks, and where their Python is."""

import json

from pyspark.sql import SparkSession

from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.job.barrier import Job, run
from cos_ml.spec import TrainSpec
from tests.support import reference
from tests.support.reference import estimator, split
from tests.support.sessions import frame, rows_of

spark = SparkSession.builder.getOrCreate()
spec = TrainSpec(inputs=(Column("id", "x0"),), labels=())
job = Job("tests.support.rank_functions:environment", (spec,), (b"",))
results = run(frames.select_columns(spark.range(2), spec), job, 2).results
parts = split(reference.data(64), 32, 32)
model = estimator(reference.network(), epochs=1).fit(frame(spark, [rows_of(*part) for part in parts]))
ranks = [json.loads(result["environment"]) for result in results]
print(json.dumps({"ranks": ranks, "loss": model.summary.history["loss"][0]}))
