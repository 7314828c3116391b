"""Steps with a large embedding on 2 ranks: ``python -m tests.benchmarks.embeddings [OPTIMIZER ...]``.

The table is 1,000,000 x 16, the batch 256 rows a rank with one word each. Two networks take turns, the same but for the
gradient of the table: as TensorFlow gives it, indices and rows, or made dense before the ranks add it up. Beside them
one rank, and plain Keras, whose optimizers may go through the whole table themselves.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cos_ml.data.columns import Column
from cos_ml.spec import TrainSpec
from tests.benchmarks import data

WORDS, SIZE, BATCH, STEPS, EPOCHS, TURNS = 1_000_000, 16, 256, 32, 3, 2
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {}, "SGD, momentum": {"momentum": 0.9}, "Adagrad": {}, "RMSprop": {}, "Adam": {},
}  # fmt: skip


@keras.saving.register_keras_serializable(package="benchmarks")
class DenseGradient(keras.layers.Embedding):
    """An Embedding whose gradient is as large as its table."""

    def call(self, inputs: Any) -> Any:
        """The rows of the table."""

        @tf.custom_gradient
        def table(rows: Any) -> Any:
            return tf.identity(rows), tf.convert_to_tensor

        return tf.gather(table(tf.convert_to_tensor(self.embeddings)), inputs)


def network(kind: type, optimizer: str) -> Any:
    """A network that is a table and little else, compiled."""
    words = keras.Input((1,), dtype="int64")
    model = keras.Model(words, keras.layers.Dense(1)(keras.layers.Flatten()(kind(WORDS, SIZE)(words))))
    model.compile(made(optimizer), "mse")
    return model


def made(optimizer: str) -> Any:
    """A Keras optimizer."""
    kind = getattr(keras.optimizers, optimizer.split(",")[0])
    return kind(0.01, **OPTIMIZERS[optimizer])


def rows_of(seed: int) -> dict[str, np.ndarray]:
    """The rows of a rank."""
    random = np.random.default_rng(seed)
    return {
        "x0": random.integers(0, WORDS, (STEPS * BATCH, 1)),
        "y0": random.normal(size=STEPS * BATCH).astype("float32"),
    }


def on_ranks(runner: Any, kind: type, optimizer: str, ranks: int) -> list[float]:
    """Milliseconds of a step, by epoch; the first one is left out, because it traces."""
    spec = TrainSpec(
        inputs=(Column("ids", "x0", (1,), "int64"),), labels=(Column("label", "y0", (1,)),), epochs=EPOCHS,
        compile={"optimizer": keras.optimizers.serialize(made(optimizer)), "loss": "mse"}, batch_size=BATCH,
        modules=("tests.benchmarks.embeddings",),
    )  # fmt: skip
    (trained,) = runner.fit([spec], [network(kind, optimizer)], [rows_of(rank) for rank in range(ranks)])
    return [seconds * 1e3 / STEPS for seconds in trained.summaries[0]["epoch_seconds"][1:]]


def plain(optimizer: str) -> list[float]:
    """The same in one process of Keras alone."""
    model, rows, took = network(keras.layers.Embedding, optimizer), rows_of(0), []
    steps = tf.data.Dataset.from_tensor_slices((rows["x0"], rows["y0"][:, None])).batch(BATCH)
    for _ in range(EPOCHS):
        start = time.perf_counter()
        model.fit(steps, verbose=0)
        took.append((time.perf_counter() - start) * 1e3 / STEPS)
    return took[1:]


def main(optimizers: list[str], result: str = "") -> None:
    from tests.benchmarks.embeddings import DenseGradient  # as the ranks know it
    from tests.support.ranks import RankRunner

    runner = RankRunner()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many as each of two ranks has here
    print(f"ms a step, median (least - most); {WORDS:,} x {SIZE}, batch {BATCH} a rank")
    print(f"{'':<15}{'2 ranks':>22}{'2 ranks, dense':>22}{'ratio':>7}{'1 rank':>22}{'Keras':>22}")
    all_found: dict[str, dict[str, list[float]]] = {}
    for name in optimizers:
        found: list[list[float]] = [[], [], [], []]
        for _ in range(TURNS):
            found[0] += on_ranks(runner, keras.layers.Embedding, name, 2)
            found[1] += on_ranks(runner, DenseGradient, name, 2)
            found[2] += on_ranks(runner, keras.layers.Embedding, name, 1)
            found[3] += plain(name)
        shown = [f"{statistics.median(one):.1f} ({min(one):.1f} - {max(one):.1f})" for one in found]
        ratio = statistics.median(found[0]) / statistics.median(found[1])
        print(f"{name:<15}{shown[0]:>22}{shown[1]:>22}{ratio:>7.2f}{shown[2]:>22}{shown[3]:>22}", flush=True)
        all_found[name] = dict(zip(("2 ranks", "2 ranks, dense", "1 rank", "Keras"), found, strict=True))
    runner.close()
    if result:
        data.report(result, all_found)


if __name__ == "__main__":
    to_file = sys.argv[1:2] == ["--result"]
    main(sys.argv[3 if to_file else 1 :] or list(OPTIMIZERS), sys.argv[2] if to_file else "")
