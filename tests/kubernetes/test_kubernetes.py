"""Spark on Kubernetes: its own scheduler, a mock API server, and pods that are processes in namespaces of their own."""

from __future__ import annotations

import json
import threading

import keras
import numpy as np
import pytest

from cos_ml.job import cluster_check, containers
from tests.kubernetes import node
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import ROOT, frame, rows_of

MIB = 1 << 20


def limit(pod):
    """The bytes that a pod's container may use."""
    (container,) = pod.object["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    return node.bytes_of(container["resources"]["limits"]["memory"])


def test_ranks_in_two_pods_are_the_loop_by_hand(kubernetes, spark):
    parts = split(reference.data(200), 120, 80)
    expected = reference.network()
    reference.train(expected, parts, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    df = frame(spark, [rows_of(*part) for part in parts])
    est = estimator(reference.network(), epochs=2)
    text = est.explain(df)
    assert "2.1 GB outside of the JVM in each container, for its ranks (1)" in text
    assert text.endswith("Ready to fit.")
    model = est.fit(df)
    assert_same_weights(model.toKeras(), expected)

    pods = kubernetes.executors(spark.sparkContext.applicationId).values()
    assert {rank["host"] for rank in model.summary.ranks} == {pod.address for pod in pods}
    for pod in pods:
        assert pod.object["metadata"]["labels"]["team"] == "tests"  # as the template says
        assert limit(pod) == 1024 * MIB + containers.container(spark.conf).size
    features = np.array([row.features.toArray() for row in df.collect()], np.float32)
    scores = np.array([row.probability.toArray() for row in model.transform(df).collect()])
    np.testing.assert_allclose(scores, expected(features).numpy(), atol=1e-5)
    found = cluster_check.report(spark, 2, megabytes=1)
    assert "1 MB among 2 ranks on 2 hosts, by Gloo over eth0" in found


def test_a_fit_survives_the_deletion_of_a_pod(kubernetes, spark, tmp_path):
    """In the third epoch a pod is deleted; Spark requests another one, and the fit resumes."""
    keras.utils.set_random_seed(0)
    layer = Misbehaving("wait", marker=str(tmp_path / "now"), call=25)
    network = keras.Sequential([keras.Input((12,)), layer, keras.layers.Dense(3, "softmax")])
    df = frame(spark, [rows_of(*part) for part in split(reference.data(320), 160, 160)])
    est = estimator(network, epochs=6, batchSize=16, stepsPerExecution=5)
    application, over = spark.sparkContext.applicationId, threading.Event()

    def delete() -> None:
        while not (tmp_path / "now").exists() and not over.wait(0.02):
            pass
        if not over.is_set():
            kubernetes.server.delete_pod(next(iter(kubernetes.executors(application))))

    thread = threading.Thread(target=delete, daemon=True)
    thread.start()
    try:
        model = est.copy({est.checkpointDir: str(tmp_path / "states")}).fit(df)
    finally:
        over.set()
        thread.join()
    undisturbed = est.fit(df)
    assert len(model.summary.failures) == 1
    assert model.summary.resumedAt in ((1, 0), (2, 0))  # the last one may not have been whole yet
    assert len(kubernetes.executors(application)) == 3
    for mine, theirs in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_cluster_mode_with_a_volume(kubernetes, tmp_path):
    """The driver is a pod, too, and has a folder in common with executors; Spark knows that the program is Python's."""
    volumes = {
        f"spark.kubernetes.{role}.volumes.hostPath.shared.{name}": value
        for role in ("driver", "executor")
        for name, value in (("mount.path", "/opt/shared"), ("options.path", str(tmp_path)))
    }
    settings = {
        "spark.kubernetes.driver.master": kubernetes.server.url, "spark.kubernetes.report.interval": "1s",
        "spark.driver.memoryOverhead": "2g", "spark.executor.memory": "4g", "spark.executor.memoryOverhead": None,
    }  # fmt: skip
    program = f"local://{ROOT / 'tests' / 'kubernetes' / 'program.py'}"
    done = kubernetes.submit(program, "/opt/shared", mode="cluster", **settings, **volumes)
    drivers = [pod for name, pod in kubernetes.node.pods.items() if name.endswith("-driver")]
    assert done.returncode == 0, done.stderr[-4000:] + "".join(pod.log()[-4000:] for pod in drivers)
    (driver,) = drivers
    found = json.loads((tmp_path / "found.json").read_text())
    pods = kubernetes.executors(found["application"]).values()
    assert found["host"] == driver.object["metadata"]["name"]
    assert set(found["ranks"]) == {pod.address for pod in pods}
    assert "1.7 GB outside of the JVM in each container, for its ranks (1)" in found["explain"]  # 40% of 4 GiB
    assert {limit(pod) // MIB for pod in pods} == {4096 + 1638}
    assert found["states"]  # written by a rank, listed by the driver
    expected = reference.network()
    parts = split(reference.data(64), 32, 32)
    reference.train(expected, parts, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    for mine, theirs in zip(found["weights"], expected.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    scores = expected(np.concatenate([features for features, _, _ in parts])).numpy().argmax(axis=1)
    assert found["scores"] == scores.tolist()


def test_ranks_that_need_more_than_their_container_has(kubernetes):
    if not node.can_limit_memory():
        pytest.skip("this process may make no control groups, of version 1: nothing limits a container's memory")
    settings = {
        "spark.executor.instances": "1", "spark.executor.cores": "2", "spark.executor.memory": "512m",
        "spark.executor.memoryOverhead": "384m", "spark.driver.host": kubernetes.driver,
    }  # fmt: skip
    program = str(ROOT / "tests" / "yarn" / "program.py")
    done = kubernetes.submit(program, "memory", mode="client", **settings)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert "PROBLEM  memory" in found["explain"]
    assert "(spark.executor.memoryOverhead=384m). Kubernetes kills containers that use more" in found["explain"]
    assert "OOM" in found["error"]
