"""A pair of ranks that trains one case after the other: ``python -m tests.conformance.pair``.

``Pair`` is what tests use. Its process imports what ranks import, once, and forks two ranks, which meet through the
product's rendezvous server and stay. Rank 0 trains a case with plain Keras while rank 1 trains it as a single rank of
the product; then both train it as two ranks. A case that fails, or takes too long, costs the pair: the next has
another.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Pair"]

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LONGEST = float(os.environ.get("CONFORMANCE_LONGEST", "60"))  # seconds of a case


class Pair:
    """Runs cases, one after the other; close it in the end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.conformance.pair"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, name: str) -> dict[str, Any]:
        """The differences of a case: of "one" and "two" ranks, "apart" from each other, and "moved"; or an "error"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


# ── the server's process ──────────────────────────────────────────────────────────────────────────────────────────────


class Ranks:
    """Two forked ranks that know each other."""

    def __init__(self) -> None:
        from cos_ml.job.horovod_env import rank_environment
        from cos_ml.job.placement import assign_ranks
        from cos_ml.job.rendezvous_server import Rendezvous

        own, infos = "127.0.0.1", assign_ranks(["localhost"] * 2)
        self.log = tempfile.TemporaryFile()
        self.rendezvous = Rendezvous(own)
        self.pipes: list[tuple[int, Any, Any]] = []
        for info in infos:
            environment = rank_environment(info, own, own, self.rendezvous.port, self.rendezvous.secret)
            commands, its_commands = os.pipe()
            results, its_results = os.pipe()
            process = os.fork()
            if not process:
                be_rank(info.rank, environment, os.fdopen(commands), os.fdopen(its_results, "w"), self.log.fileno())
            os.close(commands)
            os.close(its_results)
            self.pipes.append((process, os.fdopen(its_commands, "w"), os.fdopen(results)))
        self.rendezvous.serve(infos, [own])

    def run(self, name: str, folder: str) -> list[dict[str, Any]]:
        """What both ranks say about a case, or the first error."""
        for _, commands, _ in self.pipes:
            commands.write(json.dumps([name, folder]) + "\n")
            commands.flush()
        waiting, found, until = [results for _, _, results in self.pipes], [], time.monotonic() + LONGEST
        while waiting:
            ready, _, _ = select.select(waiting, [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return [{"error": f"takes more than {LONGEST:g} s", "fatal": True}]
            for results in ready:
                line = results.readline()
                found.append(json.loads(line) if line else {"error": "a rank ended", "fatal": True})
                if found[-1].get("fatal"):
                    return found[-1:]
                waiting.remove(results)
        return found

    def close(self) -> str:
        """End both; returns the end of what they have written."""
        for process, commands, results in self.pipes:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            for file in (commands, results):
                with contextlib.suppress(OSError):
                    file.close()
        self.rendezvous.close()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 3000))
        return self.log.read().decode(errors="replace")


def serve() -> None:
    """Train each case that standard input names; a line of JSON is its result."""
    from tests.support import forks

    forks.import_what_ranks_import()
    import tests.conformance.table  # noqa: F401
    from tests.conformance.training import without_spark

    without_spark()
    gc.collect()
    gc.freeze()  # ranks clear Keras's session before each network, which collects garbage
    ranks: Ranks | None = None
    for line in sys.stdin:
        ranks, began = ranks or Ranks(), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = ranks.run(line.strip(), folder)
            result = next((dict(one) for one in found if "error" in one or "refused" in one), None)
            result = result or compared({key: value for one in found for key, value in one.items()}, folder)
        if result.get("fatal"):
            result["error"] += "\n" + ranks.close()
            ranks = None
        print(json.dumps(result | {"seconds": round(time.monotonic() - began, 2)}), flush=True)
    if ranks is not None:
        ranks.close()


def compared(histories: dict[str, Any], folder: str) -> dict[str, Any]:
    """How far the weights and metrics of one rank and of two are from those of plain Keras."""
    saved = {path.stem: list(np.load(path).values()) for path in Path(folder).glob("*.npz")}
    found = {"histories": histories, "moved": gap(saved["before"], saved["plain"])}
    for ranks in ("one", "two"):
        found[ranks] = {
            "weights": gap(saved[ranks], saved["plain"]),
            "metrics": gap(
                list(histories[ranks].values()), [histories["plain"].get(name) for name in histories[ranks]]
            ),
            "names": sorted(histories[ranks]) == sorted(histories["plain"]),
        }
    return found | {"apart": gap(saved["two"], saved["other"])}


def gap(values: list[Any], expected: list[Any]) -> float:
    """The largest difference between arrays, relative to 1 + what is expected; infinite for other shapes and NaN."""
    largest = 0.0
    if len(values) != len(expected):
        return float("inf")
    for one, other in zip(values, expected, strict=True):
        if other is None or np.shape(one) != np.shape(other):
            return float("inf")
        one, other = np.asarray(one, float), np.asarray(other, float)
        both = np.isnan(one) & np.isnan(other) | (one == other)
        with np.errstate(invalid="ignore"):
            differences = np.where(both, 0.0, np.abs(one - other) / (1 + np.abs(other)))
        differences = np.where(np.isnan(differences), np.inf, differences)
        largest = max(largest, float(differences.max(initial=0.0)))
    return largest


# ── a rank ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def be_rank(rank: int, environment: dict[str, str], commands: Any, results: Any, log: int) -> None:
    """Be a rank, in a fork: never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # its Horovod thread would poll for ever
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(target, "w", 1, closefd=False) for target in (1, 2))
        os.environ.update(environment | {"CUDA_VISIBLE_DEVICES": "-1"})
        warnings.simplefilter("ignore")
        import tensorflow as tf

        from cos_ml.rank.collectives import Communicator

        tf.config.threading.set_intra_op_parallelism_threads(1)
        together = Communicator(2)
        for line in commands:
            name, folder = json.loads(line)
            faulthandler.dump_traceback_later(LONGEST - 5, file=log)
            try:
                result = run_case(name, rank, together, Path(folder))
            except BaseException as error:
                result = {"error": f"rank {rank}: {traceback.format_exc()}", "fatal": True, "message": str(error)}
            faulthandler.cancel_dump_traceback_later()
            results.write(json.dumps(result) + "\n")
            results.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def run_case(name: str, rank: int, together: Any, folder: Path) -> dict[str, Any]:
    """Train a case; returns the histories, and saves the weights in ``folder``."""
    from cos_ml.errors import InvalidInputError
    from cos_ml.rank.collectives import Communicator
    from tests.conformance.table import CASES
    from tests.conformance.training import candidate, plain, product

    case = CASES[name]
    for part in ("plain", "one", "two"):
        (folder / part).mkdir(exist_ok=True)
    if case.refused:
        try:
            candidate(case, case.ranks, folder)
        except InvalidInputError as error:
            return {"refused": str(error)}
        return {"error": "is not refused"}
    found = {}
    if rank == 0:
        before, after, found["plain"] = plain(case, folder / "plain")
        np.savez(folder / "before.npz", *before)
        np.savez(folder / "plain.npz", *after)
    else:
        weights, found["one"] = product(case, Communicator(1), 0, folder / "one")
        np.savez(folder / "one.npz", *weights)
    weights, history = product(case, together, rank, folder / "two")
    np.savez(folder / ("other.npz" if rank else "two.npz"), *weights)
    if rank == 0:
        found["two"] = history
        case.check(folder / "plain", folder / "two")
    return found


if __name__ == "__main__":
    serve()
