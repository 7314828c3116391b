from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tests.support.sessions import session


@pytest.fixture(scope="package")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of two executor processes for all tests of this folder."""
    yield from session("local-cluster[2,1,1024]", tmp_path_factory.mktemp("cluster"))
