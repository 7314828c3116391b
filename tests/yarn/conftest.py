from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyspark
import pytest

from tests.standalone.hosts import running
from tests.support.sessions import ROOT, session
from tests.yarn import jars

HERE = Path(__file__).parent
SPARK = Path(pyspark.__file__).parent
NODES, MEMORY, CORES = "2", "12288", "6"  # of each node MiB and cores, so that several applications fit
LONGEST = 300  # seconds of a program
# Without spark.yarn.jars each application would upload 400 MB of jars.
SETTINGS = {
    "spark.yarn.jars": f"local:{SPARK / 'jars'}/*", "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.executor.instances": "2", "spark.executor.cores": "1", "spark.executor.memory": "1g",
    "spark.executor.memoryOverhead": "2g", "spark.stage.maxConsecutiveAttempts": "2", "spark.ui.enabled": "false",
}  # fmt: skip


@dataclass
class Hadoop:
    """YARN with two nodes, and HDFS.

    Attributes:
        folder: where their files are.
        conf: the folder of the clients' settings.
        fs: HDFS's URL.
    """

    folder: Path
    conf: Path
    fs: str

    def containers(self, application: str) -> list[Path]:
        """The folders of the logs of an application's containers; that of its master, or driver, is the first."""
        return sorted(self.folder.glob(f"yarn/**/*logDir*/{application}/container_*"), key=lambda path: path.name)

    def submit(self, *arguments: str, mode: str = "client", **settings: str) -> subprocess.CompletedProcess[str]:
        """Run ``spark-submit``, as a user does."""
        confs = [f"--conf={name}={value}" for name, value in (SETTINGS | settings).items()]
        command = [str(SPARK / "bin" / "spark-submit"), "--master", "yarn", "--deploy-mode", mode, *confs, *arguments]
        return self.run(command)

    def run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYSPARK_PYTHON": sys.executable} | os.environ | variables
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=LONGEST)


@pytest.fixture(scope="package")
def hadoop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hadoop]:
    folder = tmp_path_factory.mktemp("hadoop")
    command = [
        "java", "-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "--add-opens=java.base/java.lang=ALL-UNNAMED",
        f"-Dlog4j.configuration=file:{HERE / 'log4j.properties'}", "-cp", f"{jars.folder()}/*",
        str(HERE / "MiniHadoop.java"), str(folder), NODES, MEMORY, CORES,
    ]  # fmt: skip
    with running(command, str(folder / "log"), "READY\n", stdin=subprocess.PIPE, cwd=folder) as process:
        found = ElementTree.parse(folder / "conf" / "core-site.xml").getroot().iter("property")
        settings = {one.findtext("name"): one.findtext("value") for one in found}
        before = os.environ.get("HADOOP_CONF_DIR")
        os.environ["HADOOP_CONF_DIR"] = str(folder / "conf")
        try:
            yield Hadoop(folder, folder / "conf", str(settings["fs.defaultFS"]))
        finally:
            if before is None:
                del os.environ["HADOOP_CONF_DIR"]
            else:
                os.environ["HADOOP_CONF_DIR"] = before
        assert process.stdin is not None
        process.stdin.close()  # it then ends its containers, too
        process.wait(60)


@pytest.fixture(scope="package")
def spark(hadoop: Hadoop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session in client mode, with two executors of one core."""
    yield from session("yarn", tmp_path_factory.mktemp("spark"), **SETTINGS)
