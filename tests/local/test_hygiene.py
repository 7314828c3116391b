"""Fits and transforms one after the other leave nothing in the driver; tests/benchmarks/hygiene.py does many more."""

import gc

import psutil
import pytest

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
    assert [once() for _ in range(2)] == [first] * 2
