"""Steps of a compute-bound network by the number of ranks: ``python -m tests.benchmarks.scaling``.

A convolutional network on 28 x 28 pixels, ranks of one thread each, the same global batch for all. They are measured
in turn, several times. Horovod's share of a step is read from its timeline, in a fit of its own. The model of
docs/scaling.md is printed beside, with a bandwidth and a latency that are measured between 2 ranks, and read out to 256
ranks for networks and links that this machine does not have.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import data

RANKS = (1, 2, 4)
TURNS = 3
BATCH, ROWS, EPOCHS = 128, 4096, 4  # of all ranks together
STEPS = ROWS // BATCH
CORES = os.cpu_count() or 1
READ_OUT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LINKS = {"10 Gb/s": (1.25e9, 50e-6), "100 Gb/s": (12.5e9, 10e-6)}  # bytes a second, and seconds of a message
NETWORKS = {"4 MB, 5 ms": (4e6, 5e-3), "100 MB, 100 ms": (100e6, 0.1), "1.4 GB, 500 ms": (1.4e9, 0.5)}


def main() -> None:
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in RANKS}
    with tempfile.TemporaryDirectory(prefix="cos_ml_scaling_") as folder:
        for turn in range(TURNS):
            for ranks in RANKS:
                result = Path(folder, f"{ranks}-{turn}.json")
                # One rank would take all cores; two share them.
                pinned = ["taskset", "-c", "0"] if ranks == 1 else []
                timeline = ["", str(Path(folder, "timeline.json"))][ranks == 2 and turn == TURNS - 1]
                command = [*pinned, sys.executable, "-m", f"{__package__}.scaling", str(ranks), str(result), timeline]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                found[ranks].append(json.loads(result.read_text()))
                print(f"{ranks} ranks: {found[ranks][-1]['step'] * 1e3:.1f} ms a step", flush=True)
        shares = horovod_share(Path(folder, "timeline.json"))
    steps = {
        ranks: statistics.median(one["step"] for one in each if not one["timeline"]) for ranks, each in found.items()
    }
    reduces = {ranks: statistics.median(one["large"] for one in each) for ranks, each in found.items()}
    small = statistics.median(one["small"] for one in found[2])
    size = found[2][0]["bytes"]
    latency, bandwidth = small / 2, size / max(reduces[2] - small, 1e-9)
    print(
        f"gradients of {size / 1e6:.1f} MB; between 2 ranks {bandwidth / 1e9:.2f} GB/s, "
        f"{latency * 1e3:.2f} ms a message"
    )
    print(f"{'ranks':>5}{'step, ms':>10}{'speed-up':>10}{'model, ms':>11}{'allreduce, ms':>15}{'model, ms':>11}")
    for ranks in RANKS:
        reduce = ring(size, ranks, bandwidth, latency)
        print(
            f"{ranks:>5}{steps[ranks] * 1e3:>10.1f}{steps[1] / steps[ranks]:>10.2f}"
            f"{(steps[1] / min(ranks, CORES) + reduce) * 1e3:>11.1f}{reduces[ranks] * 1e3:>15.1f}{reduce * 1e3:>11.1f}"
        )
    print(
        "Horovod's share of a step on 2 ranks, from its timeline: "
        + ", ".join(f"{k} {v:.1%}" for k, v in shares.items())
    )
    print(read_out())


def ring(size: float, ranks: int, bandwidth: float, latency: float) -> float:
    """Seconds in which n ranks add up ``size`` bytes: each sends its neighbour 2(n-1) messages of 1/n of them.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def read_out() -> str:
    """The part of a step that is computing, with the same batch for each rank whatever their number."""
    lines = [f"{'gradients, computing':<22}{'link':<10}" + "".join(f"{ranks:>6}" for ranks in READ_OUT)]
    for network, (size, compute) in NETWORKS.items():
        for link, (bandwidth, latency) in LINKS.items():
            shares = (compute / (compute + ring(size, ranks, bandwidth, latency)) for ranks in READ_OUT)
            lines.append(f"{network:<22}{link:<10}" + "".join(f"{share:>6.0%}" for share in shares))
    return "\n".join(lines)


def horovod_share(timeline: Path) -> dict[str, float]:
    """Shares of the time between the first and the last allreduce, as rank 0's timeline has them."""
    text = timeline.read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("]") else text + "]")
    open_at: dict[int, list[tuple[str, float]]] = {}
    spans: list[tuple[str, float, float]] = []
    for event in events:
        if event.get("ph") == "B":
            open_at.setdefault(event["pid"], []).append((event["name"], event["ts"]))
        elif event.get("ph") == "E" and open_at.get(event["pid"]):
            name, begin = open_at[event["pid"]].pop()
            spans.append((name, begin, event["ts"]))
    kinds = {"waiting for the other rank": "NEGOTIATE_", "allreduce": "ALLREDUCE"}
    mine = {what: [span for span in spans if span[0].startswith(prefix)] for what, prefix in kinds.items()}
    begin = min(span[1] for each in mine.values() for span in each)
    end = max(span[2] for each in mine.values() for span in each)
    return {what: _union(each) / (end - begin) for what, each in mine.items()}


def _union(spans: list[tuple[str, float, float]]) -> float:
    """Time that at least one of the spans covers."""
    total, until = 0.0, float("-inf")
    for _, begin, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def measure(ranks: int, result: str, timeline: str) -> None:
    """Seconds of a step, and of an allreduce of all gradients, with so many ranks."""
    from cos_ml.job import cluster_check

    spark, df = _rows(ranks)
    estimator = _estimator(ranks, {"timeline": timeline} if timeline else {})
    found = {"step": _step(estimator, df), "timeline": bool(timeline), "large": 0.0, "small": 0.0}
    found["bytes"] = 4 * estimator.getModel().count_params()
    if ranks > 1:
        reports = cluster_check.results(spark, ranks, size=found["bytes"])
        found |= {which: max(one["seconds"][which] for one in reports) for which in ("small", "large")}
    spark.stop()
    Path(result).write_text(json.dumps(found))


def serve(ranks: int) -> None:
    """Be a session that is asked for a "step", and answers with its seconds."""
    _, df = _rows(ranks)
    estimator = _estimator(ranks, {})
    data.serve({"step": lambda: _step(estimator, df)})


def _rows(ranks: int) -> tuple[Any, Any]:
    """A session, and the rows."""
    spark = data.session(ranks)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 784), dtype=np.uint8)
    rows = [(pixels[row].tobytes(), float(row % 10)) for row in range(ROWS)]
    df = spark.createDataFrame(spark.sparkContext.parallelize(rows, ranks), "features binary, label double").cache()
    df.count()
    return spark, df


def _estimator(ranks: int, options: dict[str, Any]) -> Any:
    import keras

    from cos_ml import DeepNetEstimator

    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    return DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", epochs=EPOCHS, batchSize=BATCH // ranks,
        numTrainWorkers=ranks, progress=False, horovodOptions=options,
    )  # fmt: skip


def _step(estimator: Any, df: Any) -> float:
    """The median seconds of a step in one fit, by epoch; the first one compiles."""
    return statistics.median(estimator.fit(df).summary.epochSeconds[1:]) / STEPS


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif len(sys.argv) == 2:
        serve(int(sys.argv[1]))
    else:
        measure(int(sys.argv[1]), sys.argv[2], sys.argv[3])
