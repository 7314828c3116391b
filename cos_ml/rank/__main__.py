"""A rank: ``python -m cos_ml.rank``, the child process of a barrier task, or a fork of the rank server (rank side).

The task (``cos_ml/job/child.py``) talks to it over inherited file descriptors and two lines of JSON on its standard
input: the first when it starts, the second when all ranks are ready. It dies with the task, whatever happens.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from cos_ml.data import blobs
from cos_ml.errors import REPORTED, CosMLError
from cos_ml.network.keras_import import import_keras
from cos_ml.rank.heartbeat import Heartbeat
from cos_ml.rank.process import die_with_parent

__all__ = ["main"]

UNUSED = ("matplotlib", "pandas", "sklearn")  # Keras would import them, which takes a second and serves no rank


def main() -> None:
    """Run the function that the task names, and write its result, or its error, to the results file."""
    die_with_parent(os.getppid())
    faulthandler.enable(all_threads=False)  # where a crash in a library happened is then in the log
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the task asks for it when there is no progress
    start = json.loads(sys.stdin.buffer.readline())
    with os.fdopen(start["results"], "wb") as results:
        try:
            blobs.write(results, _result(start))
        except OSError:  # no room for it on the disk; an error is shorter
            results.seek(0)
            results.truncate()
            blobs.write(results, {"traceback": _traceback()})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of TensorFlow and Horovod have nothing left to do


def _result(start: dict[str, Any]) -> dict[str, bytes]:
    """The result of the function, or the error that ended it."""
    try:
        heartbeat = Heartbeat(os.fdopen(start["events"], "w"))  # before the imports, which can take long
        return _function(start["function"])(start, partial(_wait_for_peers, heartbeat), heartbeat)
    except CosMLError as error:  # its message says everything
        kind = next((kind for kind, known in REPORTED.items() if isinstance(error, known)), None)
        return {kind: str(error).encode(errors="replace")} if kind else {"traceback": _traceback()}
    except BaseException:  # SystemExit too: whatever ends a rank, the driver must see it
        return {"traceback": _traceback()}


def _traceback() -> bytes:
    return traceback.format_exc().encode(errors="replace")  # it may contain half a character


def _function(name: str) -> Callable[..., dict[str, bytes]]:
    import_keras(without=UNUSED)
    gc.freeze()  # modules stay: later collections can skip them
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _wait_for_peers(heartbeat: Heartbeat) -> dict[str, Any]:
    """Wait until all ranks are ready; returns what their tasks sent, and sets this rank's environment."""
    heartbeat.send(event="ready")
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)  # the task is gone
    threading.Thread(target=_exit_with_task, daemon=True).start()
    peers = json.loads(line)
    os.environ.update(peers["environment"])
    return peers


def _exit_with_task() -> None:
    """End this process when the task closes its standard input; PR_SET_PDEATHSIG covers only a parent, on Linux."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
