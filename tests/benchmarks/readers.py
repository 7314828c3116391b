"""What one rank reads by each feed, in 1 and 5 epochs, and its memory: ``python -m tests.benchmarks.readers [RUNS]``.

A process for each reads 240 MB, its half of a dataset of 784 float32 per row in row groups of 16 MB, and trains
nothing. The files are in the page cache. Memory is what the kernel can't drop (``Anonymous`` in smaps_rollup) at its
peak, beyond what the process had when it had imported TensorFlow: pages of files, such as the Arrow feed's, are none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cos_ml.data.columns import Column
from cos_ml.data.parquet_plan import plan
from cos_ml.data.spool import Spool
from cos_ml.spec import TrainSpec
from tests.benchmarks import data
from tests.benchmarks.process import REPOSITORY

FILES, GROUPS, ROWS = 10, 3, 5100  # in each file, and in each row group: 480 MB
EPOCHS = (1, 5)
INTERVAL = 0.01  # seconds between two looks at a process's memory
SPEC = TrainSpec(
    inputs=(Column("features", "x0", (data.FEATURES,)),), labels=(Column("label", "y0", classes=data.CLASSES),)
)
NAMES = {"x0": "features", "y0": "label"}


def main(runs: str = "3") -> None:
    petastorm = ["petastorm"] if importlib.util.find_spec("petastorm") else []
    print(f"{'feed':<12}{'epochs':>7}{'rows/s':>30}{'memory beyond TensorFlow, MB':>32}")
    with tempfile.TemporaryDirectory(prefix="cos_ml_readers_") as folder:
        _write(Path(folder))
        starts = {feed: _start(folder, feed) for feed in ("arrow", "parquet", *petastorm)}
        for epochs in EPOCHS:
            found: dict[str, list[tuple[float, float]]] = {}
            for _ in range(int(runs)):  # in turns, for the machine may have become busier
                for feed in starts:
                    found.setdefault(feed, []).append(_measured(starts[feed], epochs))
            for feed, figures in found.items():
                rates, memory = zip(*figures, strict=True)
                print(f"{feed:<12}{epochs:>7}{_spread(rates):>30}{_spread(memory):>32}", flush=True)


def _spread(figures: tuple[float, ...]) -> str:
    return f"{statistics.median(figures):,.0f} ({min(figures):,.0f} to {max(figures):,.0f})"


def _write(folder: Path) -> None:
    rng = np.random.default_rng(data.SEED)
    for index in range(FILES):
        features = rng.standard_normal((GROUPS * ROWS, data.FEATURES), np.float32)
        offsets = pa.array(np.arange(len(features) + 1, dtype=np.int32) * data.FEATURES)
        lists = pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1)))
        table = pa.table({"features": lists, "label": rng.integers(0, data.CLASSES, len(features))})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=ROWS, use_dictionary=False)


def _measured(start: dict[str, Any], epochs: int) -> tuple[float, float]:
    """Rows/s, and the most memory beyond TensorFlow's in MB, of a process that reads so many epochs."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "read", str(epochs)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    descriptors = start.get("spool", {}).values()
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, pass_fds=descriptors, **pipes) as process:
        process.stdout.readline()  # type: ignore[union-attr]  # it has imported TensorFlow
        before = most = _memory(process.pid)
        process.stdin.write(json.dumps(start))  # type: ignore[union-attr]
        process.stdin.close()  # type: ignore[union-attr]
        while process.poll() is None:
            most = max(most, _memory(process.pid))
            time.sleep(INTERVAL)
        return float(process.stdout.read().split()[-1]), (most - before) / 1e6  # type: ignore[union-attr]


def _memory(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        return int(text.split("Anonymous:")[1].split()[0]) << 10
    except (OSError, IndexError):  # it has ended
        return 0


def _start(folder: str, feed: str) -> dict[str, Any]:
    """What a rank is told: its shard, or the descriptors of its rows on local disk."""
    if feed != "arrow":
        return {"shards": asdict(plan(folder, SPEC, NAMES, data.RANKS, reader=feed))}
    spool = Spool(SPEC)
    for path in sorted(Path(folder).iterdir())[: FILES // data.RANKS]:
        batches = pq.ParquetFile(path).iter_batches(640, columns=[*NAMES.values()])
        spool.fill(pa.RecordBatch.from_arrays(batch.columns, [*NAMES]) for batch in batches)
    descriptors = {field: os.dup(one) for field, one in spool.descriptors()["train"].items()}
    count, shapes = spool.rows["train"], spool.shapes
    return {"spool": descriptors, "count": count, "shapes": shapes, "dtypes": spool.dtypes}


def read(epochs: int) -> None:
    """Read all rows of a rank in each epoch, and print rows/s."""
    import tensorflow as tf

    from cos_ml.rank.feed import ShardRows, Shards, SpooledRows

    tf.constant(0.0) + 1.0
    print(flush=True)
    start = json.loads(sys.stdin.read())
    began = time.perf_counter()
    if "shards" in start:
        rows: Any = ShardRows("train", SPEC, Shards(**start["shards"]), 0)
    else:
        rows = SpooledRows(start["spool"], start["count"], start["shapes"], start["dtypes"])
    seen = 0
    for epoch in range(epochs):
        one = rows.ordered(True, (data.SEED, epoch))
        seen += sum(batch.num_valid for batch in one.batches(data.BATCH, -(-rows.count // data.BATCH), {}))
    print(seen / (time.perf_counter() - began), flush=True)
    os._exit(0)  # petastorm's threads may wait


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(int(sys.argv[2]))
    else:
        main(*sys.argv[1:])
