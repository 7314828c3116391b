"""Train a network on two ranks, on a folder of images with a subfolder per class.

python examples/image_folder/train.py [PATH]    # by default, a folder of scikit-learn's digits is created
"""

import os
from pathlib import Path
import sys
import tempfile

import cos_ml
from cos_ml import DeepNetEstimator
from cos_ml.images import ImageAssembler, preprocessing_layers
from cos_ml.sources.images import image_classes, read_images
import keras
from keras import layers
import numpy as np
from PIL import Image
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits

SIDE, CROP = 32, 28  # pixels


def start_spark() -> SparkSession:
    """Start Spark on two cores of this machine, one per rank."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # executors need the Python that has cos_ml
    os.environ.setdefault("SPARK_CONF_DIR", str(Path(cos_ml.__file__).with_name("conf")))  # log errors only
    return SparkSession.builder.master("local[2]").getOrCreate()


def make_images(root: str) -> None:
    """Write 1,797 PNGs of digits, 40x40 pixels, into folders 0 to 9."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = Path(root, str(label), f"{index}.png")
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((40, 40)).save(file)


def small_network(classes: int) -> keras.Model:
    """Build a network that turns gray images of 32x32 pixels into class probabilities."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 1), dtype="uint8"),
            *preprocessing_layers(size=(SIDE, SIDE), crop=CROP, mean=128, scale=1 / 128),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def main(path: str) -> None:
    """Read and decode the images, fit, and print the accuracy on held-out images."""
    spark = start_spark()
    classes = image_classes(spark, path)
    train, held_out = read_images(spark, path, classes=classes).randomSplit([0.8, 0.2], seed=1)

    images = ImageAssembler(height=SIDE, width=SIDE, channels=1)  # data -> image
    network = DeepNetEstimator(
        model=small_network(len(classes)),
        featuresCol="image",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        learningRate=2e-3,
        epochs=10,
        numTrainWorkers=2,
    )
    model = Pipeline(stages=[images, network]).fit(train)

    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(held_out))
    print(f"held-out accuracy for {len(classes)} classes: {accuracy:.4f}")
    spark.stop()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_images(folder)
            main(folder)
