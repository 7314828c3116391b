"""How soon all ranks are gone when somebody ends a fit: ``python -m tests.benchmarks.ends [TURNS]``.

One of its ranks is in the middle of a step and stopped, so that it can do nothing itself.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support import reference
from tests.support.disturbed import INTERRUPTED, estimator, network
from tests.support.processes import kill_task, rank_processes
from tests.support.sessions import ROOT, frame, rows_of, session

LONGEST = 60.0  # seconds


def main(turns: int = 3) -> None:
    with tempfile.TemporaryDirectory(prefix="cos_ml_ends_") as name:
        folder = Path(name)
        spark = next(session("local[2]", folder / "spark"))
        ways: dict[str, Callable[[Path], float]] = {
            "cancelJobGroup": lambda marker: ended(spark, marker, lambda: spark.sparkContext.cancelJobGroup("fit")),
            "a task killed": lambda marker: ended(
                spark, marker, lambda: kill_task(spark, 1, "killed by the benchmark")
            ),
            "Ctrl-C": lambda marker: interrupted(marker.parent),
        }
        for way, end in ways.items():
            seconds = []
            for turn in range(turns):
                own = folder / f"{way}-{turn}"
                own.mkdir()
                seconds.append(end(own / "hangs"))
            shown = ", ".join(f"{one:.1f}" for one in seconds)
            print(f"{way:<16} {statistics.median(seconds):.1f} s until no rank is left ({shown})", flush=True)
        spark.stop()


def ended(spark: Any, marker: Path, end: Callable[[], Any]) -> float:
    """Seconds from ``end`` to the end of all ranks that there were."""
    rows = rows_of(*reference.data(100))

    def fit() -> None:
        spark.sparkContext.setJobGroup("fit", "a fit that is ended", interruptOnCancel=True)
        try:
            estimator(network("hang", marker=str(marker), call=5), epochs=1).fit(frame(spark, [rows, rows]))
        except Exception as error:
            print(f"  the fit: {type(error).__name__}", flush=True)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while not marker.exists():
        time.sleep(0.05)
    seconds = until_gone(rank_processes(), end)
    thread.join(LONGEST)
    return seconds


def interrupted(folder: Path) -> float:
    """The same for a program of its own that gets SIGINT, and runs on."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", INTERRUPTED, str(folder)]
    with subprocess.Popen(run, env=environment, stdin=-1, stdout=-1, stderr=-1) as driver:
        while not (folder / "hangs").exists():
            time.sleep(0.05)
        seconds = until_gone(rank_processes(driver.pid), lambda: driver.send_signal(signal.SIGINT))
        driver.communicate(b"")
    return seconds


def until_gone(ranks: list[psutil.Process], end: Callable[[], Any]) -> float:
    start = time.monotonic()
    end()
    while any(alive(rank) for rank in ranks):
        if time.monotonic() - start > LONGEST:
            return float("inf")
        time.sleep(0.01)
    return time.monotonic() - start


def alive(process: psutil.Process) -> bool:
    """Whether it is more than a zombie, which the init process of a container may leave for a second."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
