"""Train LeNet on MNIST's 60,000 digits on two ranks, then a LogisticRegression on its last hidden layer.

python examples/mnist_lenet/train.py PATH    # the folder with MNIST's four IDX files, as .gz
"""

import gzip
import os
from pathlib import Path
import sys
import time

import cos_ml
from cos_ml import DeepNetEstimator
import keras
from keras import layers
import numpy as np
import pyarrow as pa
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession


def start_spark() -> SparkSession:
    """Start Spark on two cores of this machine, one per rank."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.master("local[2]").getOrCreate()


def idx_files(folder: Path, part: str) -> list[Path]:
    """Return the paths of the images and the labels of a part, "train" or "t10k"."""
    return [folder / f"{part}-{content}-ubyte.gz" for content in ("images-idx3", "labels-idx1")]


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes as an array: its fourth byte is the number of axes, and their lengths follow."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(data, ">i4", axes, offset=4))


def load_rows(spark: SparkSession, folder: Path, part: str) -> DataFrame:
    """Read images as a binary column, one byte per pixel, and labels."""
    images, labels = map(read_idx, idx_files(folder, part))
    rows = pa.table({"image": [image.tobytes() for image in images], "label": labels.astype(int)})
    return spark.createDataFrame(rows)


def lenet() -> keras.Model:
    """Build LeNet-5 with today's layers: it turns 28x28 pixels of 0 to 255 into the probabilities of ten digits."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def print_accuracy(name: str, scored: DataFrame, began: float) -> None:
    """Print the share of rows that are predicted correctly, and the seconds since ``began``."""
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(scored)
    print(f"{name + ':':19} {accuracy:.4f} test accuracy, {time.monotonic() - began:.0f} s")


def main(folder: Path) -> None:
    """Train both, and print their accuracy on the 10,000 test rows."""
    spark = start_spark()
    train, test = load_rows(spark, folder, "train"), load_rows(spark, folder, "t10k")

    began = time.monotonic()
    network = DeepNetEstimator(
        model=lenet(),
        featuresCol="image",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        batchSize=64,
        epochs=6,
        numTrainWorkers=2,
        seed=1,
        featureLayers=["hidden"],  # becomes a Vector column of that name
    ).fit(train)
    print_accuracy("LeNet", network.transform(test), began)

    began = time.monotonic()
    network.setPredictionCol("").setProbabilityCol("").setRawPredictionCol("")  # from here on, only the features
    regression = LogisticRegression(featuresCol="hidden", regParam=1e-3).fit(network.transform(train))
    print_accuracy("LogisticRegression", regression.transform(network.transform(test)), began)
    spark.stop()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: train.py PATH    (the folder with MNIST's four IDX files, as .gz)")
    folder = Path(sys.argv[1])
    missing = [str(path) for part in ("train", "t10k") for path in idx_files(folder, part) if not path.is_file()]
    if missing:
        sys.exit(f"MNIST is incomplete in {folder}; missing files: {', '.join(missing)}")
    main(folder)
