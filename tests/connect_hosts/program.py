"""What the client runs, on a host of its own: ``program.py URL FUNCTION ...``; prints what it found as JSON."""

import contextlib
import importlib.util
import json
import os
import shutil
import sys

import numpy as np
import reference
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import SparkSession

from cos_ml import DeepNetModel, broadcasts, cluster_check

ROWS = 60
WHOLE = {"batchSize": ROWS, "epochs": 5}  # steps of all rows: which rank has which row then makes no difference


def rows(arrays=False):
    features, labels, _ = reference.data(ROWS)
    values = [
        (index, x.astype(float).tolist(), float(y)) for index, (x, y) in enumerate(zip(features, labels, strict=True))
    ]
    df = spark.createDataFrame(values, "id long, features array<double>, label double")
    return df if arrays else df.withColumn("features", array_to_vector("features"))


def probabilities(scored):
    return [row.probability.toArray().tolist() for row in scored.orderBy("id").collect()]


def flat(model):
    return [float(value) for weight in model.toKeras().get_weights() for value in np.ravel(weight)]


def here(*hidden):
    """What this host has of the server, and of what a client does not need."""
    return {
        "hidden": [path for path in hidden if os.path.exists(path)], "java": shutil.which("java"),
        "modules": [name for name in ("py4j", "horovod", "tests") if importlib.util.find_spec(name)],
    }  # fmt: skip


def work(shared):
    """All that a user does; files that outlast the session are in the folder ``shared`` of the servers."""
    df = rows()
    est = reference.estimator(reference.network(), featureLayers=["hidden"], checkpointDir=f"{shared}/kept", **WHOLE)
    found = {"explain": est.explain(df), "check": cluster_check.report(spark, 2, megabytes=1)}
    model = est.fit(df)
    found |= {
        "weights": flat(model), "ranks": [rank["rank"] for rank in model.summary.ranks], "rows": model.summary.rows,
        "hosts": len({rank["host"] for rank in model.summary.ranks}), "loss": model.summary.history["loss"],
        "resumed": reference.estimator(
            reference.network(), featureLayers=["hidden"], checkpointDir=f"{shared}/kept", **WHOLE
        ).fit(df).summary.resumedAt,
        "scores": probabilities(model.transform(df)), "accuracy": model.evaluate(df).accuracy,
    }  # fmt: skip
    model.write().overwrite().save(f"{shared}/model")
    model.write().overwrite().save(f"{shared}/model")
    found["loaded"] = probabilities(DeepNetModel.load(f"{shared}/model").transform(df))
    rows(arrays=True).repartition(4).write.parquet(f"{shared}/rows")
    found["parquet"] = flat(reference.estimator(reference.network(), **WHOLE).fitParquet(f"{shared}/rows"))
    found["cached"] = flat(
        reference.estimator(reference.network(), feed="parquet", cacheDir=f"{shared}/cache", **WHOLE).fit(df)
    )
    first = reference.estimator(
        reference.network(), featureLayers=["hidden"], predictionCol="", probabilityCol="", rawPredictionCol="", **WHOLE
    )
    pipeline = Pipeline(stages=[first, LogisticRegression(featuresCol="hidden")]).fit(df)
    pipeline.write().overwrite().save(f"{shared}/pipeline")
    found["pipeline"] = [
        probabilities(one.transform(df)) for one in (pipeline, PipelineModel.load(f"{shared}/pipeline"))
    ]
    tuned = reference.estimator(reference.network(), **WHOLE)
    grid = ParamGridBuilder().addGrid(tuned.learningRate, [1e-9, 1.0]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    found["tuned"] = CrossValidator(
        estimator=tuned, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1
    ).fit(df).avgMetrics  # fmt: skip
    return found


def large(shared):
    """A network that no query carries: sent once to the session, for all that uses it."""
    sent, add = [], type(spark).addArtifacts
    type(spark).addArtifacts = lambda *arguments, **options: (sent.append(arguments[1]), add(*arguments, **options))
    broadcasts.IN_QUERY = 1
    df = rows()
    model = reference.estimator(reference.network(), **WHOLE).fit(df)
    trained = len(sent)
    scores = probabilities(model.transform(df)), probabilities(model.transform(df))
    accuracy = model.evaluate(df).accuracy
    model.save(f"{shared}/large")
    return {"scores": scores, "accuracy": accuracy, "weights": flat(model), "trained": trained, "sent": len(sent),
            "loaded": probabilities(DeepNetModel.load(f"{shared}/large").transform(df))}  # fmt: skip


def progress():
    """A fit that shows its progress."""
    model = reference.estimator(reference.network(), progress=True, **WHOLE).fit(rows())
    return {"notes": model.summary.notes}


def endless():
    """A fit that goes on until something ends it; says when it has begun."""
    with contextlib.suppress(KeyboardInterrupt):
        reference.estimator(reference.network(), progress=True, batchSize=1, epochs=1_000_000).fit(rows())
    return {"rows": rows().count()}


url, function, *arguments = sys.argv[1:]
spark = SparkSession.builder.remote(url).getOrCreate()
print(json.dumps(globals()[function](*arguments)), flush=True)
spark.stop()
