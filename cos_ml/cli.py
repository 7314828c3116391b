"""The command line, ``cos-ml`` (driver side)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import cos_ml
from cos_ml import horovod_build
from cos_ml.errors import CosMLError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 after a message on standard error."""
    chosen = _parser().parse_args(arguments)
    try:
        horovod_build.install(force=chosen.force)
    except CosMLError as error:
        print(f"cos-ml: {error}", file=sys.stderr)
        return 1
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
    return parser


if __name__ == "__main__":
    sys.exit(main())
