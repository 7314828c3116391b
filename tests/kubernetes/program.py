"""A program that tests submit in cluster mode: ``program.py FOLDER``; writes what it found there, as JSON."""

import json
import os
import socket
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from cos_ml import DeepNetModel
from tests.support import reference
from tests.support.reference import estimator, split
from tests.support.sessions import frame, rows_of

spark = SparkSession.builder.getOrCreate()
df = frame(spark, [rows_of(*part) for part in split(reference.data(64), 32, 32)])
est = estimator(reference.network(), epochs=2, progress=True, checkpointDir=f"{sys.argv[1]}/states")
text = est.explain(df)
model = est.fit(df)
model.write().overwrite().save(f"{sys.argv[1]}/model")
scores = [row.prediction for row in DeepNetModel.load(f"{sys.argv[1]}/model").transform(df).collect()]
found = {
    "explain": text, "application": spark.sparkContext.applicationId, "host": socket.gethostname(),
    "weights": [weight.tolist() for weight in model.toKeras().get_weights()], "scores": scores,
    "ranks": [rank["host"] for rank in model.summary.ranks], "states": os.listdir(f"{sys.argv[1]}/states"),
}  # fmt: skip
Path(sys.argv[1], "found.json").write_text(json.dumps(found))
spark.stop()
