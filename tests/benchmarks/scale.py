"""What a fit costs beside training, by the number of ranks: ``python -m tests.benchmarks.scale``.

All ranks are on this machine, which has fewer cores. First fits of a small network; then ranks whose TensorFlow is a
stand-in, so that more of them fit in, and which ask the rendezvous for as much as Gloo does, and connect to nobody;
then, without Spark, what task 0 gets and sends while ranks on hosts of 8 join.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

RANKS = (2, 4, 8, 16)
STAND_INS = (2, 4, 8, 16, 32, 64)
MESSAGES = (2, 4, 8, 16, 32, 64, 128, 256)
THREADS = 32  # tasks in a process
HOST = 8  # ranks of a host
ADDRESS = 136  # bytes under which a rank awaits one other one, as Gloo writes them


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
    print("\nat task 0: messages of a rank, received and sent MB, seconds")
    for ranks in MESSAGES:
        count(ranks)


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

    def ask(method: str, scope: str, key: int | str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection(host, port)
        connection.request(method, f"/{secret}:{port}/{scope}/{key}", body)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status

    contexts = {
        "global": (info["rank"], info["size"]),
        f"local_{info['host']}": (info["local_rank"], info["local_size"]),
        f"cross_{info['local_rank']}": (info["cross_rank"], info["cross_size"]),
    }
    for part in ("", "_process_set_hash_1"):
        for scope, (rank, size) in contexts.items():
            ask("PUT", scope + part, f"rank_{rank}", b"host")
            for other in range(rank):
                ask("GET", scope + part, f"rank_{other}")
            asked += 2 + rank
            ask("PUT", scope + part, rank, b"".join(gloo_address(rank, other) for other in range(size - 1)))
            for other in set(range(size)) - {rank}:
                while ask("GET", scope + part, other) != 200:
                    asked += 1
                ask("GET", scope + part, other)
                asked += 2
    times["joined"] = time.time()
    ask("PUT", "global_end", f"end_{info['rank']}", b"x")  # as ranks add up a number, before they leave
    for other in set(range(info["size"])) - {info["rank"]}:
        while ask("GET", "global_end", f"end_{other}") != 200:
            pass
    heartbeat.send(event="joined")
    return {"times": json.dumps(times | {"asked": asked}).encode()}


# ── tasks without Spark ───────────────────────────────────────────────────────────────────────────────────────────────


def count(ranks: int) -> int:
    """A line for what task 0 receives and sends, from the first connection to the last address; the most messages."""
    from cos_ml.job import channel, link
    from cos_ml.job.placement import assign_ranks

    infos = assign_ranks([f"host{rank // HOST}" for rank in range(ranks)])
    secret, taken, received, sent = secrets.token_hex(16), [1] * ranks, [0], [0]
    begin = time.perf_counter()
    processes = [
        multiprocessing.get_context("fork").Process(target=tasks, args=(infos, secret, range(first, first + THREADS)))
        for first in range(1, ranks, THREADS)
    ]
    for process in processes:
        process.start()
    take, send, read = channel.Server.take, link.Link.send, link._read

    def counted(server: Any, partition: int, *arguments: Any) -> None:
        taken[partition] += 1
        take(server, partition, *arguments)

    channel.Server.take = counted
    link.Link.send = lambda own, message: (sent.append(len(message) + 40), send(own, message))[1]
    link._read = lambda connection, length: (received.append(length), read(connection, length))[1]
    with contextlib.closing(channel.listen("127.0.0.1", secret, ["127.0.0.1"] * ranks, 0)) as server:
        exchanges(server, infos[0])
        for process in processes:
            process.join()
    channel.Server.take, link.Link.send, link._read = take, send, read
    seconds = time.perf_counter() - begin
    print(f"{ranks:>8}{max(taken):>8}{sum(received) / 1e6:>10.3f}{sum(sent) / 1e6:>10.3f}{seconds:>8.2f}", flush=True)
    return max(taken)


def tasks(infos: list[Any], secret: str, partitions: range) -> None:
    """Some of the tasks but the first, as threads."""
    from cos_ml.job.channel import Client

    def task(partition: int) -> None:
        with contextlib.closing(Client("127.0.0.1", secret, len(infos), partition, partition)) as client:
            exchanges(client, infos[partition])

    partitions = partitions[: len(infos) - partitions[0]]
    with ThreadPoolExecutor(len(partitions)) as pool:
        list(pool.map(task, partitions))


def exchanges(task: Any, info: Any) -> None:
    """What a task and its rank's joining exchange with the others."""
    contexts = {
        "global": (info.rank, info.size),
        f"local_{info.host}": (info.local_rank, info.local_size),
        f"cross_{info.local_rank}": (info.cross_rank, info.cross_size),
    }
    task.handshake(json.dumps({"rank": info.rank, "facts": "x" * 1500}).encode())
    task.exchange("ready", {str(info.rank): b"1"}).result()
    for part in ("", "_process_set_hash_1"):
        for scope, (rank, size) in contexts.items():
            own = {f"rank_{rank}": b"host"}
            if rank:
                task.exchange(scope + part, own, "rank_0", size).result()
            if size > 1:
                addresses = b"".join(gloo_address(rank, other) for other in range(size - 1))
                task.exchange(scope + part, own | {str(rank): addresses}, "0", size).result()
    task.exchange("end", {str(info.rank): b""}).result()


def gloo_address(rank: int, other: int) -> bytes:
    """Where a rank listens, and a number for the one that is to connect; random where Gloo's is not initialized."""
    port, noise = (40000 + rank).to_bytes(2, "big"), (rank * 7919 + 1).to_bytes(8, "big")
    return b"\x02\0" + port + b"\x0a\0\0\x01" + noise + bytes(ADDRESS - 24) + other.to_bytes(8, "little")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--result"]:
        Path(sys.argv[2]).write_text(json.dumps({"messages": count(int(sys.argv[3]))}))
    else:
        main()
