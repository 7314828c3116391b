from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tests.support.sessions import session
from tests.yarn.hadoop import SETTINGS, Hadoop, started


@pytest.fixture(scope="package")
def hadoop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hadoop]:
    with started(tmp_path_factory.mktemp("hadoop")) as found:
        yield found


@pytest.fixture(scope="package")
def spark(hadoop: Hadoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A session in client mode, with two executors of one core."""
    yield from session("yarn", tmp_path_factory.mktemp("spark"), **SETTINGS)
