"""A real cluster: Spark's standalone master and two workers, each a host of its own where the test may make one."""

from __future__ import annotations

import threading

import keras
import numpy as np

from cos_ml import DeepNetModel
from tests import reference
from tests.layers import Misbehaving
from tests.local.test_exactness import assert_same_weights, estimator, split
from tests.sessions import frame, rows_of


def test_four_ranks_on_two_hosts_are_the_loop_by_hand(cluster, tmp_path):
    parts = split(reference.data(400), 120, 100, 100, 80)
    expected = reference.network()
    reference.train(expected, parts, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    df = frame(cluster.spark, [rows_of(*part) for part in parts])
    model = estimator(reference.network(), numTrainWorkers=4, epochs=2).fit(df)

    assert_same_weights(model.toKeras(), expected)
    places = model.summary.ranks
    assert [place["rank"] for place in places] == [0, 1, 2, 3]
    if cluster.apart:
        assert [place["local_rank"] for place in places] == [0, 1, 0, 1]
        assert [place["cross_rank"] for place in places] == [0, 0, 1, 1]
        assert len({place["host"] for place in places}) == 2

    model.write().overwrite().save(str(tmp_path / "model"))
    rows = DeepNetModel.load(str(tmp_path / "model")).transform(df).collect()
    features = np.array([row.features.toArray() for row in rows], np.float32)
    found = np.array([row.probability.toArray() for row in rows])
    np.testing.assert_allclose(found, expected(features).numpy(), atol=1e-5)


def test_a_fit_survives_the_kill_of_a_worker(cluster, tmp_path):
    """In the third epoch a worker's host is gone, with its executor and its ranks; the other one has room for all."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            Misbehaving("nothing", marker=str(tmp_path / "now"), call=25),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    parts = split(reference.data(320), 160, 160)
    df = frame(cluster.spark, [rows_of(*part) for part in parts])
    options = {"epochs": 40, "batchSize": 16, "numTrainWorkers": 2, "stepsPerExecution": 5}

    def kill() -> None:
        pause = threading.Event()
        while not (tmp_path / "now").exists() and not pause.wait(0.02):
            pass
        cluster.workers["worker-0"].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    model = estimator(network, checkpointDir=str(tmp_path / "states"), **options).fit(df)
    killer.join()
    undisturbed = estimator(network, **options).fit(df)
    assert_same_weights(model.toKeras(), undisturbed.toKeras(), 1e-6)
    assert len(model.summary.history["loss"]) == 40
