"""The format "lmdb" beside a cursor loop of the package: ``python -m tests.benchmarks.lmdb_read RESULT [SIZE ...]``.

Caffe's Datums, raw, in three sizes of images. The source reads in two tasks and makes every column; Spark throws the
rows away. "Reader" is what the source does in those tasks, in two processes and without Spark: from the file to Arrow
batches of all columns. There are two loops, of one thread each: one takes keys and values and looks at neither, one
parses every value too, with Google's protobuf package. "Spark alone" is a source of two tasks that reads nothing and
yields the same batch of such rows again and again: what no source in Python is faster than. In turns, all warm.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.types import StructType

from cos_ml.sources import datum, register
from cos_ml.sources.lmdb import BATCH_BYTES, BATCH_ROWS, LmdbReader, PageRange
from cos_ml.sources.records import DATUM_SCHEMA, DATUMS
from tests.benchmarks import data

ROUNDS = 5
SIZES = {  # rows, channels, height, width
    "MNIST, 28x28": (500_000, 1, 28, 28),
    "CIFAR, 3x32x32": (200_000, 3, 32, 32),
    "ImageNet, 3x256x256": (4_000, 3, 256, 256),
}


class Alone(DataSource):
    """Rows that cost nothing to make."""

    @classmethod
    def name(cls) -> str:
        return "alone"

    def schema(self) -> str:
        return DATUM_SCHEMA

    def reader(self, schema: StructType) -> AloneReader:
        return AloneReader(int(self.options["rows"]), int(self.options["size"]))


class AloneReader(DataSourceReader):
    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.size = size

    def partitions(self) -> list[InputPartition]:
        return [InputPartition(task) for task in range(data.RANKS)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        count = min(max(BATCH_BYTES // self.size, 1), BATCH_ROWS)
        ones = pa.array([1] * count, pa.int32())
        columns = [pa.array(["00000000"] * count), ones, ones, ones, ones, pa.array([False] * count),
                   pa.array([bytes(self.size)] * count), pa.nulls(count, pa.list_(pa.float32()))]  # fmt: skip
        names = ["id", "label", "channels", "height", "width", "encoded", "data", "float_data"]
        for _ in range(self.rows // data.RANKS // count):
            yield pa.RecordBatch.from_arrays(columns, names)


def main(result: str, *sizes: str) -> None:
    spark = data.session()
    register(spark)
    spark.dataSource.register(Alone)
    figures: dict[str, dict[str, list[float]]] = {}
    processes = multiprocessing.get_context("spawn").Pool(data.RANKS)
    for name in sizes or SIZES:
        rows, *shape = SIZES[name]
        with tempfile.TemporaryDirectory(prefix="cos_ml_lmdb_") as folder:
            _write(folder, rows, shape)
            frame = spark.read.format("lmdb").option("numPartitions", data.RANKS).load(folder)
            if frame.count() != rows:
                raise RuntimeError(f"{name}: expected {rows} rows, found {frame.count()}")
            alone = spark.read.format("alone").options(rows=rows, size=int(np.prod(shape))).load()
            reader = LmdbReader(folder, False, data.RANKS, DATUMS.names)
            parts = [(reader, part) for part in reader.partitions()]
            ways: dict[str, Callable[[], object]] = {
                "source": lambda frame=frame: data.run_all(frame),
                "reader": lambda parts=parts: processes.starmap(_read, parts, 1),
                "cursor": lambda folder=folder: _loop(folder),
                "cursor, protobuf": lambda folder=folder: _parse(folder),
                "Spark alone": lambda alone=alone: data.run_all(alone),
            }
            seconds = _seconds(ways)
        figures[name] = {way: [rows / one for one in taken] for way, taken in seconds.items()}
        medians = {way: statistics.median(rates) for way, rates in figures[name].items()}
        ratios = {
            f"time of {product} to {peer}": medians[peer] / medians[product]
            for product, peer in (
                ("source", "cursor"), ("source", "cursor, protobuf"), ("source", "Spark alone"),
                ("Spark alone", "cursor"), ("reader", "cursor"),
            )
        }  # fmt: skip
        print(name, {what: round(figure, 2) for what, figure in (medians | ratios).items()}, flush=True)
    processes.terminate()
    data.report(result, figures)


def _write(folder: str, rows: int, shape: list[int]) -> None:
    pixels = np.random.default_rng(data.SEED).integers(0, 256, np.prod(shape), np.uint8).tobytes()
    with lmdb.open(folder, map_size=8 << 30) as environment, environment.begin(write=True) as transaction:
        for row in range(rows):
            value = datum.encode(*shape, pixels, row % 1000, None, False)
            transaction.put(b"%08d" % row, value, append=True)


def _read(reader: LmdbReader, part: PageRange) -> int:
    return sum(batch.num_rows for batch in reader.read(part))


def _loop(folder: str) -> None:
    with lmdb.open(folder, readonly=True, lock=False) as environment, environment.begin() as transaction:
        for _key, _value in transaction.cursor():
            pass


def _parse(folder: str) -> None:
    message = _message()
    with lmdb.open(folder, readonly=True, lock=False) as environment, environment.begin() as transaction:
        for _key, value in transaction.cursor():
            found = message.FromString(value)
            _row = (found.label, found.channels, found.height, found.width, found.encoded, found.data)


def _message() -> Any:
    """Caffe's message Datum, as Google's package has it."""
    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="caffe", syntax="proto2")
    message = file.message_type.add(name="Datum")
    kinds = descriptor_pb2.FieldDescriptorProto
    numbers = [("channels", 1), ("height", 2), ("width", 3), ("label", 5)]
    for name, number in numbers:
        message.field.add(name=name, number=number, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="data", number=4, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="float_data", number=6, type=kinds.TYPE_FLOAT, label=kinds.LABEL_REPEATED)
    message.field.add(name="encoded", number=7, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Datum"))


def _seconds(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(ROUNDS):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
