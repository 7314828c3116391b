from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from cos_ml.job import barrier
from tests.support.sessions import forked_ranks, session
from tests.support.warm_daemon import RANKS


@pytest.fixture(scope="package")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of two threads for all tests of this folder, whose ranks are forks."""
    for spark in session("local[2]", tmp_path_factory.mktemp("local")):
        with forked_ranks(spark):
            yield spark


@pytest.fixture(autouse=True)
def _new_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is marked ``processes`` has ranks and workers that are started as a user's are."""
    if request.node.get_closest_marker("processes"):
        monkeypatch.setattr(barrier, "run", getattr(barrier.run, "__wrapped__", barrier.run))
        if "spark" in request.fixturenames:
            monkeypatch.delitem(request.getfixturevalue("spark").sparkContext.environment, RANKS)
