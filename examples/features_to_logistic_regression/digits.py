"""Code shared by train.py and score.py: the Spark session, the rows, and printing of accuracies."""

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
    """Start Spark on two cores of this machine, one per rank; spark-submit's own options take precedence."""
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.getOrCreate()


def load_rows(spark: SparkSession) -> list[DataFrame]:
    """Return 1,437 training and 360 held-out rows, the same in every process: image (8x8 pixels, 0 to 16) and label."""
    digits = load_digits()
    rows = list(zip(digits.data.tolist(), digits.target.tolist(), strict=True))
    parts = train_test_split(rows, test_size=0.2, random_state=0)
    return [spark.createDataFrame(part, "image array<float>, label int") for part in parts]


def print_accuracies(scored: DataFrame) -> None:
    """Print the share of rows that the network, and the LogisticRegression on its features, predict correctly."""
    for name, column in (("network", "prediction"), ("LogisticRegression", "lr_prediction")):
        evaluator = MulticlassClassificationEvaluator(predictionCol=column, metricName="accuracy")
        print(f"held-out accuracy of the {name + ':':19} {evaluator.evaluate(scored):.4f}")
