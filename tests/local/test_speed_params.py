"""Params for speed reach the ranks; what they compute there is in ``tests/unit/test_speed.py``."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

from cos_ml import DeepNetEstimator, callback, spec
from cos_ml.data import columns
from cos_ml.errors import RankError
from cos_ml.job import barrier
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


def estimator(**params: Any) -> DeepNetEstimator:
    defaults = {
        "model": reference.network(), "loss": "sparse_categorical_crossentropy", "optimizer": "sgd",
        "learningRate": 0.1, "epochs": 3, "batchSize": 16, "shuffle": False, "progress": False,
    }  # fmt: skip
    return DeepNetEstimator(**defaults | params)


@pytest.fixture(scope="module")
def data(spark):
    rows = rows_of(*reference.data(128))
    return frame(spark, [rows[:64], rows[64:]])


@pytest.fixture(scope="module")
def exact(data):
    return estimator(numTrainWorkers=2).fit(data).toKeras()


def differences(model: Any, other: Any) -> float:
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(one - two).max()) for one, two in pairs)


def test_compressed_gradients_have_three_digits(data, exact):
    model = estimator(numTrainWorkers=2, gradientCompression="fp16").fit(data)
    assert 0 < differences(model.toKeras(), exact) < 1e-3


def test_xla_compiles_the_layers(data):
    """A layer that only Python can run is something that XLA refuses."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((12,)), Misbehaving("nothing", rank="9"), keras.layers.Dense(3, "softmax")])
    estimator(model=network).fit(data.coalesce(1))
    with pytest.raises(RankError, match="EagerPyFunc"):
        estimator(model=network, jitCompile=True).fit(data.coalesce(1))


def test_steps_per_call_of_tensorflow(data, tmp_path):
    est = estimator(epochs=1)
    cases = {None: 1, 1: 8, 4: 2}
    files = {steps: str(tmp_path / f"calls-{steps}") for steps in cases}
    counts = {steps: callback("tests.support.layers:CountCalls", file=file) for steps, file in files.items()}
    maps = [{est.callbacks: [counts[steps]]} | ({est.stepsPerExecution: steps} if steps else {}) for steps in cases]
    est.fit(data.coalesce(1), maps)
    assert {steps: len(open(file).readlines()) for steps, file in files.items()} == cases


def test_a_timeline_of_horovods(data, tmp_path):
    estimator(numTrainWorkers=2, horovodOptions={"timeline": str(tmp_path / "timeline.json")}).fit(data)
    assert "ALLREDUCE" in (tmp_path / "timeline.json").read_text()


def test_variables_reach_every_rank(spark):
    names = columns.Column("id", "x0", dtype="int64"), columns.Column("id", "y0", dtype="int64")
    one = spec.TrainSpec(names[:1], names[1:], variables={"NCCL_DEBUG": "WARN", "HOROVOD_GLOO_IFACE": "lo"})
    job = barrier.Job("tests.support.rank_functions:environment", (one,), (b"",))
    outcome = barrier.run(spark.range(4).selectExpr("id x0", "id y0"), job, 2)
    for result in outcome.results:
        environment = json.loads(result["environment"])
        assert environment["NCCL_DEBUG"] == "WARN"
        assert environment["HOROVOD_GLOO_IFACE"] == "lo"
        assert environment["CUDA_VISIBLE_DEVICES"] == "-1"


def test_a_network_interface_by_name(data, exact):
    model = estimator(numTrainWorkers=2, horovodOptions={"networkInterface": "lo"}).fit(data)
    assert_same_weights(model.toKeras(), exact, 1e-6)
    with pytest.raises(RankError, match="has no network interface 'ib7'"):
        estimator(numTrainWorkers=2, horovodOptions={"networkInterface": "ib7"}).fit(data)
