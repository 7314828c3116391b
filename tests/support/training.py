"""A training in the test's own process, as the only rank."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

import numpy as np

from cos_ml.data.columns import Column
from cos_ml.rank.collectives import Communicator
from cos_ml.rank.context import PhaseTimer, RankContext
from cos_ml.rank.feed import Feed, spooled_rows
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.trainer import make_trainer
from cos_ml.rank.training import Training
from cos_ml.spec import TrainSpec
from tests.support.spools import inherited

FEATURES, LABEL = Column("features", "x0", (4,)), Column("label", "y0", classes=3)
LOSS = "sparse_categorical_crossentropy"


def spec_of(**changes: Any) -> TrainSpec:
    arguments = {"optimizer": "sgd", "loss": LOSS, "metrics": ["accuracy"]}
    return TrainSpec(
        **{"inputs": (FEATURES,), "labels": (LABEL,), "compile": arguments, "learning_rate": 0.5, "batch_size": 8,
           "epochs": 2, "shuffle": False, "steps_per_execution": 3} | changes
    )  # fmt: skip


def data_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    rows = random.uniform(-1, 1, (count, 4)).astype(np.float32)
    return {"x0": rows, "y0": (rows @ random.uniform(-1, 1, (4, 3))).argmax(axis=1).astype(np.float32)}


def train_alone(model: Any, spec: TrainSpec, spool: Any, events: io.StringIO) -> tuple[Any, dict[str, Any]]:
    """The trained network and the summary; events go to ``events``, as lines of JSON."""
    task = {"rows": spool.rows, "shapes": spool.shapes, "dtypes": spool.dtypes, "digest": spool.digest, "partition": 0}
    with contextlib.closing(Heartbeat(events)) as heartbeat:
        context = RankContext(Communicator(1), 0, [task], PhaseTimer(), heartbeat, {"candidate": 1})
        feeds = {
            part: Feed(part, spec, context, spooled_rows(part, [task], 0, inherited(spool, part)))
            for part in ("train", "validation")
        }
        training = Training(make_trainer(model, spec, context.communicator, feeds), context)
        with contextlib.closing(training):
            training.advance(sys.maxsize)
            training.end()
    return model, training.summary()


def events_of(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]
