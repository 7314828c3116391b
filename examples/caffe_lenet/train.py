"""Train Caffe's LeNet by its solver file on two ranks, and a LogisticRegression on its layer ip1.

python examples/caffe_lenet/train.py PATH    # the folder in which lmdb_to_logistic_regression/make_lmdb.py wrote
"""

import os
from pathlib import Path
import sys

import cos_ml
from cos_ml import DeepNetEstimator
from cos_ml.caffe import layer_of_blob, read_solver
from cos_ml.sources import register
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

RANKS = 2
HERE, data = Path(__file__).parent, sys.argv[1]

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
spark = SparkSession.builder.master(f"local[{RANKS}]").getOrCreate()
register(spark)
train, test = (spark.read.format("lmdb").load(f"{data}/mnist_{part}_lmdb") for part in ("train", "test"))

keywords = read_solver(HERE / "solver.prototxt")
keywords["batchSize"] //= RANKS  # the file's 64 are those of all ranks together, as in Caffe on one machine
keywords["checkpointDir"] = f"{data}/lenet_checkpoints"
if len(sys.argv) > 2:
    keywords["maxSteps"] = int(sys.argv[2])  # fewer, for a first look
layer = layer_of_blob(HERE / "lenet.prototxt", "ip1")  # the ReLU works in place: CaffeOnSpark's "ip1" is what it leaves
deep = DeepNetEstimator(
    **keywords,
    featuresCol="data",
    featureLayers=[layer],
    outputCols=["ip1"],
    predictionCol="lenet_prediction",
    validationIndicatorCol="validates",
    numTrainWorkers=RANKS,
)
both = train.withColumn("validates", F.lit(False)).union(test.withColumn("validates", F.lit(True)))
lenet = deep.fit(both)
regression = LogisticRegression(featuresCol="ip1", regParam=1e-3, rawPredictionCol="lr_raw", probabilityCol="lr_prob")
model = PipelineModel(stages=[lenet, regression.fit(lenet.transform(train))])
scored = model.transform(test).cache()
for column in ("lenet_prediction", "prediction"):
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy", predictionCol=column)
    print(f"{column + ':':17} {evaluator.evaluate(scored):.4f} test accuracy")
model.write().overwrite().save(f"{data}/lenet_pipeline")
