"""What train.py and score.py share: the Spark session, the rows, and how accuracies are printed."""

import os
from pathlib import Path
import sys
import tempfile

import cos_ml
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

DEFAULT_PATH = str(Path(tempfile.gettempdir(), "cos_ml-digits"))


def start_spark() -> SparkSession:
    """Spark on two cores of this machine, one for each rank; under spark-submit, wherever that says."""
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.getOrCreate()


def load_rows(spark: SparkSession) -> list[DataFrame]:
    """1,437 rows to train on and 360 held out, the same in every process: image (8x8 pixels of 0 to 16) and label."""
    digits = load_digits()
    rows = list(zip(digits.data.tolist(), digits.target.tolist(), strict=True))
    parts = train_test_split(rows, test_size=0.2, random_state=0)
    return [spark.createDataFrame(part, "image array<float>, label int") for part in parts]


def print_accuracies(scored: DataFrame) -> None:
    """The share of rows that the network got right, and that the LogisticRegression on its features did."""
    for name, column in (("network", "prediction"), ("LogisticRegression", "lr_prediction")):
        evaluator = MulticlassClassificationEvaluator(predictionCol=column, metricName="accuracy")
        print(f"held-out accuracy of the {name + ':':19} {evaluator.evaluate(scored):.4f}")
