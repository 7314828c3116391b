"""The processes and files of ranks, as the tests that look for leftovers see them."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any

import psutil

from cos_ml.rank.server import WATCHER

SERVER = "cos_ml.rank.server"


def server_processes(folder: Any = "") -> list[psutil.Process]:
    """The living rank servers whose own folders are below a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            own = SERVER in command and any(one.startswith(f"{folder}/") for one in command)
            own = own and process.name() != WATCHER
            if own and running(process.pid) and SERVER not in process.parent().cmdline():  # else it is a rank
                found.append(process)
    return found


def rank_processes(driver: int | None = None) -> list[psutil.Process]:
    """The ranks below a driver, this process or another one: new processes, and forks of workers and rank servers."""
    below = psutil.Process(driver).children(recursive=True)
    known, found = {process.pid for process in below}, []
    for server in server_processes():
        with contextlib.suppress(psutil.Error, ValueError):  # it has just ended
            command = server.cmdline()
            if known & set(json.loads(command[command.index(SERVER) + 2])["executor"]):
                found += [one for one in server.children() if SERVER in one.cmdline() and one.name() != WATCHER]
    for process in below:
        try:
            command = process.cmdline()
            forked = "tests.support.warm_daemon" in command and os.getsid(process.pid) == process.pid
            if forked or "cos_ml.rank" in command:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            pass
    return found


def running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_nothing_left(spark: Any) -> None:
    _, alive = psutil.wait_procs(rank_processes(), timeout=20)
    assert not alive
    ended, waits = threading.Event(), 0
    while left_files(spark) and waits < 200:  # a killed worker's go a moment after it
        ended.wait(0.1)
        waits += 1
    assert not left_files(spark)


def left_files(spark: Any) -> list[str]:
    """What a rank or its task may have left, and Spark has not; while other processes remove some of it."""
    found = []
    sparks = ("blockmgr-", "pyspark-", "broadcast")  # the last two hold functions that are too large for a task
    for folder, folders, files in os.walk(spark.conf.get("spark.local.dir")):
        found += [f"{folder}/{name}" for name in folders if name.startswith("cos_ml-rank-")]
        found += [f"{folder}/{name}" for name in files if not any(one in f"{folder}/{name}" for one in sparks)]
    return found


def kill_task(spark: Any, index: int, reason: str) -> None:
    """Kill a task of the one stage that runs, as the button in Spark's user interface does."""
    context = spark.sparkContext._jsc.sc()  # there is no public call
    (stage,) = spark.sparkContext.statusTracker().getActiveStageIds()
    tasks = context.statusStore().taskList(stage, 0, 10)
    found = next(task for task in map(tasks.apply, range(tasks.size())) if task.index() == index)
    context.killTaskAttempt(found.taskId(), True, reason)
