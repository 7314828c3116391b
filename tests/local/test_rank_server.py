"""A fit whose ranks are forks of the rank server, beside one whose ranks are new processes."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest

from cos_ml import DeepNetEstimator
from cos_ml.job.rank_server import IDLE_TIMEOUT
from tests.support import reference
from tests.support.processes import assert_nothing_left, server_processes
from tests.support.sessions import frame, rows_of

pytestmark = [pytest.mark.processes, pytest.mark.once]


def test_forks_compute_what_new_processes_do(spark, monkeypatch):
    # An environment of its own, hence a server of its own, beside those that earlier tests' fits have started.
    monkeypatch.setitem(spark.sparkContext.environment, "TF_OF_THIS_TEST", "1")
    folder = spark.conf.get("spark.local.dir")
    before = {process.pid for process in server_processes(folder)}
    rows = rows_of(*reference.data(128))
    data = frame(spark, [rows[:64], rows[64:]])
    estimator = DeepNetEstimator(
        model=reference.network(), loss="sparse_categorical_crossentropy", numTrainWorkers=2, epochs=2, seed=1,
        progress=False,
    )  # fmt: skip
    forked = estimator.fit(data)
    (held,) = forked.summary.rankServers.values()
    assert held > 50e6
    (server,) = [process for process in server_processes(folder) if process.pid not in before]
    assert server.num_threads() == 1
    assert server.uids().real == os.getuid()
    spark.conf.set(IDLE_TIMEOUT, "0")
    try:
        new = estimator.fit(data)
    finally:
        spark.conf.unset(IDLE_TIMEOUT)
    assert new.summary.rankServers == {}
    for one, other in zip(forked.toKeras().get_weights(), new.toKeras().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert forked.summary.history == new.summary.history
    assert_nothing_left(spark)
    assert psutil.pid_exists(server.pid)  # for the next fit
