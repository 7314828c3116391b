"""Ranks without Spark: tests of what ranks compute need neither a session nor a cluster.

``RankRunner.fit`` stands in for the barrier job: it spools the rows of each rank, lets the ranks meet, and returns what
they return. It runs in a process of its own, ``python -m tests.support.ranks``, of which the ranks are forks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cos_ml.data import blobs
from cos_ml.spec import TrainSpec
from tests.support import forks

FUNCTION = "cos_ml.rank.train:train"
LONGEST = 120  # seconds that the ranks of a job may take


@dataclass(frozen=True)
class Trained:
    """The trained network of a candidate, and the summary of each rank."""

    network: Any
    summaries: list[dict[str, Any]]

    @property
    def history(self) -> dict[str, list[float]]:
        return self.summaries[0]["history"]


class RankRunner:
    """Runs jobs of ranks, one after the other; close it in the end."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.ranks"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self.process.communicate()

    def fit(
        self, specs: Sequence[TrainSpec], networks: Sequence[Any], parts: Sequence[dict[str, np.ndarray]]
    ) -> list[Trained]:
        """Train the candidates on ranks, each of which has one of ``parts``: arrays by the field of their column.

        Raises:
            RankError: a rank failed.
        """
        from cos_ml.job.messages import raise_reported
        from cos_ml.network.archive import Network, load_model

        archives = [Network.of(network).archive for network in networks]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "specs").write_text(json.dumps([spec.dumps() for spec in specs]))
            with open(folder / "networks", "wb") as file:
                blobs.write(file, {str(index): archive for index, archive in enumerate(archives)})
            for rank, columns in enumerate(parts):
                np.savez(folder / f"{rank}.npz", **columns)
            results = self._results(folder, len(parts))
        raise_reported(results)
        return [
            Trained(
                load_model(results[0][f"{index}/network"], spec.modules),
                [json.loads(result[f"{index}/summary"]) for result in results],
            )
            for index, spec in enumerate(specs)
        ]

    def _results(self, folder: Path, ranks: int) -> list[dict[str, bytes]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), ranks]) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", (folder / "error").read_text()
        results = []
        for rank in range(ranks):
            with open(folder / f"{rank}.results", "rb") as file:
                results.append(blobs.read(file))
        return results


# ── the runner's process ──────────────────────────────────────────────────────────────────────────────────────────────


def serve() -> None:
    """Run each job that standard input names in a fork of this process, which stays as it is."""
    forks.import_what_ranks_import()
    for line in sys.stdin:
        folder, ranks = json.loads(line)
        process = os.fork()
        if not process:
            run_job(Path(folder), ranks)
        _, status = os.waitpid(process, 0)
        print("failed" if status else "done", flush=True)


def run_job(folder: Path, ranks: int) -> None:
    """Be the barrier tasks of a job, all of them; never returns."""
    signal.alarm(LONGEST)
    try:
        specs = [TrainSpec.loads(text) for text in json.loads((folder / "specs").read_text())]
        with contextlib.ExitStack() as stack:
            run_ranks(folder, specs, ranks, stack)
    except BaseException:
        (folder / "error").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def run_ranks(folder: Path, specs: list[TrainSpec], ranks: int, stack: contextlib.ExitStack) -> None:
    """Start the ranks, let them meet, and wait until they have written their results."""
    from cos_ml.data.spool import Spool
    from cos_ml.job.placement import assign_ranks
    from tests.support.spools import record_batch

    infos = assign_ranks(["localhost"] * ranks)
    started = []
    for info in infos:
        spool = stack.enter_context(contextlib.closing(Spool(specs[0])))
        with np.load(folder / f"{info.rank}.npz") as columns:
            batch = record_batch(dict(columns))
        spool.fill([batch] if batch.num_rows else [])
        started.append((spool, *start_rank(folder, specs, info, spool, stack)))
    tasks = [
        {
            "rank": info.rank, "partition": info.rank, "rows": spool.rows, "digest": spool.digest,
            "skipped": spool.skipped, "shapes": spool.shapes, "dtypes": spool.dtypes,
        }
        for info, (spool, *_) in zip(infos, started, strict=True)
    ]  # fmt: skip
    meet(tasks, infos, started, stack)
    for _, rank, events in started:
        for _ in events:  # until it ends
            pass
        assert rank.wait() == 0


def start_rank(
    folder: Path, specs: list[TrainSpec], info: Any, spool: Any, stack: contextlib.ExitStack
) -> tuple[forks.ForkedRank, Any]:
    """Start a rank, as ``cos_ml.job.child`` does; returns it, and its events."""
    results, networks, log = (
        stack.enter_context(open(folder / name, mode))
        for name, mode in ((f"{info.rank}.results", "wb"), ("networks", "rb"), (f"{info.rank}.log", "wb"))
    )
    events, its_events = os.pipe()
    start = {
        "function": FUNCTION, "specs": [spec.dumps() for spec in specs], "rank_info": asdict(info),
        "partition": info.rank, "spool": spool.descriptors(), "shards": None, "networks": networks.fileno(),
        "results": results.fileno(), "events": its_events,
    }  # fmt: skip
    descriptors = [its_events, networks.fileno(), results.fileno()]
    descriptors += [descriptor for part in spool.descriptors().values() for descriptor in part.values()]
    environment = os.environ | specs[0].variables | {"CUDA_VISIBLE_DEVICES": "-1"}
    rank = forks.ForkedRank(environment, descriptors, log)
    os.close(its_events)
    send(rank, start)
    return rank, stack.enter_context(os.fdopen(events))


def meet(tasks: list[dict[str, Any]], infos: list[Any], started: list[Any], stack: contextlib.ExitStack) -> None:
    """Wait until all ranks are ready, and let them join."""
    environments: list[dict[str, str]] = [{}]
    if len(infos) > 1:
        from cos_ml.job.horovod_env import rank_environment
        from cos_ml.job.rendezvous_server import Rendezvous

        own = "127.0.0.1"
        rendezvous = stack.enter_context(contextlib.closing(Rendezvous(own)))
        rendezvous.serve(infos, [own])
        environments = [rank_environment(info, own, own, rendezvous.port, rendezvous.secret) for info in infos]
    for _, _, events in started:
        next((line for line in events if json.loads(line)["event"] == "ready"), None)
    for (_, rank, _), environment in zip(started, environments, strict=True):
        send(rank, {"tasks": tasks, "environment": environment})


def send(rank: forks.ForkedRank, message: dict[str, Any]) -> None:
    """Send a rank its next message."""
    with contextlib.suppress(BrokenPipeError):  # it has ended; its result says why
        rank.stdin.write(json.dumps(message).encode() + b"\n")
        rank.stdin.flush()


if __name__ == "__main__":
    serve()
