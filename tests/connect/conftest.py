from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from tests.support.sessions import ROOT, SETTINGS
from tests.support.warm_daemon import RANKS

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where they can't run; a process has sessions of Connect, or others, never both."""
    mine = [item for item in items if HERE in item.path.parents]
    missing = [name for name in ("grpc", "grpc_status", "google.rpc", "zstandard") if not _is_there(name)]
    if missing:
        reason = f'Spark Connect needs {", ".join(missing)}, which the "latest" stack has: make test-latest'
    elif len(mine) < len(items):
        reason = "Spark Connect needs a process of its own: python -m pytest tests/connect"
    else:
        return
    for item in mine:
        item.add_marker(pytest.mark.skip(reason=reason))


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="package")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of Spark Connect, with a server of two threads that it starts, for all tests of this folder."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ[RANKS] = "forked"  # of workers that are used once, so that none of them has started TensorFlow before
    builder = SparkSession.builder.remote("local[2]").appName("cos_ml tests")
    folder = tmp_path_factory.mktemp("connect")
    folders = {"spark.local.dir": str(folder / "local"), "spark.sql.warehouse.dir": str(folder / "warehouse")}
    for name, value in (SETTINGS | folders | {"spark.python.worker.reuse": "false"}).items():
        builder = builder.config(name, value)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Failed to set spark"
        )  # the server has them; the session can't set them again
        spark = builder.getOrCreate()
    yield spark
    spark.stop()
