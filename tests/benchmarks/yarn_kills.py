"""Kill parts of fits on YARN at random moments: ``python -m tests.benchmarks.yarn_kills [KILLS [FIRST]]``.

One application on Hadoop's YARN and HDFS, with two containers and a checkpoint on HDFS after each epoch. In each fit a
rank, its Python worker, or its container (the executor's JVM) is killed once, while ranks start, train, or write a
checkpoint. The fit has to end with the undisturbed weights, bit for bit, and to leave nothing but checkpoints on HDFS,
and no process, port or file on the hosts. "lost" is how many attempts the kill cost, "had" how many epochs were in a
checkpoint.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cos_ml import DeepNetEstimator
from tests.benchmarks.chaos import Chaos, left_behind, listening
from tests.support import reference
from tests.support.sessions import frame, rows_of, session
from tests.yarn.hadoop import SETTINGS, Hadoop, started

EPOCHS = 6
TRIES = 5  # until a moment is met
VICTIMS = ("rank", "worker", "executor")
LATEST = {"start": 2.0, "train": 0.5, "checkpoint": 0.0}  # seconds into a phase
SHARED_MEMORY = Path("/dev/shm")


class KillOnYarn(Chaos):
    """Kills once, in the ``with`` block; the checkpoints are on HDFS."""

    def __init__(self, victim: str, phase: str, url: str, delay: float, hadoop: Hadoop) -> None:
        super().__init__(victim, phase, Path(url), delay)
        self._files, self._url = hadoop.files, url

    def _names(self) -> list[str]:
        return [path.rpartition("/")[2] for path in found(self._files, self._url) if "checkpoint-" in path]


def main(kills: int = 20, first: int = 0) -> None:
    chance = random.Random(first)
    moments = list(itertools.product(VICTIMS, LATEST))
    order = random.Random(0).sample(moments, len(moments))
    rounds = list(itertools.islice(itertools.cycle(order), first, first + kills))
    # Spark ends an application on YARN after so many lost executors, four by default.
    settings = SETTINGS | {"spark.executor.maxNumFailures": "1000", "spark.stage.maxConsecutiveAttempts": "4"}
    with tempfile.TemporaryDirectory(prefix="cos_ml_yarn_") as name, started(Path(name)) as hadoop:
        temporary = Path(name) / "tmp"  # of all processes of Python, in place of /tmp, which others use as well
        temporary.mkdir()
        os.environ["TMPDIR"] = settings["spark.executorEnv.TMPDIR"] = str(temporary)
        tempfile.tempdir = None
        spark = next(session("yarn", Path(name) / "spark", **settings))
        rows = rows_of(*reference.data(4000))
        df = frame(spark, [rows[at::4] for at in range(4)])
        undisturbed = estimator().fit(df).toKeras().get_weights()
        ports, shared, stored = listening(), files(temporary), found(hadoop.files, hadoop.fs)
        print(
            f"{'victim':<10}{'phase':<12}{'after':>6}{'fit':>7}{'lost':>6}{'had':>5}  {'resumed from':<18}"
            f"{'weights':<10}left behind",
            flush=True,
        )
        survived = 0
        for number, (victim, phase) in enumerate(rounds):
            for _ in range(TRIES):  # the fit may be over before the moment has come
                url = f"{hadoop.fs}/kills/{number}"
                chaos = KillOnYarn(victim, phase, url, chance.uniform(0, LATEST[phase]), hadoop)
                line, good, lost = disturbed(chaos, df, url, undisturbed)
                hadoop.files.rm(url, recursive=True)
                left = [left_behind(hadoop.folder / "yarn", Path(url), ports)]
                left += settled(
                    lambda: sorted(found(hadoop.files, hadoop.fs) - stored) + sorted(files(temporary) - shared)
                )
                text = ", ".join(filter(None, left))
                hit = chaos.struck and lost
                print(f"{line}{text or 'nothing'}{'' if hit else '  (the moment never came)'}", flush=True)
                if hit:
                    survived += good and not text
                    break
        print(f"{survived} of {len(rounds)} survived", flush=True)
        spark.stop()


def disturbed(chaos: KillOnYarn, df: Any, url: str, undisturbed: list[np.ndarray]) -> tuple[str, bool, int]:
    """One disturbed fit: a line of the table, whether it came out as the undisturbed one, and attempts lost."""
    start, what = time.monotonic(), f"{chaos.victim:<10}{chaos.phase:<12}{chaos.delay:>5.1f}s"
    with chaos:
        try:
            model = estimator(checkpointDir=url).fit(df)
        except Exception as error:
            return f"{what}{time.monotonic() - start:>6.0f}s  {type(error).__name__}: {str(error)[:300]}  ", False, 1
    seconds, (epoch, step), lost = time.monotonic() - start, model.summary.resumedAt, len(model.summary.failures)
    same = all(map(np.array_equal, model.toKeras().get_weights(), undisturbed))
    unfinished = [name for name in chaos._names() if name.startswith(".")]
    resumed = f"epoch {epoch}, step {step}"
    line = f"{what}{seconds:>6.0f}s{lost:>6}{chaos.had:>5}  {resumed:<18}{'the same' if same else 'DIFFERENT':<10}"
    return f"{line}{', '.join(unfinished)}", same and not unfinished and epoch >= chaos.had, lost


def estimator(**params: Any) -> DeepNetEstimator:
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    return DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", numTrainWorkers=2, epochs=EPOCHS, batchSize=100, seed=3,
        progress=False, **params,
    )  # fmt: skip


def settled(look: Callable[[], list[str]]) -> list[str]:
    """What is left, after the moment that dying processes take."""
    deadline = time.monotonic() + 10
    while look() and time.monotonic() < deadline:
        time.sleep(0.1)
    return look()


def found(files: Any, url: str) -> set[str]:
    """The files below a folder of HDFS; none where it does not exist, or is just being deleted."""
    try:
        return set(files.find(url))
    except FileNotFoundError:
        return set()


def files(temporary: Path) -> set[str]:
    """What is in the folders for temporary files, and in shared memory."""
    return {str(path) for folder in (temporary, SHARED_MEMORY) for path in folder.iterdir()}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
