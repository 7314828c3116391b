"""Measure the product and its peers in one run: ``python -m tests.benchmarks [PART ...]``.

Medians, with the least and the most. Seconds on one machine mean little on the next; the ratios of one run are what
counts. Nothing fails for being slow.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.benchmarks.parts import MORE, PARTS, Bench
from tests.benchmarks.table import HEAD

PACKAGES = ("cos-ml", "pyspark", "tensorflow-cpu", "keras", "horovod", "pyarrow", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; without: all but {', '.join(MORE)}")
    parser.add_argument(
        "--peer", metavar="PYTHON",
        help="the python of an environment with Horovod's KerasEstimator (without: made once, and kept in the cache)",
    )  # fmt: skip
    chosen = parser.parse_args()
    if unknown := set(chosen.part) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    print(f"{machine()}\n\n{HEAD}", flush=True)
    begin = time.monotonic()
    for name in chosen.part or [name for name in PARTS if name not in MORE]:
        measure(name, chosen.peer)
    print(f"\n{(time.monotonic() - begin) / 60:.1f} minutes; load now {os.getloadavg()[0]:.1f}")


def measure(name: str, peer: str | None) -> None:
    """Print the lines of one part, or why there are none: the others are measured all the same."""
    if sys.stderr.isatty():
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="cos_ml_benchmarks_", ignore_cleanup_errors=True) as folder:
        try:
            print("\n".join(map(str, PARTS[name](Bench(Path(folder), peer)))), flush=True)
        except (Exception, SystemExit) as error:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            print(f"{name}: not measured: {str(error).splitlines()[-1]}", flush=True)
            print(error, file=sys.stderr)


def machine() -> str:
    """Where and with what this was measured."""
    found = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, CPython {platform.python_version()}\n{versions}"
    )


if __name__ == "__main__":
    main()
