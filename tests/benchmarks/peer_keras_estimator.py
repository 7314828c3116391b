"""Horovod's own KerasEstimator on the same rows: ``python -m tests.benchmarks.peer_keras_estimator ROWS STORE RESULT``.

Runs in the peer's environment, where there is no cos_ml.
"""

from __future__ import annotations

import sys
import time

from tests.benchmarks import data

TRANSFORMED = 1000  # rows: it predicts them one at a time


def main(folder: str, store: str, result: str) -> None:
    import tensorflow as tf
    from horovod.spark.common.store import LocalStore
    from horovod.spark.keras import KerasEstimator

    rows = data.cached_rows(data.session(), folder)
    estimator = KerasEstimator(
        num_proc=data.RANKS,
        store=LocalStore(store),
        model=data.network(tf.keras),
        optimizer=tf.keras.optimizers.Adam(),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        feature_cols=["features"],
        label_cols=["label"],
        label_shapes=[[-1, 1]],  # it does not train on class indices without
        batch_size=data.BATCH,
        epochs=data.EPOCHS,
        use_gpu=False,
        verbose=0,
    )
    fits = []
    for _ in range(2):  # the second finds the Parquet copy that the first made of the rows
        start = time.perf_counter()
        model = estimator.fit(rows)
        fits.append(time.perf_counter() - start)

    few = rows.limit(TRANSFORMED).repartition(data.RANKS).cache()
    few.count()
    data.run_all(model.transform(few))
    start = time.perf_counter()
    data.run_all(model.transform(few))
    rate = TRANSFORMED / (time.perf_counter() - start)
    data.report(result, {"fits": fits, "transform": rate, "loss": float(model.getHistory()["loss"][-1])})


if __name__ == "__main__":
    main(*sys.argv[1:])
