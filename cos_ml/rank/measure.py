"""Measures a rank's host and the speed of an allreduce, for ``cos-ml check`` (rank side)."""

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

SIZE = "COS_ML_CHECK_BYTES"  # environment variable of the rank: bytes of the large allreduce
SMALL = 4  # bytes of the small one, which measures latency
REPEATS = 10  # of which the median is reported


def measure(
    start: dict[str, Any], wait_for_peers: Callable[[], dict[str, Any]], heartbeat: Heartbeat
) -> dict[str, bytes]:
    """Sum arrays over all ranks; returns "measured": the times, and facts about this rank's host, as JSON."""
    import tensorflow as tf

    spec = TrainSpec.loads(start["specs"][0])
    gpus.use(spec.use_gpu, tf)
    gpu = next(iter(tf.config.list_physical_devices("GPU")), None)
    several = start["rank_info"]["size"] > 1
    if several:
        import horovod.tensorflow as hvd  # where the import fails, no other rank waits for this one
    wait_for_peers()
    interfaces = local_addresses()
    report: dict[str, Any] = {
        "host": start["rank_info"]["host"], "versions": shared_versions(), "interfaces": interfaces,
        "speeds": {name: _speed(name) for name in interfaces.values()}, "interface": os.environ.get(INTERFACE),
        "device": tf.config.experimental.get_device_details(gpu)["device_name"] if gpu else "CPU", "built": "",
    }  # fmt: skip
    if several:
        hvd.init()
        nccl = f"NCCL {hvd.nccl_built()}" if hvd.nccl_built() else "without NCCL"
        report |= {
            "built": f"built with {'Gloo' if hvd.gloo_built() else 'no Gloo'}, {nccl}",
            "by": "NCCL" if gpu and hvd.nccl_built() else "Gloo",
            "seconds": {"small": _time(hvd, tf, SMALL), "large": _time(hvd, tf, int(os.environ[SIZE]))},
        }  # fmt: skip
        hvd.shutdown()
    return {"measured": json.dumps(report).encode()}


def _time(hvd: Any, tf: Any, size: int) -> float:
    """The seconds that an allreduce of ``size`` bytes takes.

    Raises:
        ArithmeticError: a sum is wrong.
    """
    values = tf.fill([size // 4], float(hvd.rank() + 1))
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        sums = hvd.allreduce(values, op=hvd.Sum, name=f"bytes_{size}")
        sums[-1:].numpy()  # a GPU computes asynchronously: wait, and copy one number
        seconds.append(time.perf_counter() - begin)
        total = sums.numpy()
        expected = hvd.size() * (hvd.size() + 1) / 2
        if not np.array_equal(total, np.full(size // 4, expected, np.float32)):
            raise ArithmeticError(
                f"Wrong sum in an allreduce of {size} bytes: expected {expected}, received {total[:8]}..."
            )
    return statistics.median(seconds[1:])  # the first is a warm-up


def _speed(interface: str) -> int | None:
    """The speed of a network interface in 10^6 bits/s; None where Linux knows none, as for the loopback."""
    try:
        speed = int(Path("/sys/class/net", interface, "speed").read_text())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None
