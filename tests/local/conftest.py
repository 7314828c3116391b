from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cos_ml.job import barrier
from tests.support.sessions import forked_ranks, session

FOLDER = Path(__file__).parent
# The files that take longest come first, so that two processes end at the same time.
FIRST = ["test_tuning", "test_resuming", "test_saving", "test_petastorm", "test_failures", "test_examples"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    indices = [index for index, item in enumerate(items) if FOLDER in item.path.parents]
    longest_first = sorted(
        (items[index] for index in indices),
        key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST),
    )
    for index, item in zip(indices, longest_first, strict=True):
        items[index] = item


@pytest.fixture(scope="package")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of two threads for all tests of this folder, whose ranks are forks."""
    for spark in session("local[2]", tmp_path_factory.mktemp("local")):
        with forked_ranks(spark):
            yield spark


@pytest.fixture(autouse=True)
def _new_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is marked ``processes`` has ranks that are started as a user's are."""
    if request.node.get_closest_marker("processes"):
        monkeypatch.setattr(barrier, "run", getattr(barrier.run, "__wrapped__", barrier.run))
