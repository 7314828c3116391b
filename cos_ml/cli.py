"""The command line, ``cos-ml`` (driver side)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cos_ml
from cos_ml.commands import caffe, completion, flags
from cos_ml.commands.session import CONF_DIR, key_values, session
from cos_ml.commands.settings import UsageError
from cos_ml.errors import CosMLError, from_spark
from cos_ml.horovod_build import build, wheelhouse
from cos_ml.sources import convert
from cos_ml.terminal import tell

__all__ = ["main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for a usage error, 130 for Ctrl-C."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before Python started; to print would write to the other one
            setattr(sys, name, open(os.devnull, "w"))
    reader = parser()
    found, rest = reader.parse_known_args(arguments)
    chosen = vars(found)
    command = chosen.pop("command")
    if chosen.pop("takes_params", False):
        chosen["rest"] = rest
    elif rest:
        reader.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        command(**chosen)
    except KeyboardInterrupt:
        tell("cos-ml: interrupted")
        return 130
    except BrokenPipeError:  # of "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except Exception as error:
        message = _message(error)
        if message is None:  # an error of cos_ml's own
            raise
        tell(f"cos-ml: {message}")
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _message(error: Exception) -> str | None:
    """What to print of an error: its message, without the stack of the JVM; None for one that is unexpected."""
    if isinstance(error, (CosMLError, OSError)):
        return str(error)
    if type(error).__module__.partition(".")[0] not in ("pyspark", "py4j"):
        return None
    known = from_spark(error)
    return str(error).split("\n\tat ")[0].split("\n\nJVM stacktrace")[0].strip() if known is None else str(known)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    made = argparse.ArgumentParser(prog="cos-ml", description="Deep nets as Spark ML stages.")
    made.add_argument("--version", action="version", version=f"cos-ml {cos_ml.__version__}")
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    flags.add(commands)
    caffe.add(commands)
    _add_install(commands)
    _add_wheels(commands)
    _add_check(commands)
    _add_convert(commands)
    script = commands.add_parser(
        "script",
        help="print the path of the file for spark-submit",
        description='Print the path of the file that spark-submit runs: spark-submit "$(cos-ml script)" train ...',
    )
    script.set_defaults(command=lambda: print(CONF_DIR / "submit.py"))
    completion.add(commands)
    return made


def _add_install(commands: Any) -> None:
    first, last = (".".join(map(str, minor)) for minor in build.TENSORFLOWS)
    install = commands.add_parser(
        "install-horovod",
        help="build Horovod for this environment's TensorFlow, install it, and test an allreduce",
        description=f"Build Horovod {build.HOROVOD} for this environment's TensorFlow ({first} to {last}), install it, "
        f"and test an allreduce between two ranks. The wheel is cached in {build.cache_folder()}; $COS_ML_CACHE sets "
        "another folder.",
    )
    install.add_argument("--force", action="store_true", help="build even if a wheel is cached or Horovod is installed")
    install.add_argument(
        "--find-links",
        metavar="PLACE",
        help="a folder or URL with the wheel, as horovod-wheels makes it: build none",
    )
    install.add_argument(
        "--gpu", action="store_true", help="build with NCCL for GPUs; needs the CUDA toolkit (nvcc) and 'cos-ml[gpu]'"
    )
    install.set_defaults(command=build.install)


def _add_wheels(commands: Any) -> None:
    first, last = (".".join(map(str, minor)) for minor in build.TENSORFLOWS)
    wheels = commands.add_parser(
        "horovod-wheels",
        help="build wheels of Horovod for several versions of TensorFlow and Python, to install elsewhere",
        description="Build a wheel of Horovod for each TensorFlow on each Python, each in an environment of its own, "
        "and test an allreduce with each. Elsewhere, cos-ml install-horovod --find-links FOLDER installs the right one",
    )
    option = wheels.add_argument
    option("--tensorflow", nargs="+", default=[], metavar="VERSION",
           help=f"{first} to {last}; 2.20 is its newest release (default: this environment's)")  # fmt: skip
    option("--python", nargs="+", default=[], metavar="PYTHON", help="names or paths (default: this one)")
    option("--output", default="wheelhouse", metavar="FOLDER", help="where the wheels go (default: %(default)s)")
    option("--gpu", action="store_true", help="build with NCCL for GPUs; needs the CUDA toolkit (nvcc)")
    wheels.set_defaults(command=wheelhouse.build_wheels)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="check a cluster: versions, GPUs, network interfaces and allreduce bandwidth",
        description="Start ranks on a cluster as a fit does, and print their versions, how Horovod was built, their "
        "GPUs and network interfaces, and the bandwidth of an allreduce between them.",
    )
    option, default = check.add_argument, "(default: %(default)s)"
    option("--master", default="local[2]", metavar="URL", help=f"Spark master {default}")
    option("--conf", action="append", default=[], metavar="KEY=VALUE", help="Spark setting; repeatable")
    option("--ranks", type=int, default=2, metavar="N", help=f"number of ranks {default}")
    option("--gpu", action="store_true", help="use one GPU per rank, assigned by Spark")
    option("--no-barrier", action="store_false", dest="barrier", help="as with useBarrier=False")
    option("--interface", metavar="NAME", help="network interface between the ranks")
    option("--megabytes", type=int, default=64, metavar="N", help=f"size of the allreduced array {default}")
    check.set_defaults(command=_check)


def _check(
    master: str, conf: list[str], ranks: int, gpu: bool, barrier: bool, interface: str | None, megabytes: int
) -> None:
    """Print the report of ``cos_ml.cluster_check`` for a new Spark session."""
    with session("check", master, {"spark.ui.enabled": "false"} | key_values(conf, "--conf")) as spark:
        from cos_ml import cluster_check

        print(cluster_check.report(spark, ranks, gpu, interface, megabytes, barrier))


def _add_convert(commands: Any) -> None:
    conversions = commands.add_parser(
        "convert",
        help="convert datasets between formats: images, LMDB, Parquet, SequenceFile",
        description="Convert datasets between formats, on this machine. The target appears when it is complete; "
        "repeat the command to resume an interrupted conversion.",
    ).add_subparsers(title="conversions", required=True, metavar="CONVERSION")

    def add(name: str, command: Callable[..., None], what: str, source: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = conversions.add_parser(name, help=what, description=f"Convert {what}.")
        parser.add_argument("source", metavar="SOURCE", help=source)
        parser.add_argument("target", metavar="TARGET", help="folder to create; it must not exist yet")
        parser.set_defaults(command=command)
        return parser

    images = add("images-to-parquet", convert.images_to_parquet, "labeled image files, undecoded, to Parquet",
                 "folder of images")  # fmt: skip
    labels = "lines of an image path within SOURCE and an integer label"
    images.add_argument("--labels", required=True, metavar="FILE", help=labels)
    lmdb = "LMDB database: a folder that contains data.mdb, or a file"
    to_parquet = add("lmdb-to-parquet", convert.lmdb_to_parquet, "an LMDB of Caffe Datums to Parquet", lmdb)
    to_files = add(
        "lmdb-to-sequencefile", convert.lmdb_to_sequence_file, "an LMDB to SequenceFiles of (Text, BytesWritable)",
        lmdb,
    )  # fmt: skip
    to_lmdb = add(
        "parquet-to-lmdb", convert.parquet_to_lmdb, "Parquet to an LMDB of Caffe Datums",
        "Parquet file or folder with columns id, data, label, encoded, channels, height, width, float_data",
    )  # fmt: skip
    to_lmdb.add_argument("--id", default="id", dest="id_column", metavar="COLUMN", help="column of the LMDB keys")
    for parser in (to_parquet, to_files):
        parser.add_argument("--database", metavar="NAME", help="the database to read, in a file with named ones")
    for parser in (to_parquet, to_lmdb):
        parser.add_argument("--raw", action="store_true", help="use columns key and value instead of Datums")


if __name__ == "__main__":
    sys.exit(main())
