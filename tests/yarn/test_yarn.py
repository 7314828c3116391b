"""YARN and HDFS: servers of Hadoop's own, two nodes in one process; containers are killed for their memory."""

from __future__ import annotations

import json
import re
import sys

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression

from cos_ml import callback
from tests.support import reference
from tests.support.environments import packed_environment
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import ROOT, frame, rows_of
from tests.yarn.conftest import SETTINGS

PROGRAM = str(ROOT / "tests" / "yarn" / "program.py")


def application(spark):
    return spark.sparkContext.applicationId


def files_on(hadoop, spark, path):
    """The names of the files below a folder on HDFS; none where it does not exist."""
    jvm = spark.sparkContext._jvm
    folder = jvm.org.apache.hadoop.fs.Path(path)
    system = folder.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
    found, names = system.listFiles(folder, True) if system.exists(folder) else None, []
    while found is not None and found.hasNext():
        names.append(found.next().getPath().getName())
    return sorted(names)


def found_in(text):
    (line,) = [line for line in text.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


def test_ranks_in_two_containers_are_the_loop_by_hand(hadoop, spark):
    parts = split(reference.data(200), 120, 80)
    expected = reference.network()
    reference.train(expected, parts, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    df = frame(spark, [rows_of(*part) for part in parts])
    est = estimator(reference.network(), epochs=2)
    text = est.explain(df)
    assert "2.1 GB outside of the JVM in each container, for its ranks (1)" in text
    assert text.endswith("Ready to fit.")
    model = est.copy({est.callbacks: [callback("tests.yarn.callbacks:Print")]}).fit(df)
    assert_same_weights(model.toKeras(), expected)
    assert len(model.summary.ranks) == 2
    logs = [file for one in hadoop.containers(application(spark)) for file in one.glob("rank-*.log")]
    assert sorted(path.name[:6] for path in logs) == ["rank-0", "rank-1"]
    assert len({path.parent for path in logs}) == 2
    assert all("printed by a callback" in path.read_text() for path in logs)


@pytest.fixture(scope="module")
def pipeline(hadoop, spark):
    """Where a pipeline was saved on HDFS, twice, and the scores of its own application."""
    df = frame(spark, [rows_of(*part) for part in split(reference.data(64), 32, 32)])
    names = {f"{name}Col": f"lr_{name}" for name in ("prediction", "probability", "rawPrediction")}
    stages = [
        estimator(reference.network(), featureLayers=["hidden"]),
        LogisticRegression(featuresCol="hidden", maxIter=5, **names),
    ]
    model = Pipeline(stages=stages).fit(df)
    path = f"{hadoop.fs}/tests/pipeline"
    for _ in range(2):
        model.write().overwrite().save(path)
    return path, [list(row) for row in model.transform(df).select("prediction", "lr_prediction").collect()]


def test_cluster_mode_scores_it_with_an_environment_that_comes_from_hdfs(hadoop, spark, pipeline, tmp_path):
    packed = packed_environment(tmp_path)
    jvm, archive = spark.sparkContext._jvm, f"{hadoop.fs}/tests/environment.tar.gz"
    target = jvm.org.apache.hadoop.fs.Path(archive)
    target.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration()).copyFromLocalFile(
        jvm.org.apache.hadoop.fs.Path(str(packed)), target
    )
    settings = dict.fromkeys(("spark.pyspark.python", "spark.pyspark.driver.python"), "./environment/bin/python")
    done = hadoop.submit(
        "--archives", f"{archive}#environment", PROGRAM, "score", pipeline[0], mode="cluster",
        **settings, **{"spark.driver.memoryOverhead": "2g", "spark.executorEnv.PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (name,) = set(re.findall(r"application_\d+_\d+", done.stderr))
    found = found_in((hadoop.containers(name)[0] / "stdout").read_text())
    assert found["scores"] == pipeline[1]
    assert found["ranks"] == 2
    assert found["loss"] > 0
    assert str(hadoop.folder) in found["python"]


def test_a_fit_survives_the_kill_of_a_container(hadoop, spark, tmp_path):
    """In the third epoch an executor is killed; YARN starts another one, and the fit resumes from HDFS."""
    keras.utils.set_random_seed(0)
    layer = Misbehaving("kill executor", marker=str(tmp_path / "now"), call=25)
    network = keras.Sequential([keras.Input((12,)), layer, keras.layers.Dense(3, "softmax")])
    df = frame(spark, [rows_of(*part) for part in split(reference.data(320), 160, 160)])
    est = estimator(network, epochs=6, batchSize=16, stepsPerExecution=5)
    url = f"{hadoop.fs}/tests/states"
    model = est.copy({est.checkpointDir: url}).fit(df)
    undisturbed = est.fit(df)
    assert len(model.summary.failures) == 1, model.summary.failures
    assert "Exit status: 137" in model.summary.failures[0]
    assert model.summary.resumedAt in ((1, 0), (2, 0))  # the last one may not have been whole yet
    left = files_on(hadoop, spark, url)
    assert not [name for name in left if name.startswith(".")], left
    for mine, theirs in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ranks_that_need_more_than_their_container_has(hadoop):
    settings = {"spark.executor.instances": "1", "spark.executor.cores": "2", "spark.executor.memoryOverhead": "384m"}
    done = hadoop.submit(PROGRAM, "memory", **settings)
    found = found_in(done.stdout)
    assert "PROBLEM  memory" in found["explain"]
    assert "An executor's ranks (2) need about" in found["explain"]
    assert "(spark.executor.memoryOverhead=384m). YARN kills containers that use more" in found["explain"]
    assert "exceeding physical memory limits" in found["error"]


def test_the_check(hadoop):
    command = [sys.executable, "-m", "cos_ml.cli", "check", "--master", "yarn", "--ranks", "2", "--megabytes", "1"]
    for name in ("spark.yarn.jars", "spark.executor.memory", "spark.executor.memoryOverhead"):
        command += ["--conf", f"{name}={SETTINGS[name]}"]
    done = hadoop.run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "1 MB among 2 ranks" in done.stdout
    assert "the sum is correct" in done.stdout
