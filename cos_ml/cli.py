"""The command line, ``cos-ml`` (driver side)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cos_ml
from cos_ml import converting, horovod_build
from cos_ml.errors import CosMLError

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
    first, last = (".".join(map(str, minor)) for minor in horovod_build.TENSORFLOWS)
    install = commands.add_parser(
        "install-horovod",
        help="build Horovod for this environment's TensorFlow, install it, and check an allreduce",
        description=f"Build Horovod {horovod_build.HOROVOD} for this environment's TensorFlow ({first} to {last}), "
        "install it, and check an "
        f"allreduce between two ranks. The wheel is kept in {horovod_build.cache_folder()} ($COS_ML_CACHE sets "
        "another folder).",
    )
    install.add_argument(
        "--force", action="store_true", help="build again even where a wheel is cached or Horovod is installed"
    )
    install.set_defaults(command=horovod_build.install)
    convert = commands.add_parser(
        "convert",
        help="make Parquet, LMDB or SequenceFiles of images, LMDB or Parquet",
        description="Make files of one kind of files of another, on this machine. The target appears when it is whole; "
        "the same command goes on where one was stopped.",
    )
    _add_conversions(convert.add_subparsers(title="conversions", required=True, metavar="CONVERSION"))
    return parser


def _add_conversions(conversions: Any) -> None:
    def add(name: str, command: Callable[..., None], help: str, source: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = conversions.add_parser(name, help=help, description=f"Convert {help}.")
        parser.add_argument("source", metavar="SOURCE", help=source)
        parser.add_argument("target", metavar="TARGET", help="a folder to make; it must not be there yet")
        parser.set_defaults(command=command)
        return parser

    images = add(
        "images-to-parquet", converting.images_to_parquet, "image files with labels, undecoded, to Parquet",
        "a folder of images",
    )  # fmt: skip
    images.add_argument(
        "--labels", required=True, metavar="FILE", help="lines of an image's path in the folder and a whole number"
    )
    database = "an LMDB database: a folder that holds data.mdb, or a file"
    parquet = add("lmdb-to-parquet", converting.lmdb_to_parquet, "an LMDB of Caffe's Datums to Parquet", database)
    add(
        "lmdb-to-sequencefile", converting.lmdb_to_sequence_file, "an LMDB to SequenceFiles (Text, BytesWritable)",
        database,
    )  # fmt: skip
    lmdb = add(
        "parquet-to-lmdb", converting.parquet_to_lmdb, "Parquet to an LMDB of Caffe's Datums",
        "a Parquet file or a folder of them: id, data, label, encoded, channels, height, width, float_data",
    )  # fmt: skip
    lmdb.add_argument("--id", default="id", dest="id_column", metavar="COLUMN", help="the column of the keys")
    for each in (parquet, lmdb):
        each.add_argument("--raw", action="store_true", help="columns key and value, instead of Datums")


if __name__ == "__main__":
    sys.exit(main())
