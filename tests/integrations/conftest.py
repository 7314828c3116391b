from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tests.support.sessions import forked_ranks, session


@pytest.fixture(scope="package")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of two threads for all tests of this folder, whose ranks are forks."""
    for spark in session("local[2]", tmp_path_factory.mktemp("integrations")):
        with forked_ranks(spark):
            yield spark
