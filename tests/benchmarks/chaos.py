"""Kill parts of a fit at random moments, and look whether it ends well: ``python -m tests.benchmarks.chaos [KILLS]``.

With ``--no-barrier`` the fits have no barrier, and dynamic allocation. With ``--links``, which needs root, executors
are on hosts of their own: one of them loses the other, or everybody, for 5 s. ``--from N`` begins with a later round,
and ``--only VICTIM`` names the victims, such as "driver KILL".

A fit on two executor processes, with a checkpoint after each epoch, is disturbed once: a rank, its task (Python
worker), its executor's JVM, its rank server or the program with the driver gets a signal; while ranks start, read,
train, write a checkpoint, or finish. It has to end with the weights of the undisturbed fit, to repeat no more than the
epoch in which it was disturbed, and to leave no process, open port or file behind. Where the driver was the victim,
that is asked of a second run of its program. "lost" is how many attempts that took; none where the fit was as good as
over, "had" how many epochs were in a checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil

from cos_ml import DeepNetEstimator
from tests.networks.cluster import MASTER, SECOND, cut, two_hosts, unplugged
from tests.networks.cluster import SETTINGS as SETTINGS_OF_HOSTS
from tests.support import reference
from tests.support.processes import rank_processes, server_processes
from tests.support.sessions import DAEMON, ROOT, SETTINGS, frame, rows_of, session

EPOCHS, ROWS, UNITS = 4, 20_000, 500
STALL = 10.0  # seconds
TRIES = 10  # until a moment is met
PHASES = ("start", "read", "train", "checkpoint", "finish")
SIGNALS = ("TERM", "KILL", "STOP")
OF_FIT = tuple(f"{one} {name}" for one in ("rank", "task", "executor", "server") for name in SIGNALS)
DRIVERS, LINKS = ("driver TERM", "driver KILL", "driver STOP"), ("link DOWN", "host DOWN")
MODES = {"barrier": OF_FIT + DRIVERS, "no barrier": OF_FIT, "links": LINKS}
VICTIMS = (*OF_FIT, *DRIVERS, *LINKS)
DOWN = 5.0  # seconds, less than STALL, after which a link is up again, and a stopped driver goes on
CLUSTER = "local-cluster[2,1,1024]"
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # they live for minutes
ATTEMPTS = {  # and how soon Spark notices an executor that is stopped
    "spark.stage.maxConsecutiveAttempts": "4", "spark.network.timeout": "30s", "spark.network.timeoutInterval": "10s",
    "spark.executor.heartbeatInterval": "3s", "spark.executor.extraJavaOptions": JVM,
}  # fmt: skip
DYNAMIC = {
    "spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.minExecutors": "0", "spark.dynamicAllocation.maxExecutors": "2",
    "spark.executor.cores": "1",
}  # fmt: skip
LATEST = {"start": 2.0, "read": 0.3, "train": 1.0, "checkpoint": 0.0, "finish": 0.05}  # seconds into a phase


def main(kills: int = 50, mode: str = "barrier", begin: int = 0, only: tuple[str, ...] = ()) -> None:
    chance = random.Random(begin)
    moments = list(itertools.product(only or MODES[mode], PHASES))
    order = random.Random(0).sample(moments, len(moments))
    rounds = list(itertools.islice(itertools.cycle(order), begin, begin + kills))
    with tempfile.TemporaryDirectory(prefix="cos_ml_chaos_") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        names: list[str] = []
        if mode == "links":  # where each rank has the threads of a whole host, so that the last digits differ
            names = stack.enter_context(two_hosts(folder))
            spark = next(session(MASTER, folder / "hosts", **SETTINGS_OF_HOSTS | ATTEMPTS))
        else:
            spark = next(session(CLUSTER, folder / "spark", **ATTEMPTS))
        undisturbed = estimator(folder / "undisturbed").fit(frame(spark, partitions())).toKeras().get_weights()
        if mode == "no barrier":
            spark.stop()
            spark = next(session(CLUSTER, folder / "dynamic", **ATTEMPTS, **DYNAMIC))
        trials = Trials(frame(spark, partitions()), undisturbed, folder, listening(), mode != "no barrier")
        print(
            f"{'victim':<15}{'phase':<12}{'after':>6}{'fit':>7}{'lost':>6}{'had':>5}  {'resumed from':<16}"
            f"{'weights':>9}  left behind",
            flush=True,
        )
        survived = 0
        for number, (victim, phase) in enumerate(rounds, begin):
            hit, tries = False, 0
            while not hit and tries < TRIES:  # the fit may be over before the moment has come
                checkpoints = folder / f"checkpoints-{number}-{uuid.uuid4().hex[:8]}"
                chaos = Chaos(victim, phase, checkpoints, chance.uniform(0, LATEST[phase]), names)
                tries += 1
                line, good, lost = trials.of_driver(chaos) if victim.startswith("driver") else trials.of_fit(chaos)
                hit = chaos.struck and (lost > 0 or phase == "finish" or victim in LINKS)
            survived += good and hit
            print(line if hit else f"{line}  (the moment never came)", flush=True)
        print(f"{survived} of {len(rounds)} survived")
        spark.stop()


@dataclass(frozen=True)
class Trials:
    """Fits that are disturbed, beside one that was not.

    Each gives a line of the table; whether it came out as the undisturbed one; and the number of attempts lost.
    """

    data: Any
    undisturbed: list[np.ndarray]
    folder: Path
    ports: set[Any]
    barrier: bool

    def of_fit(self, chaos: Chaos) -> tuple[str, bool, int]:
        """One disturbed fit."""
        start = time.monotonic()
        with chaos:
            try:
                model = estimator(chaos.checkpoints, useBarrier=self.barrier).fit(self.data)
            except Exception as error:
                seconds = time.monotonic() - start
                return f"{chaos.name}{seconds:>6.0f}s  {type(error).__name__}: {str(error)[:300]}", False, 1
        seconds = time.monotonic() - start
        left = left_behind(self.folder, chaos.checkpoints, self.ports)
        weights, lost = model.toKeras().get_weights(), len(model.summary.failures)
        return *chaos.told(seconds, lost, model.summary.resumedAt, weights, self.undisturbed, left), lost

    def of_driver(self, chaos: Chaos) -> tuple[str, bool, int]:
        """A program that is run again after its driver was the victim."""
        start, own = time.monotonic(), self.folder / f"driver-{chaos.checkpoints.name}"
        command = [sys.executable, "-m", "tests.benchmarks.chaos", "--program", str(own), str(chaos.checkpoints)]
        with chaos, subprocess.Popen(command, cwd=ROOT, stdout=-3, stderr=-3) as chaos.program:
            chaos.program.wait()
        if not chaos.struck:
            return f"{chaos.name}{time.monotonic() - start:>6.0f}s", False, 0
        _, alive = psutil.wait_procs(chaos.below, 60)
        left = [left_behind(self.folder, chaos.checkpoints, self.ports), *(f"process {one.pid}" for one in alive)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            return f"{chaos.name}{time.monotonic() - start:>6.0f}s  {done.stderr[-300:]}", False, 1
        found = np.load(own / "found.npz")
        weights = [found[str(at)] for at in range(len(self.undisturbed))]
        seconds, resumed = time.monotonic() - start, found["resumed"].tolist()
        return *chaos.told(seconds, 1, resumed, weights, self.undisturbed, ", ".join(filter(None, left))), 1


def program(folder: str, checkpoints: str) -> None:
    """The program whose driver is the victim."""
    spark = next(session(CLUSTER, Path(folder) / "spark", **ATTEMPTS))
    model = estimator(Path(checkpoints)).fit(frame(spark, partitions()))
    weights = {str(at): one for at, one in enumerate(model.toKeras().get_weights())}
    np.savez(Path(folder) / "found.npz", resumed=model.summary.resumedAt, **weights)
    spark.stop()


def partitions() -> list[Any]:
    """The rows, in other partitions than there are ranks: a retry reads a shuffle again."""
    rows = rows_of(*reference.data(ROWS))
    return [rows[at::4] for at in range(4)]


class Chaos:
    """Strikes once, in the ``with`` block, when the fit that writes to ``checkpoints`` has come to a phase."""

    def __init__(self, victim: str, phase: str, checkpoints: Path, delay: float, names: list[str]) -> None:
        self.victim, self.phase, self.checkpoints, self.delay, self.names = victim, phase, checkpoints, delay, names
        self.name = f"{victim:<15}{phase:<12}{delay:>5.1f}s"
        self.struck = False
        self.program: subprocess.Popen[bytes] | None = None  # with the driver, where that is the victim
        self.below: list[psutil.Process] = []  # all that it had started
        self.target: psutil.Process | None = None
        self.had = 0  # epochs in whole checkpoints when it struck
        self._ranks: list[psutil.Process] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self.target and self.victim.endswith("STOP"):  # it ends as soon as it runs
            with contextlib.suppress(psutil.Error):
                self.target.resume()

    def told(
        self,
        seconds: float,
        lost: int,
        resumed: Any,
        weights: list[np.ndarray],
        undisturbed: list[np.ndarray],
        left: str,
    ) -> tuple[str, bool]:
        """A line of the table, and whether the fit came out as the undisturbed one."""
        worst = max(float(np.abs(one - other).max()) for one, other in zip(weights, undisturbed, strict=True))
        went_on = f"epoch {resumed[0]}, step {resumed[1]}"
        line = f"{self.name}{seconds:>6.0f}s{lost:>6}{self.had:>5}  {went_on:<16}{worst:>9.1e}  {left or 'nothing'}"
        return line, worst <= 1e-6 and not left and (not lost or resumed[0] >= self.had)

    def _run(self) -> None:
        while not self._come():
            if self._over.wait(0.01 if self.phase in ("start", "read", "train") else 0.001):
                return
        if self.delay and self._over.wait(self.delay):
            return
        ranks = [rank for rank in self._ranks or sorted(rank_processes(), key=lambda one: one.pid) if alive(rank)]
        if ranks:
            self.had = max([0, *(int(name.split("-")[2]) for name in self._names() if name.startswith("checkpoint-"))])
            self._strike(ranks[-1])

    def _names(self) -> list[str]:
        """Of the files of checkpoints, whole and unfinished ones."""
        return [name for _, _, files in os.walk(self.checkpoints) for name in files if "checkpoint-" in name]

    def _come(self) -> bool:
        """Whether the fit is in the phase."""
        if self.phase == "start":
            return len(rank_processes()) == 2
        if self.phase == "read":
            return any(map(spooled, workers()))
        if not self._ranks:  # to look for them takes longer than some phases
            self._ranks = rank_processes()
        names = self._names()
        if self.phase == "checkpoint":  # one that is not the first is being written
            return any(name.startswith(".checkpoint") for name in names) and any(
                name.startswith("checkpoint") for name in names
            )
        wanted = 1 if self.phase == "train" else EPOCHS
        return any(name.startswith("checkpoint-auto-") and int(name.split("-")[2]) >= wanted for name in names)

    def _strike(self, rank: psutil.Process) -> None:
        who, _, name = self.victim.partition(" ")
        if self.victim in LINKS:
            with cut(self.names[0], SECOND) if who == "link" else unplugged():
                self.struck = True
                time.sleep(DOWN)
            return
        try:
            if who in ("task", "executor"):
                task = max(workers(), key=lambda one: one.pid)
                self.target = task if who == "task" else task.parents()[1]
            elif who == "driver":
                self.target = psutil.Process(self.program.pid if self.program else None)
                self.below = [*self.target.children(recursive=True), *rank_processes()]
            else:
                self.target = rank if who == "rank" else rank.parent()
            self.target.send_signal(getattr(signal, f"SIG{name}"))
            self.struck = True
            if self.victim == "driver STOP":
                time.sleep(DOWN)
                self.target.resume()
        except (psutil.Error, AttributeError, ValueError):
            pass  # it has just ended


def estimator(checkpoints: Path, **params: Any) -> DeepNetEstimator:
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(UNITS, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(UNITS, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    return DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", numTrainWorkers=2, epochs=EPOCHS, batchSize=512, seed=3,
        progress=False, checkpointDir=str(checkpoints), stallTimeout=STALL, **params,
    )  # fmt: skip


def workers() -> list[psutil.Process]:
    """The Python workers of the executors that have tasks of a fit: forks of PySpark's daemons, with a shell each."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if SETTINGS[DAEMON] in command and process.parent().cmdline() == command and process.children():
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process is there, and not just its exit status."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def spooled(worker: psutil.Process | None) -> bool:
    """Whether a Python worker has written rows to files without a name."""
    try:
        for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir() if worker else ():
            if "(deleted)" in os.readlink(descriptor) and descriptor.stat().st_size > 1000:
                return True
    except OSError:
        pass
    return False


