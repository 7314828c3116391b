"""The command line, ``cos-ml`` (driver side)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cos_ml
from cos_ml.errors import CosMLError, InvalidInputError
from cos_ml.horovod_build import build
from cos_ml.sources import convert

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 (130 for Ctrl-C) after a message on standard error."""
    chosen = vars(_parser().parse_args(arguments))
    command = chosen.pop("command")
    try:
        command(**chosen)
    except (CosMLError, OSError) as error:
        print(f"cos-ml: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cos-ml: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cos-ml", description="Deep nets as Spark ML stages.")
    parser.add_argument("--version", action="version", version=f"cos-ml {cos_ml.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    first, last = (".".join(map(str, minor)) for minor in build.TENSORFLOWS)
    install = commands.add_parser(
        "install-horovod",
        help="build Horovod for this environment's TensorFlow, install it, and check an allreduce",
        description=f"Build Horovod {build.HOROVOD} for this environment's TensorFlow ({first} to {last}), "
        "install it, and check an "
        f"allreduce between two ranks. The wheel is kept in {build.cache_folder()} ($COS_ML_CACHE sets "
        "another folder).",
    )
    install.add_argument(
        "--force", action="store_true", help="build again even where a wheel is cached or Horovod is installed"
    )
    install.add_argument(
        "--gpu", action="store_true", help="with NCCL for GPUs: wants the CUDA toolkit (nvcc), and 'cos-ml[gpu]'"
    )
    install.set_defaults(command=build.install)
    check = commands.add_parser(
        "check",
        help="start ranks on a cluster: versions, GPUs, network interfaces, and the bandwidth of an allreduce",
        description="Start ranks on a cluster as a fit does, let them add up an array, and print what is there: "
        "versions, what Horovod was built with, GPUs, network interfaces, and the bandwidth of the allreduce.",
    )
    check.add_argument("--master", default="local[2]", metavar="URL", help="Spark's master (default: %(default)s)")
    check.add_argument(
        "--conf", action="append", default=[], metavar="KEY=VALUE", help="a setting of Spark's; may be given again"
    )
    check.add_argument("--ranks", type=int, default=2, metavar="N", help="how many (default: %(default)s)")
    check.add_argument("--gpu", action="store_true", help="each on the GPU that Spark gives it")
    check.add_argument("--interface", metavar="NAME", help="the network interface between them")
    check.add_argument(
        "--megabytes", type=int, default=64, metavar="N", help="size of the array (default: %(default)s)"
    )
    check.set_defaults(command=_check)
    convert = commands.add_parser(
        "convert",
        help="make Parquet, LMDB or SequenceFiles of images, LMDB or Parquet",
        description="Make files of one kind of files of another, on this machine. The target appears when it is whole; "
        "the same command goes on where one was stopped.",
    )
    _add_conversions(convert.add_subparsers(title="conversions", required=True, metavar="CONVERSION"))
    return parser


def _check(master: str, conf: list[str], ranks: int, gpu: bool, interface: str | None, megabytes: int) -> None:
    """Imported here: the other commands need no Spark session."""
    from pyspark.sql import SparkSession

    from cos_ml.job import cluster_check

    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("cos-ml check").master(master).config("spark.ui.enabled", "false")
    for setting in conf:
        key, equals, value = setting.partition("=")
        if not equals:
            raise InvalidInputError(f"--conf {setting}: expected KEY=VALUE.")
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        spark.sparkContext.setLogLevel("ERROR")
        print(cluster_check.report(spark, ranks, gpu, interface, megabytes))
    finally:
        spark.stop()


def _add_conversions(conversions: Any) -> None:
    def add(name: str, command: Callable[..., None], help: str, source: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = conversions.add_parser(name, help=help, description=f"Convert {help}.")
        parser.add_argument("source", metavar="SOURCE", help=source)
        parser.add_argument("target", metavar="TARGET", help="a folder to make; it must not be there yet")
        parser.set_defaults(command=command)
        return parser

    images = add(
        "images-to-parquet", convert.images_to_parquet, "image files with labels, undecoded, to Parquet",
        "a folder of images",
    )  # fmt: skip
    images.add_argument(
        "--labels", required=True, metavar="FILE", help="lines of an image's path in the folder and a whole number"
    )
    database = "an LMDB database: a folder that holds data.mdb, or a file"
    parquet = add("lmdb-to-parquet", convert.lmdb_to_parquet, "an LMDB of Caffe's Datums to Parquet", database)
    add(
        "lmdb-to-sequencefile", convert.lmdb_to_sequence_file, "an LMDB to SequenceFiles (Text, BytesWritable)",
        database,
    )  # fmt: skip
    lmdb = add(
        "parquet-to-lmdb", convert.parquet_to_lmdb, "Parquet to an LMDB of Caffe's Datums",
        "a Parquet file or a folder of them: id, data, label, encoded, channels, height, width, float_data",
    )  # fmt: skip
    lmdb.add_argument("--id", default="id", dest="id_column", metavar="COLUMN", help="the column of the keys")
    for each in (parquet, lmdb):
        each.add_argument("--raw", action="store_true", help="columns key and value, instead of Datums")


if __name__ == "__main__":
    sys.exit(main())
