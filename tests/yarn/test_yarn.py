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
from tests.yarn.hadoop import SETTINGS

PROGRAM = str(ROOT / "tests" / "yarn" / "program.py")
PARTS = split(reference.data(200), 120, 80)
ONE = {"spark.executor.instances": "1", "spark.executor.cores": "2"}  # executor, for two ranks: starts sooner than two


def found_in(text):
    """What ``program.py`` has found."""
    (line,) = [line for line in text.splitlines() if line.startswith("FOUND ")]
    return json.loads(line.removeprefix("FOUND "))


@pytest.fixture(scope="module")
def df(spark):
    return frame(spark, [rows_of(*part) for part in PARTS])


@pytest.fixture(scope="module")
def pipeline(df):
    """A network, trained on two ranks, and a regression on its features."""
    names = {f"{name}Col": f"lr_{name}" for name in ("prediction", "probability", "rawPrediction")}
    network = estimator(
        reference.network(), epochs=2, featureLayers=["hidden"], callbacks=[callback("tests.yarn.callbacks:Print")]
    )
    return Pipeline(stages=[network, LogisticRegression(featuresCol="hidden", maxIter=2, **names)]).fit(df)


def test_ranks_in_two_containers_are_the_loop_by_hand(hadoop, spark, df, pipeline):
    text = estimator(reference.network()).explain(df)
    assert "2.1 GB outside of the JVM in each container, for its ranks (1)" in text
    assert text.endswith("Ready to fit.")
    expected, model = reference.network(), pipeline.stages[0]
    reference.train(expected, PARTS, 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    assert_same_weights(model.toKeras(), expected)
    assert len(model.summary.ranks) == 2
    logs = [file for one in hadoop.containers(spark.sparkContext.applicationId) for file in one.glob("rank-*.log")]
    assert sorted(path.name[:6] for path in logs) == ["rank-0", "rank-1"]
    assert len({path.parent for path in logs}) == 2
    assert all("printed by a callback" in path.read_text() for path in logs)


def test_cluster_mode_with_an_environment_from_hdfs_scores_and_fits_from_hdfs(hadoop, df, pipeline, tmp_path):
    for _ in range(2):
        pipeline.write().overwrite().save("/tests/pipeline")
    hadoop.files.put_file(str(packed_environment(tmp_path)), "/tests/environment.tar.gz")
    settings = dict.fromkeys(("spark.pyspark.python", "spark.pyspark.driver.python"), "./environment/bin/python")
    done = hadoop.submit(
        "--archives", f"{hadoop.fs}/tests/environment.tar.gz#environment", PROGRAM, "score", "/tests/pipeline",
        mode="cluster", **settings, **ONE, **{"spark.driver.memoryOverhead": "2g", "spark.executorEnv.PYTHONPATH": ""},
    )  # fmt: skip
    (name,) = set(re.findall(r"application_\d+_\d+", done.stderr))
    output = (hadoop.containers(name)[0] / "stdout").read_text()
    assert done.returncode == 0, done.stderr[-2000:] + output[-4000:]
    found = found_in(output)
    scored = pipeline.transform(df).select("prediction", "lr_prediction").collect()
    assert found["scores"] == [list(row) for row in scored]
    assert (found["ranks"], found["rows"], found["notes"]) == (2, 200, [])
    assert str(hadoop.folder) in found["python"]
    assert [path for path in hadoop.files.find("/tests/checkpoints") if "/checkpoint-auto-000001-" in path]


def test_a_fit_survives_the_kill_of_a_container(hadoop, spark, tmp_path):
    """In the third epoch an executor is killed; YARN starts another one, and the fit resumes from HDFS."""
    keras.utils.set_random_seed(0)
    layer = Misbehaving("kill executor", marker=str(tmp_path / "now"), call=25)
    network = keras.Sequential([keras.Input((12,)), layer, keras.layers.Dense(3, "softmax")])
    df = frame(spark, [rows_of(*part) for part in split(reference.data(320), 160, 160)])
    est = estimator(network, epochs=4, batchSize=16, stepsPerExecution=5)
    model = est.copy({est.checkpointDir: "/tests/states"}).fit(df)
    undisturbed = est.fit(df)
    assert len(model.summary.failures) == 1, model.summary.failures
    assert "Exit status: 137" in model.summary.failures[0]
    assert model.summary.resumedAt in ((1, 0), (2, 0))  # the last one may not have been whole yet
    left = [path for path in hadoop.files.find("/tests/states") if "/." in path]
    assert not left
    for mine, theirs in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ranks_that_need_more_than_their_container_has(hadoop):
    settings = ONE | {
        "spark.executor.memoryOverhead": "384m",
        # YARN counts an executor's descendants, unless it uses cgroups; a rank server is none, and its ranks are none.
        "spark.cosml.rankServer.idleTimeout": "0",
    }  # fmt: skip
    done = hadoop.submit(PROGRAM, "memory", **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = found_in(done.stdout)
    assert "PROBLEM  memory" in found["explain"]
    assert "An executor's ranks (2) need about" in found["explain"]
    assert "(spark.executor.memoryOverhead=384m). YARN kills containers that use more" in found["explain"]
    assert found["error"].startswith("RankError: The fit failed after 2 attempts")
    assert found["error"].count("exceeding physical memory limits") == 2


def test_the_check(hadoop):
    command = [sys.executable, "-m", "cos_ml.cli", "check", "--master", "yarn", "--ranks", "2", "--megabytes", "1"]
    for name, value in (SETTINGS | ONE).items():
        command += ["--conf", f"{name}={value}"]
    done = hadoop.run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "1 MB among 2 ranks" in done.stdout
    assert "the sum is correct" in done.stdout
