import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.sessions import session
from tests.standalone.hosts import hosts, running


@dataclass
class Cluster:
    """A standalone cluster: Spark's session on it, and its workers by address."""

    spark: Any
    workers: dict[str, subprocess.Popen[bytes]]
    apart: bool  # whether each worker is a host of its own


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master, and two workers of two cores, each in a network namespace of its own where this process may."""
    folder = tmp_path_factory.mktemp("standalone")
    spark_class = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    deploy = "org.apache.spark.deploy"
    with contextlib.ExitStack() as stack:
        here, places = stack.enter_context(hosts(2))
        with socket.create_server((here, 0)) as free:
            port = str(free.getsockname()[1])
        master = [spark_class, f"{deploy}.master.Master", "--host", here, "--port", port, "--webui-port", "0"]
        stack.enter_context(running(master, str(folder / "master.log"), "I have been elected leader"))
        workers = {}
        for number, (address, within) in enumerate(places):
            command = [
                *within, spark_class, f"{deploy}.worker.Worker", f"spark://{here}:{port}", "--host", address, "--cores",
                "2", "--memory", "1g", "--webui-port", "0", "--work-dir", str(folder / f"work-{number}"),
            ]  # fmt: skip
            name = f"worker-{number}"
            log = str(folder / f"{name}.log")
            workers[name] = stack.enter_context(running(command, log, "Successfully registered with master"))
        settings = {
            "spark.driver.host": here, "spark.driver.bindAddress": here, "spark.executor.cores": "2",
            "spark.executor.memory": "1g",
        }  # fmt: skip
        for spark in session(f"spark://{here}:{port}", folder / "spark", **settings):
            yield Cluster(spark, workers, apart=len({address for address, _ in places}) > 1)
