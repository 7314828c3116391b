"""The child process that is a rank: ``python -m cos_ml.rank.__main__`` (rank side).

Its barrier task (``ranks.py``) starts it, and talks to it over inherited file descriptors and two lines of JSON on its
standard input: the first when it starts, the second when all ranks have met. It dies with that task, whatever happens.
"""

from __future__ import annotations

import ctypes
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
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.network.keras_import import import_keras
from cos_ml.rank.heartbeat import Pulse

__all__ = ["main"]

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
NO_USE = ("matplotlib", "pandas", "sklearn")  # to Keras in a rank, which would import them, for a second


def main() -> None:
    """Run the function that the task names, and leave its named bytes, or its traceback, in the results file."""
    task = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != task:  # it died before the line above
        os._exit(1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # its task asks so when nothing goes on
    start = json.loads(sys.stdin.buffer.readline())
    with os.fdopen(start["results"], "wb") as results:
        try:
            pulse = Pulse(os.fdopen(start["events"], "w"))  # before the imports, which can take long
            blobs.write(results, _function(start["function"])(start, partial(_meeting, pulse), pulse))
        except InvalidInputError as error:
            blobs.write(results, {"problem": str(error).encode()})
        except RankError as error:  # it says all that there is to say
            blobs.write(results, {"failure": str(error).encode()})
        except BaseException:  # SystemExit too: whatever ends a rank, the driver shall read it
            results.seek(0)
            results.truncate()
            blobs.write(results, {"error": traceback.format_exc().encode()})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the threads of TensorFlow and Horovod have nothing left to say


def _function(name: str) -> Callable[..., dict[str, bytes]]:
    import_keras(without=NO_USE)
    gc.freeze()  # modules stay: collections need not look at them
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _meeting(pulse: Pulse) -> dict[str, Any]:
    """Wait until all ranks have met; returns what the task then says of them, and sets this rank's environment."""
    pulse.report(event="ready")
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)  # the task is gone
    threading.Thread(target=_follow_task, daemon=True).start()
    meeting = json.loads(line)
    os.environ.update(meeting["environment"])
    return meeting


def _follow_task() -> None:
    """End this process when the task's end of standard input closes; where there is no PR_SET_PDEATHSIG."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
