"""One way to score the rows, in a session of its own: ``python -m tests.benchmarks.transform WAY ROWS``.

Asked for a number of partitions, it answers with the seconds of one pass, on warm workers as a user's are. The ways:

- product: the model's ``transform``, with the three columns that a classifier adds;
- nothing: a pandas UDF that receives the same rows and returns zeros: what handing them over takes;
- same size: one that returns columns of the product's types and sizes, and computes nothing either;
- predict_batch_udf: PySpark's, with the network in a ``tf.function``, as a careful user writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from pyspark.ml.functions import array_to_vector, predict_batch_udf
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType

from tests.benchmarks import data

PARTITIONS = (2, 4, 16)
BATCH = 1024


def main(way: str, folder: str) -> None:
    rows = data.cached_rows(data.session(), folder)
    make = {"product": _product, "nothing": _nothing, "same size": _same_size, "predict_batch_udf": _peer}[way]
    frames = {}
    for partitions in PARTITIONS:
        cached = rows.repartition(partitions).cache()
        cached.count()
        frames[str(partitions)] = make(cached)
    rows.unpersist()
    ways: dict[str, Callable[[], Any]] = {
        partitions: lambda frame=frame: data.run_all(frame) for partitions, frame in frames.items()
    }
    # To compare what two of them compute: else no figure would mean anything.
    ways["probabilities"] = lambda: [
        list(row["probability"]) for row in frames["2"].orderBy("features").select("probability").take(20)
    ]
    data.serve(ways)


def _product(rows: DataFrame) -> DataFrame:
    import keras

    from cos_ml import DeepNetModel

    return DeepNetModel(model=data.network(keras), predictBatchSize=BATCH).transform(rows)


def _nothing(rows: DataFrame) -> DataFrame:
    @F.pandas_udf("double")  # type: ignore[call-overload,untyped-decorator,unused-ignore]
    def zeros(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for batch in batches:
            yield pd.Series(np.zeros(len(batch)))

    return rows.withColumn("zero", zeros("features"))


def _same_size(rows: DataFrame) -> DataFrame:
    import pyarrow as pa

    kind = "prediction double, probability array<double>, rawPrediction array<double>"

    @F.pandas_udf(kind)  # type: ignore[call-overload,untyped-decorator,unused-ignore]
    def columns(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            numbers = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(data.CLASSES * len(batch))), data.CLASSES)
            lists = pd.Series(numbers.cast(pa.list_(pa.float64())), dtype=pd.ArrowDtype(pa.list_(pa.float64())))
            yield pd.DataFrame({"prediction": np.zeros(len(batch)), "probability": lists, "rawPrediction": lists})

    made = rows.withColumn("made", columns("features"))
    vectors = [array_to_vector(f"made.{name}").alias(name) for name in ("probability", "rawPrediction")]
    return made.select(*rows.columns, "made.prediction", *vectors)


def _peer(rows: DataFrame) -> DataFrame:
    import keras

    network = data.network(keras)
    config, weights = network.to_json(), network.get_weights()

    def make_predict() -> Callable[[np.ndarray], np.ndarray]:
        import keras
        import tensorflow as tf

        loaded = keras.models.model_from_json(config)
        loaded.set_weights(weights)
        signature = [tf.TensorSpec((None, data.FEATURES), tf.float32)]
        forward = tf.function(lambda batch: loaded(batch, training=False), input_signature=signature)
        return lambda batch: forward(batch).numpy()

    predict = predict_batch_udf(
        make_predict, return_type=ArrayType(FloatType()), batch_size=BATCH, input_tensor_shapes=[[data.FEATURES]]
    )
    return rows.withColumn("probability", predict("features"))


if __name__ == "__main__":
    main(*sys.argv[1:])
