"""What the client runs, on a host of its own: ``program.py URL FUNCTION ...``; prints what it found as JSON."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys

import keras
import numpy as np
import reference
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.sql import SparkSession

from cos_ml import DeepNetModel, broadcasts, cluster_check

ROWS = 60
WHOLE = {"batchSize": ROWS, "epochs": 2}  # steps of all rows: which rank has which row then makes no difference


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


def fit(shared):
    """Fits, and what is done with models; files that outlast the session are in ``shared``, a folder of the servers."""
    df, deep = rows(), reference.estimator(reference.network(), featureLayers=["hidden"], **WHOLE)
    stored = deep.copy({deep.feed: "parquet", deep.cacheDir: f"{shared}/cache", deep.checkpointDir: f"{shared}/kept"})
    found = {"explain": stored.explain(df), "check": cluster_check.report(spark, 2, megabytes=1)}
    model = stored.fit(df)
    found |= {
        "weights": flat(model), "ranks": [rank["rank"] for rank in model.summary.ranks], "rows": model.summary.rows,
        "hosts": len({rank["host"] for rank in model.summary.ranks}), "resumed": stored.fit(df).summary.resumedAt,
        "scores": probabilities(model.transform(df)), "accuracy": model.evaluate(df).accuracy,
    }  # fmt: skip
    model.write().overwrite().save(f"{shared}/model")
    model.write().overwrite().save(f"{shared}/model")
    found["loaded"] = probabilities(DeepNetModel.load(f"{shared}/model").transform(df))
    rows(arrays=True).repartition(2).write.parquet(f"{shared}/rows")
    found["parquet"] = flat(reference.estimator(reference.network(), **WHOLE).fitParquet(f"{shared}/rows"))
    return found


def tune(shared):
    """A pipeline, and the choice of a learning rate."""
    df = rows()
    features = reference.estimator(
        reference.network(), featureLayers=["hidden"], predictionCol="", probabilityCol="", rawPredictionCol="", **WHOLE
    )
    pipeline = Pipeline(stages=[features, LogisticRegression(featuresCol="hidden")]).fit(df)
    pipeline.write().overwrite().save(f"{shared}/pipeline")
    scored = [probabilities(one.transform(df)) for one in (pipeline, PipelineModel.load(f"{shared}/pipeline"))]
    deep = reference.estimator(reference.network(), **WHOLE)
    grid = ParamGridBuilder().addGrid(deep.learningRate, [1e-9, 0.1]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="logLoss")
    split = TrainValidationSplit(estimator=deep, estimatorParamMaps=grid, evaluator=evaluator, seed=1).fit(df)
    return {"pipeline": scored, "losses": split.validationMetrics}


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


def archive(shared):
    """A network of 136 MB, larger than any message of the server's: trained, scored, saved and loaded."""
    layers = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(5000, "relu"),
            keras.layers.Dense(6800, "relu"),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    expected = keras.models.clone_model(layers)
    expected.set_weights(layers.get_weights())
    reference.train(expected, [reference.data(ROWS)], ROWS, 1, keras.optimizers.SGD(0.1, momentum=0.9))
    df = rows()
    model = reference.estimator(layers, batchSize=ROWS, epochs=1).fit(df)
    pairs = zip(model.toKeras().get_weights(), expected.get_weights(), strict=True)
    difference = max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)
    scores = probabilities(model.transform(df))
    model.save(f"{shared}/archive")
    return {"bytes": sum(weight.nbytes for weight in expected.get_weights()), "difference": difference,
            "scores": scores, "expected": expected(reference.data(ROWS)[0]).numpy().tolist(),
            "loaded": probabilities(DeepNetModel.load(f"{shared}/archive").transform(df))}  # fmt: skip


def progress():
    """A fit that shows its progress."""
    model = reference.estimator(reference.network(), progress=True, **WHOLE).fit(rows())
    return {"notes": model.summary.notes}


def endless():
    """A fit that goes on until something ends it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs the tests may have ignored
    with contextlib.suppress(KeyboardInterrupt):
        reference.estimator(reference.network(), progress=True, batchSize=1, epochs=1_000_000).fit(rows())
    return {"rows": rows().count()}


url, function, *arguments = sys.argv[1:]
spark = SparkSession.builder.remote(url).getOrCreate()
print(json.dumps(globals()[function](*arguments)), flush=True)
spark.stop()
