"""Train a Pipeline of a convolutional network on two ranks and a LogisticRegression on its last hidden layer.

python examples/features_to_logistic_regression/train.py [PATH]    # saves the fitted Pipeline to PATH
"""

import sys

from cos_ml import DeepNetEstimator
import keras
from keras import layers
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression

from digits import DEFAULT_PATH, load_rows, print_accuracies, start_spark


def small_network() -> keras.Model:
    """Build a network that turns 8x8 pixels of 0 to 16 into the probabilities of ten digits."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 16),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def main(path: str) -> None:
    """Fit the Pipeline, score the held-out rows, and save it."""
    spark = start_spark()
    train, held_out = load_rows(spark)

    network = DeepNetEstimator(
        model=small_network(),
        featuresCol="image",
        labelCol="label",
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        learningRate=2e-3,
        batchSize=32,
        epochs=10,
        numTrainWorkers=2,
        seed=1,
        featureLayers=["hidden"],  # becomes a Vector column of that name
    )
    regression = LogisticRegression(
        featuresCol="hidden",
        labelCol="label",
        regParam=0.01,
        predictionCol="lr_prediction",
        probabilityCol="lr_probability",
        rawPredictionCol="lr_rawPrediction",
    )
    model = Pipeline(stages=[network, regression]).fit(train)

    print_accuracies(model.transform(held_out))
    model.write().overwrite().save(path)
    print(f"saved to {path}")
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_PATH)
