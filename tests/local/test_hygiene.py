"""Fits and transforms one after the other leave nothing in the driver; tests/benchmarks/hygiene.py does many more."""

import gc

import psutil
import pytest

from cos_ml.data.frames import planned_at_once
from tests.support import reference
from tests.support.reference import estimator
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


@pytest.mark.processes
def test_threads_files_and_processes_do_not_grow(spark, tmp_path):
    df = frame(spark, [rows_of(*reference.data(64))] * 2)

    def once():
        model = estimator(reference.network(), epochs=1, checkpointDir=str(tmp_path), resume="never").fit(df)
        assert len(model.transform(df).collect()) == 128
        gc.collect()
        driver = psutil.Process()
        return driver.num_threads(), driver.num_fds(), len(driver.children(recursive=True))

    once()  # makes what stays: the connection to the JVM, the Python workers
    first = once()
    assert all(now <= then for now, then in zip(once(), first, strict=True))  # what earlier tests left may have ended


def test_a_fit_of_rows_that_no_query_shuffles_is_one_job(spark):
    df, group = frame(spark, [rows_of(*reference.data(8))] * 2), "of test_hygiene"
    spark.sparkContext.setJobGroup(group, group)
    try:
        estimator(reference.network(), epochs=1, numTrainWorkers=1).fit(df)
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
    assert len(spark.sparkContext.statusTracker().getJobIdsForGroup(group)) == 1


@pytest.mark.parametrize("setting", ["true", "false", None])
def test_only_queries_with_shuffles_are_planned_as_they_run(spark, setting):
    name = "spark.sql.adaptive.enabled"
    before, df = spark.conf.get(name), spark.range(4)
    spark.conf.unset(name) if setting is None else spark.conf.set(name, setting)
    try:
        with planned_at_once(df):
            assert spark.conf.get(name) == "false"
        with planned_at_once(df.repartition(3)):
            assert spark.conf.get(name) == (setting or "true")
        assert spark.conf.get(name) == (setting or "true")
    finally:
        spark.conf.set(name, before)
