"""YARN and HDFS as a process: Hadoop's own servers, two nodes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fsspec
import pyspark

from tests.standalone.hosts import running
from tests.support.sessions import ROOT
from tests.yarn import jars

HERE = Path(__file__).parent
SPARK = Path(pyspark.__file__).parent
NODES, MEMORY, CORES = "2", "12288", "6"  # of each node MiB and cores, so that several applications fit
LONGEST = 600  # seconds of a program
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # for JVMs that live for minutes
SETTINGS = {
    # Without it each application would upload 400 MB of jars.
    "spark.yarn.jars": f"local:{SPARK / 'jars'}/*", "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.executor.instances": "2", "spark.executor.cores": "1", "spark.executor.memory": "1g",
    "spark.executor.memoryOverhead": "2g", "spark.stage.maxConsecutiveAttempts": "2", "spark.ui.enabled": "false",
    # What starts is there, or fails, sooner.
    "spark.executor.extraJavaOptions": JAVA, "spark.yarn.am.extraJavaOptions": JAVA, "spark.yarn.maxAppAttempts": "1",
    "spark.yarn.scheduler.heartbeat.interval-ms": "500", "spark.sql.shuffle.partitions": "2",
}  # fmt: skip


@dataclass
class Hadoop:
    """YARN with two nodes, and HDFS.

    Attributes:
        folder: where their files are.
        fs: HDFS's URL.
    """

    folder: Path
    fs: str

    @property
    def files(self) -> Any:
        """HDFS, as fsspec knows it."""
        return fsspec.core.url_to_fs(self.fs)[0]

    def containers(self, application: str) -> list[Path]:
        """The folders of the logs of an application's containers; that of its master, or driver, is the first."""
        return sorted(self.folder.glob(f"yarn/**/*logDir*/{application}/container_*"), key=lambda path: path.name)

    def submit(self, *arguments: str, mode: str = "client", **settings: str) -> subprocess.CompletedProcess[str]:
        """Run ``spark-submit``, as a user does."""
        confs = [f"--conf={name}={value}" for name, value in (SETTINGS | settings).items()]
        command = [str(SPARK / "bin" / "spark-submit"), "--master", "yarn", "--deploy-mode", mode, *confs, *arguments]
        return self.run(command)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a program that takes this YARN and this HDFS from its environment."""
        environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=LONGEST)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Hadoop]:
    """YARN and HDFS, which keep their files in a folder; programs find them by ``HADOOP_CONF_DIR``."""
    command = [
        "java", "-Xmx1g", *JAVA.split(), "--add-opens=java.base/java.lang=ALL-UNNAMED",
        f"-Dlog4j.configuration=file:{HERE / 'log4j.properties'}", "-cp", f"{jars.folder()}/*",
        str(HERE / "MiniHadoop.java"), str(folder), NODES, MEMORY, CORES,
    ]  # fmt: skip
    # It ends by itself, with its containers, when its standard input closes: so it is not killed with this process.
    options = {"stdin": subprocess.PIPE, "cwd": folder, "preexec_fn": None}
    with running(command, str(folder / "log"), "READY\n", **options) as process:
        found = ElementTree.parse(folder / "conf" / "core-site.xml").getroot().iter("property")
        settings = {one.findtext("name"): one.findtext("value") for one in found}
        before = os.environ.get("HADOOP_CONF_DIR")
        os.environ["HADOOP_CONF_DIR"] = str(folder / "conf")
        try:
            yield Hadoop(folder, str(settings["fs.defaultFS"]))
        finally:
            if before is None:
                del os.environ["HADOOP_CONF_DIR"]
            else:
                os.environ["HADOOP_CONF_DIR"] = before
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
