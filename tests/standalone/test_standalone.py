"""A real cluster: Spark's standalone master and two workers, each a host of its own where the test may make one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

import cos_ml
from cos_ml import DeepNetModel
from cos_ml.commands.session import CONF_DIR
from cos_ml.job import cluster_check
from tests.support import reference
from tests.support.environments import packed_environment
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import ROOT, frame, rows_of


def test_workers_are_hosts_of_their_own(cluster):
    if not cluster.apart:
        pytest.skip("this process may make no network namespaces: both workers are on the loopback")


def test_their_clocks_are_an_hour_apart(spark):
    """So the tests that follow are also those of clocks that differ."""
    tasks = spark.sparkContext.parallelize(range(4), 4).barrier()  # all slots of both hosts
    found = tasks.mapPartitions(lambda _: [time.time()]).collect()
    assert 3500 < max(found) - min(found) < 3700


def test_four_ranks_on_two_hosts_are_the_loop_by_hand(cluster, spark, tmp_path):
    parts = split(reference.data(400), 120, 100, 100, 80)
    expected = reference.network()
    reference.train(expected, parts, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    df = frame(spark, [rows_of(*part) for part in parts])
    model = estimator(reference.network(), numTrainWorkers=4, epochs=2).fit(df)

    assert_same_weights(model.toKeras(), expected)
    infos = model.summary.ranks
    assert [info["rank"] for info in infos] == [0, 1, 2, 3]
    if cluster.apart:
        assert [info["local_rank"] for info in infos] == [0, 1, 0, 1]
        assert [info["cross_rank"] for info in infos] == [0, 0, 1, 1]
        assert len({info["host"] for info in infos}) == 2

    model.write().overwrite().save(str(tmp_path / "model"))
    rows = DeepNetModel.load(str(tmp_path / "model")).transform(df).collect()
    features = np.array([row.features.toArray() for row in rows], np.float32)
    found = np.array([row.probability.toArray() for row in rows])
    np.testing.assert_allclose(found, expected(features).numpy(), atol=1e-5)


def test_a_fit_survives_the_kill_of_a_worker(cluster, spark, tmp_path):
    """In the third epoch a worker's host is gone, with its executor and its ranks; the other one has room for all."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            Misbehaving("wait", marker=str(tmp_path / "now"), call=25),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    parts = split(reference.data(320), 160, 160)
    df = frame(spark, [rows_of(*part) for part in parts])
    options = {"epochs": 6, "batchSize": 16, "numTrainWorkers": 2, "stepsPerExecution": 5}
    over = threading.Event()

    def kill() -> None:
        while not (tmp_path / "now").exists() and not over.wait(0.02):
            pass
        if not over.is_set():
            cluster.workers[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        model = estimator(network, checkpointDir=str(tmp_path / "states"), **options).fit(df)
    finally:
        over.set()
        killer.join()
    cluster.start_worker(0)  # for the other tests
    undisturbed = estimator(network, **options).fit(df)
    assert_same_weights(model.toKeras(), undisturbed.toKeras(), 1e-6)
    assert len(model.summary.history["loss"]) == 6
    assert len(model.summary.failures) == 1
    assert model.summary.resumedAt == (2, 0)


def submit(cluster, *arguments, **settings):
    """Run ``spark-submit`` on two cores of the cluster, as a user does; returns what it printed."""
    settings = {
        "spark.driver.host": cluster.driver, "spark.driver.bindAddress": cluster.driver, "spark.cores.max": "2",
        "spark.executor.cores": "1", "spark.executor.memory": "1g", "spark.ui.enabled": "false",
    } | settings  # fmt: skip
    confs = [f"--conf={name}={value}" for name, value in settings.items()]
    command = [
        str(Path(pyspark.__file__).parent / "bin" / "spark-submit"),
        "--master",
        cluster.master,
        *confs,
        *arguments,
    ]
    errors_only = str(Path(cos_ml.__file__).with_name("conf"))
    environment = {"PYSPARK_PYTHON": sys.executable} | os.environ
    environment |= {"PYSPARK_DRIVER_PYTHON": sys.executable, "SPARK_CONF_DIR": errors_only}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_spark_submit_of_the_demo(cluster, tmp_path):
    demo = ROOT / "examples" / "features_to_logistic_regression" / "train.py"
    printed = submit(cluster, str(demo), str(tmp_path / "model"))
    assert f"saved to {tmp_path / 'model'}" in printed
    assert (tmp_path / "model" / "metadata").exists()


@pytest.mark.long
def test_spark_submit_of_the_command_line(cluster, tmp_path):
    """Errors are the program's exit status; see tests/local/test_commands.py for what commands do."""
    table = pa.table({"label": [0.0, 1.0] * 4, "features": [[float(row), 1.0] for row in range(8)]})
    pq.write_table(table, tmp_path / "rows.parquet")
    script = str(CONF_DIR / "submit.py")
    (tmp_path / "nets.py").write_text(
        "import keras\n\ndef net():\n    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
    )
    printed = submit(
        cluster, "--py-files", str(tmp_path / "nets.py"), script, "train", "--data", str(tmp_path / "rows.parquet"),
        "--network", "nets:net", "--loss", "mse", "--numTrainWorkers", "2", "--progress", "false",
        "--save", str(tmp_path / "model"),
    )  # fmt: skip
    assert json.loads(printed)["ranks"] == 2
    printed = submit(
        cluster, script, "test", "--data", str(tmp_path / "rows.parquet"), "--model", str(tmp_path / "model")
    )
    assert json.loads(printed)["loss"] > 0


CAFFE_NET = """
layer { name: "data" type: "MemoryData" top: "data" top: "label" source_class: "com.yahoo.ml.caffe.ImageDataFrame"
  memory_data_param { source: "rows.parquet" batch_size: 4 channels: 1 height: 2 width: 3 }
  transform_param { scale: 0.00390625 } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }
"""


@pytest.mark.long
def test_spark_submit_of_caffe_on_sparks_command_line(cluster, tmp_path):
    rows = {"id": [f"{row:02d}" for row in range(16)], "data": [bytes(range(row, row + 6)) for row in range(16)]}
    sides = {
        name: pa.array([side] * 16, pa.int32())
        for name, side in zip(("channels", "height", "width"), (1, 2, 3), strict=True)
    }
    labels = {"label": pa.array([row % 5 for row in range(16)], pa.int32()), "encoded": [False] * 16}
    pq.write_table(pa.table(rows | sides | labels), tmp_path / "rows.parquet")
    (tmp_path / "net.prototxt").write_text(CAFFE_NET)
    (tmp_path / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3')
    submit(
        cluster, str(CONF_DIR / "submit.py"), "caffe", "-conf", str(tmp_path / "solver.prototxt"), "-train",
        "-features", "ip1", "-label", "label", "-output", str(tmp_path / "out"), "-clusterSize", "2",
    )  # fmt: skip
    found = [json.loads(line) for file in (tmp_path / "out").glob("*.json") for line in file.read_text().splitlines()]
    assert sorted(row["SampleID"] for row in found) == rows["id"]
    assert all(len(row["ip1"]) == 5 and min(row["ip1"]) >= 0 for row in found)  # after the ReLU in place


def test_executors_use_the_environment_that_comes_as_an_archive(cluster, tmp_path):
    archive = packed_environment(tmp_path)
    printed = submit(
        cluster, "--archives", f"{archive}#environment",
        str(ROOT / "tests" / "standalone" / "program.py"),
        **{"spark.pyspark.python": "./environment/bin/python", "spark.pyspark.driver.python": sys.executable},
    )  # fmt: skip
    found = json.loads(printed.splitlines()[-1])
    assert len(found["ranks"]) == 2
    for rank in found["ranks"]:
        assert rank["prefix"].endswith("/environment")
        assert str(cluster.folder / "work-") in rank["prefix"]
    assert found["loss"] > 0


def test_check_reports_both_hosts(cluster, spark):
    text = cluster_check.report(spark, 4, megabytes=1)
    assert "the sum is correct" in text
    if cluster.apart:
        assert "1 MB among 4 ranks on 2 hosts, by Gloo over eth0" in text
        assert all(f"eth0 {address}" in text for address, _ in cluster.hosts)
