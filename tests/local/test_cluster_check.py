"""``cos-ml check``: what ranks report of themselves, and their allreduce."""

import os
import subprocess
import sys

import pytest

from cos_ml.errors import ClusterError, InvalidInputError, RankError
from cos_ml.job import cluster_check
from tests.support.processes import assert_nothing_left

pytestmark = pytest.mark.once


@pytest.mark.processes
def test_two_ranks(spark):
    lines = cluster_check.report(spark, 2, megabytes=1).splitlines()
    assert [line[:11].strip() for line in lines] == [
        "Spark", "versions", "Horovod", "GPUs", "rank 0", "rank 1", "allreduce", "", "",
    ]  # fmt: skip
    assert lines[1].endswith(": the same everywhere")
    assert "built with Gloo, " in lines[2]
    assert ", CPU, a fork of a rank server of 0." in lines[4]
    assert "lo 127.0.0.1" in lines[4]
    assert "1 MB among 2 ranks on 1 host, by Gloo over lo, within one host: the sum is correct" in lines[6]
    assert " ms: each rank sends " in lines[7]
    assert_nothing_left(spark)


def test_one_rank(spark):
    report = cluster_check.report(spark, 1)
    assert ", CPU, a new process; " in report  # those of these tests are no rank server's
    assert report.endswith("allreduce  none: there is only one rank")


def test_what_can_not_be(spark):
    with pytest.raises(InvalidInputError, match="numTrainWorkers >= 1 and megabytes >= 1, received 0 and 64"):
        cluster_check.report(spark, 0)
    with pytest.raises(ClusterError, match="needs 3 tasks at the same time"):
        cluster_check.report(spark, 3)
    with pytest.raises(RankError, match=r"no network interface 'ib9'"):
        cluster_check.report(spark, 2, interface="ib9")
    with pytest.raises(RankError, match="sees no GPU"):
        cluster_check.report(spark, 1, useGpu=True)


@pytest.mark.processes
def test_the_command(tmp_path):
    run = [sys.executable, "-m", "cos_ml.cli", "check", "--ranks", "1", "--conf", f"spark.local.dir={tmp_path}"]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 0" in done.stdout
    wrong = subprocess.run([*run[:4], "--conf", "x"], capture_output=True, text=True, env=os.environ, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == "cos-ml: --conf x: expected KEY=VALUE."