def listening() -> set[Any]:
    """What Python processes below this one listen on, and this one itself; not PySpark's daemons, children of a JVM."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            parent = process.parent()
            if "python" in process.name() and (parent is None or parent.name() != "java"):
                found |= {one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        except psutil.Error:
            pass
    return found


def dead_servers(folder: Path) -> list[str]:
    """The folders of rank servers that have ended."""
    known = {argument for server in server_processes(folder) for argument in server.cmdline()}
    return [path for path in map(str, folder.rglob("cos_ml-server-*")) if path not in known]


def left_behind(folder: Path, checkpoints: Path, ports: set[Any]) -> str:
    """What a fit left, after the moment that dying processes take; "" for nothing."""
    waits: Callable[[], list[str]] = lambda: [  # noqa: E731
        *(f"process {process.pid}" for process in rank_processes()),
        *(f"port {address.port}" for address in listening() - ports),
        *(f"folder {name}" for _, names, _ in os.walk(folder) for name in names if name.startswith("cos_ml-rank-")),
        *(f"folder {name}" for name in dead_servers(folder)),
        *(f"file {name}" for _, _, names in os.walk(checkpoints) for name in names if name.startswith(".checkpoint")),
    ]
    deadline = time.monotonic() + 10
    while waits() and time.monotonic() < deadline:
        time.sleep(0.1)
    return ", ".join(waits())


if __name__ == "__main__":
    os.environ.setdefault("SPARK_SUBMIT_OPTS", JVM)
    options = argparse.ArgumentParser()
    options.add_argument("kills", type=int, nargs="?", default=50)
    options.add_argument("--no-barrier", dest="mode", action="store_const", const="no barrier", default="barrier")
    options.add_argument("--links", dest="mode", action="store_const", const="links")
    options.add_argument("--from", dest="begin", type=int, default=0)
    options.add_argument("--only", nargs="+", choices=VICTIMS, default=())
    options.add_argument("--program", nargs=2, help=argparse.SUPPRESS)
    chosen = vars(options.parse_args())
    run = chosen.pop("program")
    program(*run) if run else main(**chosen)
