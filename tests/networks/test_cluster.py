"""A cluster of Spark whose hosts have addresses of IPv6 alone: a standalone master, two workers and a driver."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import keras
import numpy as np
import pyspark

from tests.networks.namespaces import IPV6, hosts, within
from tests.standalone.hosts import running
from tests.support import reference
from tests.support.reference import split
from tests.support.sessions import ROOT

SPARK = Path(pyspark.__file__).parent / "bin"
PREFER_IPV6 = "-Djava.net.preferIPv6Addresses=true"
DRIVER, FIRST, SECOND = (f"[fd77:75::{number}]" for number in (1, 2, 3))  # as Spark writes them
MASTER = f"spark://{FIRST}:7077"
SETTINGS = {
    "spark.driver.host": DRIVER, "spark.driver.bindAddress": DRIVER, "spark.executor.cores": "1",
    "spark.cores.max": "2", "spark.executor.memory": "1g", "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "2", "spark.driver.extraJavaOptions": PREFER_IPV6,
    "spark.executor.extraJavaOptions": PREFER_IPV6, "spark.executorEnv.PYTHONPATH": str(ROOT),
}  # fmt: skip


def daemon(name, address, *arguments):
    options = [f"org.apache.spark.deploy.{name}", "--host", address, "--webui-port", "0"]
    settings = [f"SPARK_DAEMON_JAVA_OPTS={PREFER_IPV6}", f"SPARK_LOCAL_IP={address.strip('[]')}"]
    return ["env", *settings, str(SPARK / "spark-class"), *options, *arguments]


def test_a_fit_on_two_hosts_is_the_loop_by_hand(tmp_path):
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(hosts(IPV6))
        master = within(names[0], daemon("master.Master", FIRST, "--port", "7077"))
        stack.enter_context(running(master, str(tmp_path / "master"), "I have been elected leader"))
        for name, address in zip(names, (FIRST, SECOND), strict=True):
            folder = str(tmp_path / name)
            worker = daemon("worker.Worker", address, MASTER, "--cores", "1", "--memory", "2g", "--work-dir", folder)
            stack.enter_context(running(within(name, worker), f"{folder}.log", "Successfully registered with master"))
        confs = [f"--conf={name}={value}" for name, value in SETTINGS.items()]
        program = str(ROOT / "tests" / "kubernetes" / "program.py")
        command = [str(SPARK / "spark-submit"), "--master", MASTER, *confs, program, str(tmp_path)]
        changes = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SPARK_PREFER_IPV6": "true"}
        options = {"capture_output": True, "text": True, "env": os.environ | changes, "timeout": 600}
        done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {str(ip_address(host)) for host in found["ranks"]} == {"fd77:75::2", "fd77:75::3"}
    assert "epoch 2/2 - " in done.stdout  # ranks reach the driver, too
    expected = reference.network()
    reference.train(expected, split(reference.data(64), 32, 32), 32, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    for mine, theirs in zip(found["weights"], expected.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
