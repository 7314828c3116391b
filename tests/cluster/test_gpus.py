"""Spark's GPU scheduling with made-up addresses, down to the environment of the ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.sessions import ROOT

PROGRAM = """
import json, sys
from pathlib import Path
from cos_ml import spec
from cos_ml.data import columns
from cos_ml.errors import ClusterError
from cos_ml.job import barrier, slots
from tests.support.sessions import session

folder, task_amount = Path(sys.argv[1]), sys.argv[2]
settings = {
    "spark.worker.resource.gpu.amount": "2", "spark.worker.resource.gpu.discoveryScript": str(folder / "discover"),
    "spark.executor.resource.gpu.amount": "2", "spark.executor.cores": "2",
}
if task_amount:
    settings["spark.task.resource.gpu.amount"] = task_amount
spark = next(session("local-cluster[2,2,1024]", folder / "spark", **settings))
names = columns.Column("id", "x0", dtype="int64"), columns.Column("id", "y0", dtype="int64")
one = spec.TrainSpec(names[:1], names[1:], use_gpu=True)
job = barrier.Job("tests.support.rank_functions:environment", (one,), (b"",))
df = spark.range(40).selectExpr("id x0", "id y0")
outcome = barrier.run(df, job, 4)
print(json.dumps([json.loads(result["environment"]) for result in outcome.results]))
def held(_):
    from pyspark import TaskContext
    return len(TaskContext.get().resources())


print(sum(spark.sparkContext.parallelize(range(8), 8).map(held).collect()))  # GPUs of tasks that are no training's
slots.REGISTER_TIME = 0.0
try:
    barrier.run(df, job, 5)
except ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize("task_amount", ["1", pytest.param("", marks=pytest.mark.long)])
def test_each_rank_sees_the_gpu_that_spark_gave_it(tmp_path, task_amount):
    """Two executors of two GPUs; all tasks have one, or the training alone."""
    script = tmp_path / "discover"
    answer = json.dumps({"name": "gpu", "addresses": ["GPU-aaaa", "7"]})
    script.write_text(f"#!/bin/sh\necho '{answer}'\n")
    script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), task_amount],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "9"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line, held, too_many = done.stdout.splitlines()[-3:]
    ranks: list[dict[str, Any]] = json.loads(line)
    assert sorted(rank["CUDA_VISIBLE_DEVICES"] for rank in ranks) == ["7", "7", "GPU-aaaa", "GPU-aaaa"]
    assert len({(rank["executor"], rank["CUDA_VISIBLE_DEVICES"]) for rank in ranks}) == 4  # no two share one
    assert {rank["CUDA_DEVICE_ORDER"] for rank in ranks} == {"PCI_BUS_ID"}
    assert held == ("8" if task_amount else "0")
    assert too_many.startswith("numTrainWorkers=5 needs 5 tasks at the same time")
