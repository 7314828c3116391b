"""Ranks without Spark's barrier: as with it, and with dynamic allocation."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import ROOT, frame, rows_of


def test_a_gang_whose_executor_is_lost_ends_with_the_weights_of_an_undisturbed_barrier(spark, tmp_path):
    """A layer kills the JVM of its own executor, once, in the second epoch."""
    parts = split(reference.data(128), 64, 64)
    df = frame(spark, [rows_of(*part) for part in parts])
    marker = tmp_path / "killed"
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            Misbehaving("kill executor", marker=str(marker), call=3),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    gang = estimator(network, useBarrier=False, checkpointDir=str(tmp_path / "checkpoints"), shuffle=True).fit(df)
    assert marker.exists()
    assert gang.summary.resumedAt >= (1, 0)  # a rank trains on for a moment
    (failure,) = gang.summary.failures
    assert "ExecutorLostFailure" in failure
    undisturbed = estimator(network, shuffle=True).fit(df)
    assert undisturbed.summary.history["loss"] == gang.summary.history["loss"]
    for one, other in zip(gang.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


PROGRAM = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cos_ml import spark_internals
from cos_ml.errors import ClusterError
from tests.support import reference
from tests.support.reference import estimator, split
from tests.support.sessions import frame, rows_of, session

folder = Path(sys.argv[1])
settings = {
    "spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.minExecutors": "0", "spark.dynamicAllocation.maxExecutors": "3",
    "spark.dynamicAllocation.executorIdleTimeout": "2s", "spark.executor.cores": "1",
    "spark.cosml.executorsTimeout": "2s",
}
spark = next(session("local-cluster[3,1,1024]", folder / "spark", **settings))
data = frame(spark, [rows_of(*part) for part in split(reference.data(500), 300, 200)])
fitted = [estimator(reference.network(), useBarrier=barrier) for barrier in (True, False, False, False)]
found = {"before": spark_internals.count_executors(spark), "errors": []}

def hold(rows):
    while not (folder / "released").exists():
        threading.Event().wait(0.05)
    return rows

with ThreadPoolExecutor(3) as pool:
    holds = pool.submit(spark.sparkContext.parallelize(range(2), 2).mapPartitions(hold).collect)
    for one in fitted[:2]:
        try:
            one.fit(data)
        except ClusterError as error:
            found["errors"].append(str(error))
    spark.conf.set("spark.cosml.executorsTimeout", "5min")  # executors that were idle may have ended
    (folder / "released").touch()
    holds.result()
    models = list(pool.map(lambda one: one.fit(data), fitted[2:]))
found["weights"] = [[weight.tolist() for weight in model.toKeras().get_weights()] for model in models]
found["failures"] = [model.summary.failures for model in models]
found["scored"] = models[0].transform(data).select("prediction").count()
print(json.dumps(found))
spark.stop()
"""


@pytest.mark.long
def test_with_dynamic_allocation_spark_requests_the_executors_of_a_gang(tmp_path):
    """There are none at first, then slots for one and a half of the gangs; before that, another job holds two of three.

    So one gang is half-started, and gives up; two that start at the same time both end.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == 0
    refused, half = found["errors"]
    assert "Set the Param useBarrier=False" in refused
    assert "not all of them have started" in half
    assert found["failures"] == [[], []]
    assert found["weights"][0] == found["weights"][1]
    assert found["scored"] == 500
    expected = reference.network()
    reference.train(expected, split(reference.data(500), 300, 200), 32, 3, keras.optimizers.SGD(0.1, momentum=0.9))
    trained = reference.network()
    trained.set_weights([np.array(weight, np.float32) for weight in found["weights"][0]])
    assert_same_weights(trained, expected)
