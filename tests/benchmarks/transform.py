"""The product's transform beside PySpark's predict_batch_udf: ``python -m tests.benchmarks.transform ROWS RESULT``.

Both run warm in one session, on the same Python workers, in turns: what else the machine does then hits both.
The product goes first, so that its one thread per task is the peer's too, which suits two tasks on two cores.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType

from cos_ml import DeepNetModel
from tests.benchmarks import data

ROUNDS = 5
BATCH = 1024


def main(folder: str, result: str) -> None:
    import keras

    rows = data.cached_rows(data.session(), folder)
    network = data.network(keras)
    probability = DeepNetModel(model=network, predictionCol="", rawPredictionCol="", predictBatchSize=BATCH)
    frames = {
        "product": DeepNetModel(model=network, predictBatchSize=BATCH).transform(rows),
        "product, probability": probability.transform(rows),
        "predict_batch_udf": _peer(rows, network, compiled=True),
        "predict_batch_udf, Keras predict": _peer(rows, network, compiled=False),
    }
    _check(frames)
    data.report(result, {name: data.ROWS / seconds for name, seconds in _medians(frames).items()})


def _peer(rows: DataFrame, network: Any, compiled: bool) -> DataFrame:
    """The rows with the network's output, by a predict function as a careful user would write it."""
    config, weights = network.to_json(), network.get_weights()

    def make_predict() -> Callable[[np.ndarray], np.ndarray]:
        import keras
        import tensorflow as tf

        loaded = keras.models.model_from_json(config)
        loaded.set_weights(weights)
        if not compiled:
            return lambda batch: loaded.predict(batch, batch_size=BATCH, verbose=0)
        signature = [tf.TensorSpec((None, data.FEATURES), tf.float32)]
        forward = tf.function(lambda batch: loaded(batch, training=False), input_signature=signature)
        return lambda batch: forward(batch).numpy()

    predict = predict_batch_udf(
        make_predict,
        return_type=ArrayType(FloatType()),
        batch_size=BATCH,
        input_tensor_shapes=[[data.FEATURES]],
    )
    return rows.withColumn("probability", predict("features"))


def _check(frames: dict[str, DataFrame]) -> None:
    """Raises RuntimeError where they do not compute the same: then no figure would mean anything."""
    first, *others = (
        np.array([list(row["probability"]) for row in frame.select("probability").take(100)])
        for frame in frames.values()
    )
    if not all(np.allclose(first, other, atol=1e-5) for other in others):
        raise RuntimeError("The product and predict_batch_udf give different probabilities.")


def _medians(frames: dict[str, DataFrame]) -> dict[str, float]:
    """Seconds of each, the median of several rounds after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in frames}
    for frame in frames.values():
        data.run_all(frame)
    for _ in range(ROUNDS):
        for name, frame in frames.items():
            start = time.perf_counter()
            data.run_all(frame)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(acquire) for name, acquire in seconds.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
