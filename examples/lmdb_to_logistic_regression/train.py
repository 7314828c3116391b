"""Read LMDB, train a Pipeline of LeNet and a LogisticRegression on its last hidden layer, and save it.

python examples/lmdb_to_logistic_regression/train.py PATH    # the folder in which make_lmdb.py created the databases
"""

import sys

from cos_ml import DeepNetEstimator
from lenet import lenet
from make_lmdb import start_spark
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator

spark, folder = start_spark(), sys.argv[1]
train, test = (spark.read.format("lmdb").load(f"{folder}/mnist_{part}_lmdb") for part in ("train", "test"))
deep = DeepNetEstimator(model=lenet(), featuresCol="data", featureLayers=["hidden"], numTrainWorkers=2)
deep.setLoss("sparse_categorical_crossentropy").setBatchSize(64).setEpochs(6).setPredictionCol("lenet_prediction")
deep.setProbabilityCol("").setRawPredictionCol("")
regression = LogisticRegression(featuresCol="hidden", regParam=1e-3)
model = Pipeline(stages=[deep, regression]).fit(train)
scored = model.transform(test)
for column in ("lenet_prediction", "prediction"):
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy", predictionCol=column)
    print(f"{column + ':':17} {evaluator.evaluate(scored):.4f} test accuracy")
model.write().overwrite().save(f"{folder}/mnist_pipeline")
