"""What is found before a fit, and that a fit finds it too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cos_ml import DeepNetEstimator
from cos_ml.errors import ClusterError
from cos_ml.job import fit, preflight
from cos_ml.versions import shared_versions
from tests.support import reference
from tests.support.processes import assert_nothing_left
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once


def estimator(**params: Any) -> DeepNetEstimator:
    defaults = {"loss": "sparse_categorical_crossentropy", "numTrainWorkers": 2, "progress": False}
    return DeepNetEstimator(model=reference.network(), **defaults | params)


@pytest.fixture(scope="module")
def data(spark):
    return frame(spark, [rows_of(*reference.data(64))])


def test_all_is_well(data):
    lines = estimator().explain(data).splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["ok", name] for name in ("columns", "rows", "GPUs", "slots", "versions", "disk", "memory")
    ]
    assert lines[0].endswith("inputs 'features' (12 float32); labels 'label' (classes 0 to 2)")
    assert "64; checked the first 64; a fit checks all" in lines[1]
    assert "Keras" in lines[4]
    assert "the same on the driver and on 1 host of executors" in lines[4]
    assert re.search(r"a rank needs about 0\.\d GB", lines[6])
    assert lines[-1] == "Ready to fit."


def test_every_problem_is_reported_and_not_only_the_first(data):
    text = estimator(numTrainWorkers=3, useGpu=True).explain(data.selectExpr("features", "label + 2 label"))
    assert re.search(r"PROBLEM +rows +column 'label', row \d+: is [34]; ", text)
    assert re.search(r"PROBLEM +slots +numTrainWorkers=3 needs 3 tasks", text)
    assert re.search(r"ok +GPUs +useGpu=True on a local master", text)
    assert text.endswith("2 problems to fix before fitting.")


def test_what_the_estimator_itself_refuses(data):
    assert "no column 'fetures'" in estimator(featuresCol="fetures").explain(data)


def test_other_versions_on_the_executors(spark, data, monkeypatch):
    """Those of the driver are replaced; the executors have their own."""
    for module in (preflight, fit):
        monkeypatch.setattr(module, "shared_versions", lambda: shared_versions() | {"Keras": "3.0.1"})
    assert re.search(r"PROBLEM +versions .* \(the driver has 3\.0\.1\)", estimator().explain(data))
    with pytest.raises(ClusterError, match=r"Keras .* \(the driver has 3\.0\.1\).*PYSPARK_PYTHON"):
        estimator().fit(data)
    assert_nothing_left(spark)


def test_a_rank_that_will_not_fit_into_memory_is_reported(data, monkeypatch):
    monkeypatch.setattr(preflight, "PROCESS", 1e15)
    text = estimator().explain(data)
    assert re.search(r"PROBLEM +memory .* the ranks there \(2\) need about 2000000\.\d GB\. Use fewer", text)


def test_a_feed_that_has_no_place_for_its_rows(data):
    problem = estimator(feed="parquet").explain(data)
    assert 'PROBLEM            Param cacheDir is not set, but feed="parquet" writes the rows there' in problem
    assert problem.endswith("1 problem to fix before fitting.")
