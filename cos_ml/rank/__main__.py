"""A rank: ``python -m cos_ml.rank``, the child process of a barrier task, or a fork of the rank server (rank side).

The task (``cos_ml/job/child.py``) talks to it over inherited file descriptors and two lines of JSON on its standard
input, the first when it starts, the second when all ranks are ready, and a sign of life each second. It dies with the
task, whatever happens.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from cos_ml.data import blobs
from cos_ml.disks import is_full, no_room
from cos_ml.errors import REPORTED, CosMLError
from cos_ml.network.keras_import import import_keras
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.process import die_with_parent
from cos_ml.rank.task_watch import TaskWatch

__all__ = ["main"]

UNUSED = ("matplotlib", "pandas", "sklearn")  # Keras would import them, which takes a second and serves no rank


def main() -> None:
    """Run the function that the task names, and write its result, or its error, to the results file."""
    die_with_parent(os.getppid())
    faulthandler.enable(all_threads=False)  # where a crash in a library happened is then in the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the task asks for it when there is no progress
    task = TaskWatch()
    start = task.receive()
    with os.fdopen(start["results"], "wb") as results:
        try:
            blobs.write(results, _result(start, task))
        except OSError as error:  # no room for it on the disk; an error is shorter
            results.seek(0)
            results.truncate()
            blobs.write(results, _error(error, "its result"))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # no room for the log: the result is what counts
            stream.flush()
    task.finish()
    os._exit(0)  # threads of TensorFlow and Horovod have nothing left to do


def _result(start: dict[str, Any], task: TaskWatch) -> dict[str, bytes]:
    """The result of the function, or the error that ended it."""
    try:
        heartbeat = Heartbeat(os.fdopen(start["events"], "w"))  # before the imports, which can take long
        if "task" in start:  # else somebody else has started this rank
            task.begin(start["task"], start["stall_timeout"], heartbeat)
        return _function(start["function"])(start, partial(_wait_for_peers, task, heartbeat), heartbeat)
    except BaseException as error:  # SystemExit too: whatever ends a rank, the driver must see it
        return _error(error, "what it wrote")


def _error(error: BaseException, what: str) -> dict[str, bytes]:
    """The result of a rank that has failed; ``what`` may be what a full disk had no room for."""
    if is_full(error) and not isinstance(error, CosMLError):
        error = no_room(what, tempfile.gettempdir(), error)
    # The message of an error of cos_ml says everything.
    kind = next((kind for kind, known in REPORTED.items() if isinstance(error, known)), None)
    text = str(error) if kind else traceback.format_exc()
    return {kind or "traceback": text.encode(errors="replace")}  # it may contain half a character


def _function(name: str) -> Callable[..., dict[str, bytes]]:
    import_keras(without=UNUSED)
    gc.freeze()  # modules stay: later collections can skip them
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _wait_for_peers(task: TaskWatch, heartbeat: Heartbeat) -> dict[str, Any]:
    """Wait until all ranks are ready; returns what their tasks sent, and sets this rank's environment."""
    heartbeat.send(event="ready")
    peers = task.receive()
    os.environ.update(peers["environment"])
    return peers


if __name__ == "__main__":
    main()
