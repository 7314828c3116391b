from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.kubernetes import jars
from tests.kubernetes.node import Node, Pod
from tests.kubernetes.server import Server
from tests.standalone.hosts import hosts, running
from tests.support.sessions import ROOT, session

HERE = Path(__file__).parent
SUBMIT = str(Path(pyspark.__file__).parent / "bin" / "spark-submit")
LONGEST = 600  # seconds of a program
PODS = 5  # at a time: the executors of the tests' session, and a driver with its own
TEMPLATE = """
apiVersion: v1
kind: Pod
metadata: {labels: {team: tests}}
spec:
  containers:
  - {name: executor, env: [{name: FROM_TEMPLATE, value: "yes"}]}
"""
# What docs/Dockerfile sets, and the tests' own modules.
IMAGE = {
    "PATH": os.environ["PATH"], "HOME": str(Path.home()), "SPARK_HOME": "/opt/spark", "PYTHONPATH": str(ROOT),
    "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable,
}  # fmt: skip


@dataclass
class Kubernetes:
    """An API server, and a node.

    Attributes:
        folder: where their files are.
        driver: this host's address, as pods know it.
        settings: Spark's, for two executors of one core.
    """

    folder: Path
    driver: str
    server: Server
    node: Node
    settings: dict[str, str]

    @property
    def master(self) -> str:
        return f"k8s://{self.server.url}"

    def executors(self, application: str) -> dict[str, Pod]:
        """The pods that an application's executors have had, by name."""
        labels = {"spark-app-selector": application, "spark-role": "executor"}.items()
        return {name: pod for name, pod in self.node.pods.items() if labels <= pod.object["metadata"]["labels"].items()}

    def submit(self, *arguments: str, mode: str, **settings: str | None) -> subprocess.CompletedProcess[str]:
        """Run ``spark-submit``, as a user does; a setting that is None is left out."""
        confs = [f"--conf={name}={value}" for name, value in (self.settings | settings).items() if value]
        environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [SUBMIT, "--master", self.master, "--deploy-mode", mode, *confs, *arguments],
            capture_output=True, text=True, env=environment, check=False, timeout=LONGEST,
        )  # fmt: skip


@pytest.fixture(scope="package")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    folder = tmp_path_factory.mktemp("kubernetes")
    template = folder / "executor.yaml"
    template.write_text(TEMPLATE)
    patient = {
        f"spark.kubernetes.{role}.{what}Timeout": "60000"
        for role in ("submission", "driver")
        for what in ("connection", "request")
    }
    settings = patient | {
        "spark.kubernetes.container.image": "none", "spark.kubernetes.executor.podTemplateFile": str(template),
        "spark.kubernetes.allocation.batch.delay": "200ms", "spark.executor.instances": "2",
        "spark.executor.cores": "1", "spark.executor.memory": "1g", "spark.executor.memoryOverhead": "2g",
        "spark.stage.maxConsecutiveAttempts": "2", "spark.ui.enabled": "false",
    }  # fmt: skip
    with hosts(PODS, "cosmlk", "10.77.83") as (driver, addresses):
        command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars.folder()}/*", str(HERE / "MiniKubernetes.java")]
        log = folder / "server.log"
        with running([*command, driver], str(log), "READY ", stdin=subprocess.PIPE) as process:
            (url,) = re.findall(r"READY (\S+)\n", log.read_text())
            node = Node(Server(url), folder / "pods", addresses, IMAGE)
            node.start()
            yield Kubernetes(folder, driver, node.server, node, settings)
            node.over.set()
            node.join()
            process.stdin.close()


@pytest.fixture(scope="package")
def spark(kubernetes: Kubernetes) -> Iterator[Any]:
    """A session in client mode, with two executors of one core."""
    settings = kubernetes.settings | {"spark.driver.host": kubernetes.driver}
    yield from session(kubernetes.master, kubernetes.folder / "spark", **settings)
