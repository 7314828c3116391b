"""Turns a fork into a rank that is like a new process: descriptors, environment, signals (rank side)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["close_descriptors", "die_with_parent", "run_rank", "set_name"]

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # <sys/prctl.h>
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the process ``parent``, which has started it, ends (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def set_name(name: str) -> None:
    """Name this process, of which `top` shows 15 characters (on Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def run_rank(request: dict[str, Any], received: Sequence[int], parent: int, imported: bool = True) -> None:
    """Become a rank, in a fork of the process ``parent``: never returns.

    Args:
        request: the rank's "environment", and the numbers of its "descriptors", 0 and 1 first.
        received: the numbers that these descriptors have in this process, in the same order.
        parent: the process that has forked this one.
        imported: whether it has imported what a rank needs; otherwise this process becomes a new Python.
    """
    try:
        os.setsid()
        die_with_parent(parent)
        gc.freeze()  # the objects of the parent stay: their descriptors are not this process's
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        set_name("cos_ml-rank")
        place_descriptors(received, request["descriptors"])
        if not imported:
            os.execve(sys.executable, [sys.executable, "-m", "cos_ml.rank"], request["environment"])
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
        sys.stdout, sys.stderr = (os.fdopen(target, "w", 1, closefd=False) for target in (1, 2))
        os.environ.clear()
        os.environ.update(request["environment"])
        importlib.invalidate_caches()  # modules of the user's may be newer than this process
        tempfile.tempdir = None  # it is another one
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed()
        from cos_ml.rank.__main__ import main

        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)  # main() does not return, and ends with a status of its own


def place_descriptors(received: Sequence[int], numbers: Sequence[int]) -> None:
    """Move the descriptors to their numbers, let 2 be the same as 1, and close all others."""
    above = max([2, *numbers, *received]) + 1  # none from here on has to be another one
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in received]
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
    os.dup2(1, 2)
    kept = {2, *numbers}
    close_descriptors(one for one in map(int, os.listdir("/proc/self/fd")) if one not in kept)


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close those of the descriptors that are open."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
