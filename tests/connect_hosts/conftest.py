from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyspark
import pytest

from tests.connect_hosts import environment
from tests.standalone.hosts import hosts, running
from tests.support import reference
from tests.support.sessions import ROOT

HERE = Path(__file__).parent
SPARK = Path(pyspark.__file__).parent
NAME, NETWORK = "cosmlc", "10.77.63"
LONGEST = 600  # seconds of a client, and until ranks have begun or are gone
SETTINGS = {
    "spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "1g", "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": "2", "spark.ui.enabled": "false", "spark.stage.maxConsecutiveAttempts": "1",
    # A query whose client is gone is cancelled after this time, by default 5 minutes.
    "spark.connect.execute.manager.detachedTimeout": "5s",
    "spark.connect.execute.manager.maintenanceInterval": "1s",
    # Whether a silent client is still there, the server asks sooner than by default.
    "spark.connect.grpc.keepAlive.time": "5s", "spark.connect.grpc.keepAlive.timeout": "10s",
}  # fmt: skip
# The client sees neither this checkout nor the server's files, and there is no program on its path.
MOUNTS = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/environment /mnt/home
mount --bind "$1" /mnt/environment
mount --bind "$2" /mnt/home
for hidden in "$3" "$4"; do mount -t tmpfs tmpfs "$hidden"; done
cd /mnt/home
shift 4
exec env -i HOME=/mnt/home TMPDIR=/mnt/home PATH= /mnt/environment/bin/python "$@"
"""


@dataclass
class Site:
    """A server of Spark Connect, a master and two workers of one core each, and a client: each a host of its own.

    Attributes:
        url: the server's.
        folder: where server and workers have files.
        home: the client's home, on this machine.
        client: the client's host, as ``ip`` names it.
        workers: the addresses of the workers.
        begin: what to begin a command with, to run it on the client's host.
    """

    url: str
    folder: Path
    home: Path
    client: str
    workers: list[str]
    begin: list[str]

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The program ``program.py``, run by the client."""
        hidden = [str(ROOT), str(self.folder.parents[-2])]  # such as /tmp
        mounts = ["unshare", "--mount", "sh", "-c", MOUNTS, "sh", str(environment.folder()), str(self.home), *hidden]
        command = [*self.begin, *mounts, "program.py", self.url, *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str) -> tuple[dict[str, Any], str]:
        """What the client's program reports, and what it has shown."""
        with self.started(*arguments) as process:
            return report(process)

    def firewall(self, close: bool) -> None:
        """Let no answer of the client reach the workers, or let them."""
        for address in self.workers:
            change = "add" if close else "del"
            command = ["ip", "-n", self.client, "route", change, "blackhole", f"{address}/32"]
            subprocess.run(command, check=True, capture_output=True)

    def link(self, up: bool) -> None:
        """Connect the client's host to the network, or cut it off."""
        state = "up" if up else "down"
        subprocess.run(["ip", "link", "set", f"{NAME}-out3", state], check=True, capture_output=True)

    def ranks(self) -> list[int]:
        """The processes of ranks, on the workers' hosts."""
        return [process.pid for process in self._processes(1, 2) if process.name() == "cos_ml-rank"]

    def relays(self) -> list[int]:
        """The processes of relays, on the server's host."""
        return [process.pid for process in self._processes(0) if "cos_ml.job.relay" in process.cmdline()]

    def _processes(self, *numbers: int) -> Iterator[psutil.Process]:
        for number in numbers:
            command = ["ip", "netns", "pids", f"{NAME}-{number}"]
            for pid in subprocess.run(command, check=True, capture_output=True).stdout.split():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    process = psutil.Process(int(pid))
                    process.cmdline()
                    yield process

    @staticmethod
    def wait(condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds."""
        pause = threading.Event()
        for _ in range(LONGEST * 10):
            if condition():
                return
            pause.wait(0.1)
        raise AssertionError(f"never: {what}")


def report(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """What a client reports at its end, and what it has shown."""
    out, shown = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, shown[-4000:]
    return json.loads(out.splitlines()[-1]), shown


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with started_site(tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("client")) as made:
        yield made


@contextlib.contextmanager
def started_site(folder: Path, home: Path) -> Iterator[Site]:
    """A site whose servers have files in ``folder``, and whose client has its home in ``home``."""
    for program in (HERE / "program.py", Path(reference.__file__)):
        shutil.copy(program, home)
    with contextlib.ExitStack() as stack:
        _, ((server, on_server), *workers, (_, on_client)) = stack.enter_context(hosts(4, NAME, NETWORK))
        if server == "127.0.0.1":
            pytest.skip("this process may make no network namespaces")
        master = f"spark://{server}:7077"
        command = [*on_server, *_daemon("master.Master"), "--host", server, "--port", "7077", "--webui-port", "0"]
        stack.enter_context(running(command, str(folder / "master.log"), "I have been elected leader"))
        for number, (address, within) in enumerate(workers):
            options = ["--host", address, "--cores", "1", "--memory", "2g", "--webui-port", "0"]
            command = [*within, *_daemon("worker.Worker"), master, *options, "--work-dir", str(folder / f"w{number}")]
            log = str(folder / f"worker-{number}.log")
            stack.enter_context(running(command, log, "Successfully registered with master"))
        settings = SETTINGS | {
            "spark.driver.host": server, "spark.driver.bindAddress": server, "spark.local.dir": str(folder / "local"),
            "spark.connect.grpc.binding.address": server, "spark.sql.warehouse.dir": str(folder / "warehouse"),
        }  # fmt: skip
        confs = [f"--conf={name}={value}" for name, value in settings.items()]
        kind = "org.apache.spark.sql.connect.service.SparkConnectServer"
        command = [*on_server, "env", f"PYSPARK_PYTHON={sys.executable}", str(SPARK / "bin" / "spark-submit")]
        command += ["--class", kind, "--master", master, *confs, "spark-internal"]
        log = str(folder / "server.log")
        stack.enter_context(running(command, log, "Spark Connect server started at", cwd=folder))
        yield Site(f"sc://{server}:15002", folder, home, f"{NAME}-3", [address for address, _ in workers], on_client)


def _daemon(name: str) -> list[str]:
    return [str(SPARK / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}"]
