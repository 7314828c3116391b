"""The network of this example."""

import keras
from keras import layers


def lenet() -> keras.Model:
    """Build LeNet-5 with today's layers: it turns 28x28 bytes into the probabilities of ten digits."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), dtype="uint8"),
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
