"""What checkpoints cost on HDFS and on S3, beside local disk: ``python -m tests.benchmarks.checkpoint_stores [TURNS]``.

Fits take turns in one session. The servers run on this machine, so what they compute counts, too. Their jars are those
of ``make test-yarn`` and ``make test-s3``.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import keras
import numpy as np
import s3fs

from cos_ml import DeepNetEstimator
from tests.benchmarks import data
from tests.s3.servers import s3_server
from tests.standalone.hosts import running
from tests.yarn import jars

ROWS, BATCH, EPOCHS = 20_000, 128, 3
UNITS = (1536, 1024)  # 2.8 million weights: with Adam's variables 34 MB a checkpoint
HADOOP = Path(jars.__file__).parent


def network() -> keras.Model:
    keras.utils.set_random_seed(data.SEED)
    layers = [keras.layers.Dense(units, activation="relu") for units in UNITS]
    return keras.Sequential([keras.Input((data.FEATURES,)), *layers, keras.layers.Dense(10, activation="softmax")])


@contextlib.contextmanager
def hdfs(folder: Path) -> Iterator[str]:
    """HDFS for the length of a ``with`` block: its URL."""
    java = ["java", "-Xmx1g", "--add-opens=java.base/java.lang=ALL-UNNAMED", "-cp", f"{jars.folder()}/*"]
    command = [*java, str(HADOOP / "MiniHadoop.java"), str(folder), "2", "4096", "2"]
    with running(command, str(folder / "log"), "READY\n", stdin=subprocess.PIPE, cwd=folder):
        properties = ElementTree.parse(folder / "conf" / "core-site.xml").getroot().iter("property")
        yield next(one.findtext("value", "") for one in properties if one.findtext("name") == "fs.defaultFS")


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """S3 for the length of a ``with`` block: the URL of a bucket."""
    with s3_server() as proxy:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.target}"  # not by way of the proxy
        os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "of-the-benchmark"
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"


def measure(folders: dict[str, str], turns: int) -> dict[str, list[float]]:
    """The seconds of fits, by where their checkpoints are."""
    spark = data.session()
    random = np.random.default_rng(data.SEED)
    rows = [(one.tolist(), index % 10) for index, one in enumerate(random.normal(size=(ROWS, data.FEATURES)))]
    df = spark.createDataFrame(rows, "features array<float>, label int").cache()
    df.count()
    seconds: dict[str, list[float]] = {kind: [] for kind in folders}
    for turn in range(turns + 1):
        for kind in sorted(folders, reverse=bool(turn % 2)):
            estimator = DeepNetEstimator(
                model=network(), loss="sparse_categorical_crossentropy", epochs=EPOCHS, batchSize=BATCH,
                numTrainWorkers=data.RANKS, progress=False, checkpointDir=f"{folders[kind]}/{turn}",
            )  # fmt: skip
            start = time.perf_counter()
            notes = estimator.fit(df).summary.notes
            if notes:
                raise RuntimeError(f"{kind}: {notes}")
            if turn:  # the first one warms up
                seconds[kind].append(time.perf_counter() - start)
    return seconds


def main(turns: str = "5") -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "hadoop").mkdir()
        folders = {"local": str(folder / "local"), "hdfs": stack.enter_context(hdfs(folder / "hadoop"))}
        seconds = measure(folders | {"s3": stack.enter_context(s3())}, int(turns))
    local = median(seconds["local"])
    for kind, found in seconds.items():
        spread = f"({min(found):.1f} - {max(found):.1f})"
        print(f"{kind:5}  {median(found):6.1f} s {spread}  {median(found) / local:.2f} of local disk")


if __name__ == "__main__":
    main(*sys.argv[1:])
