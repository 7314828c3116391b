"""Fits that a layer disturbs, and programs that run one: for tests and benchmarks of how a fit ends."""

from __future__ import annotations

from typing import Any

import keras

from cos_ml import DeepNetEstimator
from tests.support.layers import Misbehaving

EPOCHS = 4


def network(what: str, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dropout(0.2),
            keras.layers.BatchNormalization(),
            Misbehaving(what, **options),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


def estimator(model: Any, **params: Any) -> DeepNetEstimator:
    defaults = {
        "loss": "sparse_categorical_crossentropy", "numTrainWorkers": 2, "progress": False, "epochs": EPOCHS,
        "batchSize": 16, "seed": 3,
    }  # fmt: skip
    return DeepNetEstimator(model=model, **defaults | params)


# A program that is interrupted while a rank is stopped; it runs on until its input ends.
INTERRUPTED = """
import sys
from pathlib import Path
from tests.support import reference
from tests.support.disturbed import estimator, network
from tests.support.sessions import frame, rows_of, session

folder = Path(sys.argv[1])
spark = next(session("local[2]", folder / "spark"))
data = frame(spark, [rows_of(*reference.data(100))] * 2)
try:
    estimator(network("hang", marker=str(folder / "hangs"), call=5)).fit(data)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()  # the ranks end without the end of this program
"""
