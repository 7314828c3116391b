"""Horovod's KerasEstimator on the same rows, a session: ``python -m tests.benchmarks.peer_keras_estimator ROWS STORE``.

Runs in the peer's environment, where there is no cos_ml.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks import data


def main(folder: str, store: str) -> None:
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
    models: list[Any] = []
    data.serve(
        {
            "fit": lambda: models.append(estimator.fit(rows)),  # later ones find the Parquet copy that the first made
            "loss": lambda: float(models[-1].getHistory()["loss"][-1]),
        }
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
