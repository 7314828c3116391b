"""What a fit costs beside training, by the number of ranks: ``python -m tests.benchmarks.scale``.

All ranks are on this machine, which has fewer cores. First fits of a small network; then ranks whose TensorFlow is a
stand-in, so that more of them fit in, and which ask the rendezvous for as much as Gloo does, and connect to nobody.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

RANKS = (2, 4, 8, 16)
STAND_INS = (2, 4, 8, 16, 32, 64)
ADDRESS = 130  # bytes under which a rank awaits one other one, as Gloo writes them


def main() -> None:
    from tests.support.sessions import session

    print("fits:     seconds of all ranks' slowest; driver memory in MB")
    print(f"{'ranks':>8}{'total':>8}{'start':>8}{'read':>8}{'join':>8}{'train':>8}{'rest':>8}{'driver':>8}{'JVM':>8}")
    with tempfile.TemporaryDirectory(prefix="cos_ml_scale_") as folder:
        for ranks in RANKS:
            spark = next(session(f"local[{ranks}]", Path(folder, str(ranks))))
            fit(spark, ranks)
            spark.stop()
        print("\nmeetings: seconds until all ranks are there, know of each other, have joined, and are gone again")
        print(f"{'ranks':>8}{'start':>8}{'agree':>8}{'join':>8}{'end':>8}{'asked':>8}")
        for ranks in STAND_INS:
            # Not by the environment: this process's JVM is there, and keeps the one that it began with.
            stand_in = {"spark.executorEnv.PYTHONPATH": str(Path(__file__).parent / "stand_in")}
            spark = next(session(f"local[{ranks}]", Path(folder, f"{ranks}-in"), **stand_in))
            meet(spark, ranks)
            spark.stop()


def fit(spark: Any, ranks: int) -> None:
    """A line for the second of two fits."""
    from cos_ml import DeepNetEstimator
    from tests.support import reference
    from tests.support.sessions import frame, rows_of

    df = frame(spark, [rows_of(*reference.data(64))] * ranks).cache()
    for _ in range(2):
        estimator = DeepNetEstimator(
            model=reference.network(), loss="sparse_categorical_crossentropy", numTrainWorkers=ranks, progress=False
        )
        begin = time.perf_counter()
        seconds = estimator.fit(df).summary.seconds
        total = time.perf_counter() - begin
    phases = {name: max(one[name] for one in seconds) for name in ("start", "read", "join")}
    phases["train"] = max(one["compile"] + one["train"] for one in seconds)
    rest = total - max(sum(one.values()) for one in seconds)
    driver = psutil.Process()
    jvm = next(child for child in driver.children() if child.name() == "java")
    memory = [process.memory_info().rss / 1e6 for process in (driver, jvm)]
    print(f"{ranks:>8}" + "".join(f"{value:>8.1f}" for value in (total, *phases.values(), rest)), end="")
    print("".join(f"{value:>8.0f}" for value in memory), flush=True)


def meet(spark: Any, ranks: int) -> None:
    """A line for the second of two meetings of stand-ins."""
    from cos_ml.data import frames
    from cos_ml.data.columns import Column
    from cos_ml.job.barrier import Job, run
    from cos_ml.spec import TrainSpec

    spec = TrainSpec(inputs=(Column("id", "x0"),), labels=())
    job = Job(f"{__name__ if __name__ != '__main__' else __package__ + '.scale'}:join", (spec,), (b"",))
    rows = frames.select_columns(spark.range(ranks), spec)
    for _ in range(2):
        begin = time.time()
        reports = [json.loads(result["times"]) for result in run(rows, job, ranks).results]
        end = time.time()
    there, agreed, joined = (max(one[name] for one in reports) for name in ("there", "agreed", "joined"))
    laps = (there - begin, agreed - there, joined - agreed, end - joined)
    print(
        f"{ranks:>8}" + "".join(f"{value:>8.2f}" for value in laps) + f"{sum(one['asked'] for one in reports):>8}",
        flush=True,
    )


# ── rank ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def join(start: dict[str, Any], wait: Callable[[], dict[str, Any]], heartbeat: Any) -> dict[str, bytes]:
    """Do at the rendezvous what Gloo does for Horovod's two sets of three contexts, and note when."""
    if "stand_in" not in str(sys.modules["tensorflow"].__file__):
        raise RuntimeError("this rank has loaded TensorFlow itself")
    times: dict[str, float] = {"there": time.time()}
    wait()
    times["agreed"] = time.time()
    info = start["rank_info"]
    address, _, secret = os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")
    port = int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    host, asked = address.split(":")[0], 0

    def ask(method: str, scope: str, key: int, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection(host, port)
        connection.request(method, f"/{secret}:{port}/{scope}/{key}", body)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    contexts = {
        "global": (info["rank"], info["size"]),
        f"local{info['host']}": (info["local_rank"], info["local_size"]),
        f"cross{info['local_rank']}": (info["cross_rank"], info["cross_size"]),
    }
    for part in ("", "_set"):
        for scope, (rank, size) in contexts.items():
            ask("PUT", scope + part, rank, b"x" * ADDRESS * size)
            for other in set(range(size)) - {rank}:
                while ask("GET", scope + part, other) != 200:
                    asked += 1
                ask("GET", scope + part, other)
                asked += 2
    times["joined"] = time.time()
    ask("PUT", "joined", info["rank"], b"x")
    for other in range(info["size"]) if info["rank"] == 0 else ():
        while (
            ask("GET", "joined", other) != 200
        ):  # as ranks add up a number, before the first one's task stops the server
            asked += 1
    heartbeat.send(event="joined")
    return {"times": json.dumps(times | {"asked": asked}).encode()}


if __name__ == "__main__":
    main()
