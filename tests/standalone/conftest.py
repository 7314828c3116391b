from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libfaketime
import pyspark
import pytest

from tests.standalone.hosts import hosts, running
from tests.support.sessions import session

# What makes a program's clock differ. Java needs the last two: it waits by the clock that counts from the start.
FAST_CLOCK = {"FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_FORCE_MONOTONIC_FIX": "0"}
CORES = 3  # of each worker: two for the one executor of the session there, one for programs that tests submit


@dataclass
class Cluster:
    """A master of Spark's own kind, and its workers.

    Attributes:
        master: its URL.
        driver: the address of this host, as the workers' know it.
        hosts: of each worker its address, and what to begin a command with, to run it there.
        apart: whether each worker is a host of its own.
    """

    master: str
    driver: str
    hosts: list[tuple[str, list[str]]]
    folder: Path
    stack: contextlib.ExitStack
    workers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        return len({address for address, _ in self.hosts}) > 1

    def start_worker(self, number: int) -> None:
        """Start a worker on its host, and wait until the master knows it."""
        address, within = self.hosts[number]
        clock = _an_hour_ahead() if number else []
        command = [
            *within, *clock, *_daemon("worker.Worker"), self.master, "--host", address, "--cores", str(CORES),
            "--memory", "4g", "--webui-port", "0", "--work-dir", str(self.folder / f"work-{number}"),
        ]  # fmt: skip
        log = str(self.folder / f"worker-{number}.log")
        self.workers[number] = self.stack.enter_context(running(command, log, "Successfully registered with master"))


def _an_hour_ahead() -> list[str]:
    """What to begin a command with, so that it and all that it starts have another time of day than other hosts."""
    (library,) = (Path(libfaketime.__file__).parent / "vendor").glob("**/libfaketime.so.1")
    return ["env", f"LD_PRELOAD={library}", *(f"{name}={value}" for name, value in FAST_CLOCK.items())]


def _daemon(name: str) -> list[str]:
    return [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}"]


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master, and two workers, each in a network namespace of its own where this process may make one.

    The clock of the second one is an hour ahead.
    """
    folder = tmp_path_factory.mktemp("standalone")
    with contextlib.ExitStack() as stack:
        driver, workers = stack.enter_context(hosts(2))
        with socket.create_server((driver, 0)) as free:
            port = str(free.getsockname()[1])
        master = [*_daemon("master.Master"), "--host", driver, "--port", port, "--webui-port", "0"]
        stack.enter_context(running(master, str(folder / "master.log"), "I have been elected leader"))
        made = Cluster(f"spark://{driver}:{port}", driver, workers, folder, stack)
        for number in range(len(workers)):
            made.start_worker(number)
        yield made


@pytest.fixture(scope="package")
def spark(cluster: Cluster) -> Iterator[Any]:
    """A session with an executor of two cores on each worker."""
    settings = {
        "spark.driver.host": cluster.driver, "spark.driver.bindAddress": cluster.driver, "spark.executor.cores": "2",
        "spark.cores.max": "4", "spark.executor.memory": "1g",
    }  # fmt: skip
    yield from session(cluster.master, cluster.folder / "spark", **settings)
