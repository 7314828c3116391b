"""Checks an allreduce between two local ranks, for ``python -m cos_ml.horovod_build.check`` (driver side)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from cos_ml.job.horovod_env import rank_environment
from cos_ml.job.placement import RankInfo, assign_ranks
from cos_ml.job.rendezvous_server import Rendezvous

__all__ = ["environment", "main"]

TIMEOUT = 120  # seconds
JOIN_TIMEOUT = 60  # seconds; the other rank may have died
RANK = """
import os, sys
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import numpy as np, tensorflow as tf, horovod.tensorflow as hvd
hvd.init()
total = hvd.allreduce(tf.range(4.0) + 10.0 * hvd.rank(), op=hvd.Sum).numpy()
expected = [10.0, 12.0, 14.0, 16.0]
if hvd.size() != 2 or not np.array_equal(total, expected):
    sys.exit(f"rank {hvd.rank()} of {hvd.size()}: expected the sum {expected}, received {total.tolist()}")
print(f"Horovod {__import__('horovod').__version__} on TensorFlow {tf.__version__}:",
      f"the allreduce between 2 ranks is correct (Gloo {hvd.gloo_built()}, NCCL {bool(hvd.nccl_built())}).")
"""


def environment(rank_info: RankInfo, rendezvous: Rendezvous) -> dict[str, str]:
    """The environment of a rank, without GPUs: both ranks would use the first one, which NCCL does not support."""
    own = rank_environment(rank_info, "127.0.0.1", "127.0.0.1", rendezvous.port, rendezvous.secret)
    return os.environ | own | {"CUDA_VISIBLE_DEVICES": "-1", "HOROVOD_GLOO_TIMEOUT_SECONDS": str(JOIN_TIMEOUT)}


def main() -> int:
    """Run the check; returns 0 if both ranks computed the right sum."""
    rank_infos = assign_ranks(["localhost", "localhost"])
    with contextlib.closing(Rendezvous("127.0.0.1")) as rendezvous:
        rendezvous.serve(rank_infos, ["127.0.0.1"])
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK],
                env=environment(one, rendezvous),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for one in rank_infos
        ]  # fmt: skip
        try:
            outputs = [rank.communicate(timeout=TIMEOUT)[0] for rank in ranks]
        except subprocess.TimeoutExpired:
            for rank in ranks:
                rank.kill()
            outputs = [f"Not finished after {TIMEOUT} s.", *(rank.communicate()[0] for rank in ranks)]
    failed = any(rank.returncode for rank in ranks)
    print("\n".join(outputs) if failed else outputs[0].strip().splitlines()[-1])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
