"""What a rank finds on its host, and how fast an allreduce is, for ``cos-ml check`` (rank side)."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cos_ml import gpus
from cos_ml.interfaces import INTERFACE, local_addresses
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

__all__ = ["measure"]

SIZE = "COS_ML_CHECK_BYTES"  # the rank's environment variable
SMALL = 4  # bytes: what is left is the way there and back
TURNS = 10  # the median counts


def measure(
    start: dict[str, Any], wait_for_peers: Callable[[], dict[str, Any]], heartbeat: Heartbeat
) -> dict[str, bytes]:
    """Add up an array with the other ranks, and tell of this one: "measured" as JSON."""
    import tensorflow as tf

    spec = TrainSpec.loads(start["specs"][0])
    gpus.use(spec.use_gpu, tf)
    seen = tf.config.list_physical_devices("GPU")
    several = start["rank_info"]["size"] > 1
    if several:
        import horovod.tensorflow as hvd  # where it does not load, the others are told before they wait for it
    wait_for_peers()
    interfaces = local_addresses()
    told: dict[str, Any] = {
        "host": start["rank_info"]["host"], "versions": shared_versions(), "interfaces": interfaces,
        "speeds": {name: _speed(name) for name in interfaces.values()}, "interface": os.environ.get(INTERFACE),
        "device": tf.config.experimental.get_device_details(seen[0])["device_name"] if seen else "CPU", "built": "",
    }  # fmt: skip
    if several:
        hvd.init()
        nccl = f"NCCL {hvd.nccl_built()}" if hvd.nccl_built() else "without NCCL"
        told |= {
            "built": f"built with {'Gloo' if hvd.gloo_built() else 'no Gloo'}, {nccl}",
            "by": "NCCL" if seen and hvd.nccl_built() else "Gloo",
            "seconds": {
                name: _time(hvd, tf, name, size)
                for name, size in (("small", SMALL), ("large", int(os.environ[SIZE])))
            },
        }  # fmt: skip
        hvd.shutdown()
    return {"measured": json.dumps(told).encode()}


def _time(hvd: Any, tf: Any, name: str, size: int) -> float:
    """Seconds of one allreduce of ``size`` bytes; the sum is compared."""
    mine = tf.fill([size // 4], float(hvd.rank() + 1))
    seconds = []
    for _ in range(TURNS + 1):
        begin = time.perf_counter()
        sums = hvd.allreduce(mine, op=hvd.Sum, name=name)
        sums[-1:].numpy()  # a GPU says that it has begun; this waits for the end, and copies one number
        seconds.append(time.perf_counter() - begin)
        total = sums.numpy()
        expected = hvd.size() * (hvd.size() + 1) / 2
        if not np.array_equal(total, np.full(size // 4, expected, np.float32)):
            raise ArithmeticError(f"An allreduce of {size} bytes: expected {expected}, received {total[:8]}...")
    return statistics.median(seconds[1:])  # the first one warms up


def _speed(interface: str) -> int | None:
    """Of a network interface, in 10^6 bits/s, as Linux knows it; None for those without one, as the loopback."""
    try:
        found = int(Path("/sys/class/net", interface, "speed").read_text())
    except (OSError, ValueError):
        return None
    return found if found > 0 else None
