"""A cluster of Spark on two hosts, a network namespace each, which can lose each other, or one of them everybody."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyspark

from tests.networks.namespaces import BRIDGE, IPV4, command, hosts, within
from tests.standalone.hosts import running

SPARK = Path(pyspark.__file__).parent / "bin"
DRIVER, FIRST, SECOND = (IPV4.partition("/")[0].format(number) for number in (1, 2, 3))
MASTER = f"spark://{DRIVER}:7078"
SETTINGS = {
    "spark.driver.host": DRIVER, "spark.driver.bindAddress": DRIVER, "spark.executor.cores": "1",
    "spark.executor.memory": "1g", "spark.stage.maxConsecutiveAttempts": "4",
}  # fmt: skip


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[list[str]]:
    """The names of the namespaces, with a worker of Spark each; logs and workers' files are in ``folder``."""
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(hosts(IPV4))
        master = _daemon("master.Master", DRIVER, "--port", "7078")
        stack.enter_context(running(master, str(folder / "master"), "I have been elected leader"))
        for name, address in zip(names, (FIRST, SECOND), strict=True):
            own = str(folder / name)
            worker = _daemon("worker.Worker", address, MASTER, "--cores", "1", "--memory", "2g", "--work-dir", own)
            stack.enter_context(running(within(name, worker), f"{own}.log", "Successfully registered with master"))
        yield names


def _daemon(name: str, address: str, *arguments: str) -> list[str]:
    options = [f"org.apache.spark.deploy.{name}", "--host", address, "--webui-port", "0", *arguments]
    return ["env", f"SPARK_LOCAL_IP={address}", str(SPARK / "spark-class"), *options]


@contextlib.contextmanager
def cut(name: str, address: str) -> Iterator[None]:
    """For the length of a block a host drops what comes from an address, and what goes there."""
    rules = f"""
    table inet cut {{
      chain input {{ type filter hook input priority 0; ip saddr {address} drop; }}
      chain output {{ type filter hook output priority 0; ip daddr {address} drop; }}
    }}"""
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        command(f"ip netns exec {name} nft delete table inet cut")


@contextlib.contextmanager
def unplugged() -> Iterator[None]:
    """For the length of a block the second host reaches nobody."""
    command(f"ip link set {BRIDGE}3 down")
    try:
        yield
    finally:
        command(f"ip link set {BRIDGE}3 up")
