"""Params for speed do what they say, and no more."""

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


def test_accumulated_gradients_are_those_of_larger_batches(spark, data):
    one = data.coalesce(1)
    accumulated = estimator(batchSize=16, gradientAccumulationSteps=4).fit(one).toKeras()
    large = estimator(batchSize=64).fit(one).toKeras()
    assert_same_weights(accumulated, large, 1e-5)
    assert differences(estimator(batchSize=16).fit(one).toKeras(), large) > 1e-3


def test_accumulated_gradients_of_two_ranks(data):
    """In half precision too, where the loss is scaled."""
    for policy, bound in ((None, 1e-5), ("mixed_float16", 2e-2)):
        accumulated = estimator(
            numTrainWorkers=2, batchSize=16, gradientAccumulationSteps=2, dtypePolicy=policy
        ).fit(data).toKeras()  # fmt: skip
        large = estimator(numTrainWorkers=2, batchSize=32).fit(data).toKeras()
        assert_same_weights(accumulated, large, bound)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_while_training_and_full_precision_after_it(data, exact, policy):
    model = estimator(numTrainWorkers=2, dtypePolicy=policy).fit(data).toKeras()
    assert 1e-7 < differences(model, exact) < 2e-2
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert {weight.dtype for weight in model.weights} == {"float32"}


def test_a_gradient_too_large_for_half_precision_on_one_rank_lets_all_skip_the_step(spark):
    """The one step there is: the weights stay as they were. Without that rank's row, they change."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1)])
    options = {"model": network, "loss": "mse", "numTrainWorkers": 2, "dtypePolicy": "mixed_float16", "epochs": 1}
    features, labels, _ = reference.data(32)
    rows = rows_of(features / 100, labels / 100)
    changed = estimator(**options).fit(frame(spark, [rows[:16], rows[16:]])).toKeras()
    skipped = estimator(**options).fit(frame(spark, [rows[:16], rows_of(1000 * features[:1], labels[:1])])).toKeras()
    assert differences(changed, network) > 0
    assert differences(skipped, network) == 0


def test_xla_computes_the_same(data, exact):
    model = estimator(numTrainWorkers=2, jitCompile=True).fit(data)
    assert_same_weights(model.toKeras(), exact, 1e-5)


def test_xla_compiles_the_layers(data):
    """A layer that only Python can run is something that XLA refuses."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((12,)), Misbehaving("nothing", rank="9"), keras.layers.Dense(3, "softmax")])
    estimator(model=network).fit(data.coalesce(1))
    with pytest.raises(RankError, match="EagerPyFunc"):
        estimator(model=network, jitCompile=True).fit(data.coalesce(1))


@pytest.mark.parametrize(("steps", "calls"), [(None, 1), (1, 8), (4, 2)])
def test_steps_per_call_of_tensorflow(data, tmp_path, steps, calls):
    counts = callback("tests.support.layers:CountCalls", file=str(tmp_path / "calls"))
    estimator(stepsPerExecution=steps, epochs=1, callbacks=[counts]).fit(data.coalesce(1))
    assert len((tmp_path / "calls").read_text().splitlines()) == calls


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
