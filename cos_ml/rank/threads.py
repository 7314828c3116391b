"""Gives a rank as many threads as it has cores, and keeps others from interrupting them (rank side)."""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

__all__ = ["limit"]


def limit(local_size: int) -> None:
    """Divide the host's cores among its ranks; before TensorFlow's runtime and Horovod start their threads.

    TensorFlow would run more operations at a time than there are cores, and Horovod's threads look for messages a
    thousand times a second. On Linux a thread that wakes up interrupts one that computes; under the scheduling policy
    for batch jobs it does not.
    """
    cores = max(1, len(os.sched_getaffinity(0)) // local_size)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    with contextlib.suppress(AttributeError, OSError):  # another system, or a container that forbids it
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # what somebody has chosen stays
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
