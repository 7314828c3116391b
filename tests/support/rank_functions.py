"""Functions that ranks run instead of a training."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def environment(start: dict[str, Any], wait: Callable[[], dict[str, Any]], heartbeat: Any) -> dict[str, bytes]:
    """What this rank's process sees before TensorFlow has looked for devices."""
    wait()
    return {"environment": json.dumps(dict(os.environ) | {"executor": os.getcwd(), "prefix": sys.prefix}).encode()}


def fail_before_the_others(
    start: dict[str, Any], wait: Callable[[], dict[str, Any]], heartbeat: Any
) -> dict[str, bytes]:
    """One rank fails while it loads, and the other would wait for it in Horovod's own start."""
    if start["partition"]:
        raise ValueError("this one can't load")
    wait()
    import horovod.tensorflow as hvd

    hvd.init()
    return {}


def die_before_the_others(
    start: dict[str, Any], wait: Callable[[], dict[str, Any]], heartbeat: Any
) -> dict[str, bytes]:
    """The rank of task 0, to which the others are connected, dies while it loads."""
    if not start["partition"]:
        os.kill(os.getpid(), signal.SIGKILL)
    wait()
    return {}


def leave_a_process(start: dict[str, Any], wait: Callable[[], dict[str, Any]], heartbeat: Any) -> dict[str, bytes]:
    """This rank ends, and what it has forked, with all its files, does not."""
    wait()
    process = os.fork()
    while not process:
        signal.pause()
    return {"process": str(process).encode()}
