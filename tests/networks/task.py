"""A barrier task without Spark, and its rank: it meets the others and sums a number over the ranks.

The argument is JSON: "hosts", Spark's names of them; "partition"; "folder", by which tasks that can't connect exchange
what allGather would bring; "ports" and "interface", as settings and Params give them; "patience", the seconds of a
task that can't connect; and "ranks_on", other ports for the ranks than for the tasks, where they don't wait long.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

from cos_ml.data.columns import Column
from cos_ml.interfaces import ADDRESS, INTERFACE
from cos_ml.job import channel, horovod_env, preflight, settings
from cos_ml.job.messages import Job
from cos_ml.job.peers import Handshake
from cos_ml.job.placement import assign_ranks
from cos_ml.spec import TrainSpec

LONGEST = 60.0  # seconds
GLOO_ADDRESS = 136  # bytes


def all_gather(folder: Path, partition: int, size: int, message: str) -> list[str]:
    """As Spark's: what each task gives, by partition."""
    folder.mkdir(exist_ok=True)
    (folder / f"{partition}.part").write_text(message)
    (folder / f"{partition}.part").rename(folder / f"{partition}.json")
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        found = [folder / f"{number}.json" for number in range(size)]
        if all(file.exists() for file in found):
            return [file.read_text() for file in found]
        time.sleep(0.05)
    raise TimeoutError("the other task did not come")


def listened(offered: bytes) -> list[tuple[str, int]]:
    """The addresses and ports in what Gloo tells another rank: for each, a sockaddr_storage and a number."""
    assert len(offered) % GLOO_ADDRESS == 0
    found = [offered[at : at + GLOO_ADDRESS] for at in range(0, len(offered), GLOO_ADDRESS)]
    of_ipv6 = [int.from_bytes(one[:2], sys.byteorder) == socket.AF_INET6 for one in found]
    addresses = [one[8:24] if long else one[4:8] for one, long in zip(found, of_ipv6, strict=True)]
    return [
        (str(ipaddress.ip_address(address)), int.from_bytes(one[2:4], "big"))
        for one, address in zip(found, addresses, strict=True)
    ]


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Meet the other tasks, join the other ranks, and return what this one found."""
    hosts, partition = case["hosts"], case["partition"]
    variables = {INTERFACE: case["interface"]} if "interface" in case else {}
    spec = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=(), variables=variables)
    ports = settings.port_range({settings.PORT_RANGE: case.get("ports")})
    job = Job("", (spec,), (), ports=ports, secret=case["secret"])
    context = types.SimpleNamespace(
        partitionId=lambda: partition, taskAttemptId=lambda: 100 + partition,
        allGather=lambda message: all_gather(Path(case["folder"]), partition, len(hosts), message),
    )  # fmt: skip
    spool = types.SimpleNamespace(rows={"train": 3}, digest={}, skipped=0, shapes={}, dtypes={})
    handshake = Handshake(context, job, hosts, assign_ranks(hosts))
    peers = handshake.wait(spool, False)
    problem = preflight.cant_train_together(ports, peers.tasks)
    assert not problem, problem
    os.environ.update(peers.environment)
    if "ranks_on" in case:
        os.environ[horovod_env.PORT_RANGE] = case["ranks_on"]
    from cos_ml.rank.train import _connect  # TensorFlow, which takes its time

    assert peers.all_ready(partition, True)
    heartbeat = types.SimpleNamespace(enter=print, exclude_threads=lambda threads: None, send=lambda **event: None)
    timer = types.SimpleNamespace(lap=lambda phase: None)
    info = {"rank": partition, "size": len(hosts)}
    connected = _connect(info, lambda: {"tasks": peers.tasks}, heartbeat, timer).communicator
    import numpy as np

    total = connected.sum(np.array([partition + 1.0]))
    connected.close()
    scopes = peers.rendezvous.cache.values()
    offered = b"".join(scope.get(str(partition), b"") for scope in scopes)
    peers.close()
    return {"sum": float(total[0]), "address": os.environ[ADDRESS], "listened": listened(offered)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    channel.SEARCH_TIME, channel.RECONNECT_TIME = 3.0, given.get("patience", 20.0)
    horovod_env.JOIN_TIMEOUT = "5" if "ranks_on" in given else horovod_env.JOIN_TIMEOUT
    print(json.dumps(run(given)))
