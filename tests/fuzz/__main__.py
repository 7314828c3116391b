"""Reads damaged files of a format: ``python -m tests.fuzz FORMAT [FILES] [SEED]``, ``make fuzz``.

A damaged file is read or refused by a documented exception. A process with a bound of memory reads them, one after the
other; here it is watched: a signal that ends it is a crash, and more than 10 s of the processor, or five minutes, for
a file a hang. Whatever is wrong is kept as a file in build/fuzz.
"""

from __future__ import annotations

import argparse
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.cases import case
from tests.fuzz.formats import FORMATS

SECONDS = 10.0  # of the processor, for a file
LONGEST = 300.0  # seconds for a file, however slow the machine is
START = 600.0  # seconds for a process to import what it needs, beside whatever else runs
PER_PROCESS = 2500  # files
KEPT = Path("build/fuzz")


def watched(name: str, folder: Path, seed: int, first: int, last: int) -> Iterator[tuple[int, str]]:
    """The number and the outcome of each file until ``last``, or until one that the process does not survive."""
    command = [sys.executable, "-m", "tests.fuzz.cases", name, str(folder), *map(str, (seed, first, last))]
    log = folder / "log"
    with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        assert child.stdout is not None
        at = None  # until it has started
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while at != last:
                begun, used = time.monotonic(), seconds_of(child.pid)
                while not (news := ready.select(1.0)) and time.monotonic() - begun < (START if at is None else LONGEST):
                    if at is not None and seconds_of(child.pid) - used > SECONDS:
                        break
                line = child.stdout.readline() if news else ""
                if not line:
                    break
                number, _, outcome = line.rstrip("\n").partition(" ")
                if number.isdigit():
                    yield int(number), outcome
                    at = int(number) + 1
                elif number == "ready":
                    at = first
        if at != last:
            hangs = not news
            child.kill()
            code = child.wait()
            if at is None:
                sys.exit(f"The process has not started: {log.read_text()[-2000:]}")
            yield at, "hangs" if hangs else f"crash: exit {code}: {log.read_text()[-300:]!r}"


def seconds_of(process: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(name: str, files: int, seed: int) -> Counter[str]:
    """How often what came of ``files`` damaged files; what is wrong is printed as it is found."""
    found: Counter[str] = Counter()
    kind = FORMATS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "good").mkdir()
        code = f"import pathlib, tests.fuzz.formats as f; f.FORMATS[{name!r}].make(pathlib.Path({scratch!r}, 'good'))"
        subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
        goods = [file.read_bytes() for file in sorted((folder / "good").iterdir())]
        done = 0
        while done < files:
            for index, outcome in watched(name, folder, seed, done, min(done + PER_PROCESS, files)):
                done = index + 1
                found[outcome if outcome in ("read", "refused") else f"WRONG {outcome[:60]}"] += 1
                if outcome not in ("read", "refused"):
                    KEPT.mkdir(parents=True, exist_ok=True)
                    kept = KEPT / f"{name}-{seed}-{index}{kind.ending}"
                    kept.write_bytes(case(kind, goods, seed, index))
                    print(f"{kept}: {outcome}", flush=True)
    return found


def main() -> int:
    """The command; its exit status is 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("format", choices=[*FORMATS, "all"])
    parser.add_argument("files", type=int, nargs="?", default=10_000)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    given = parser.parse_args()
    wrong = 0
    for name in FORMATS if given.format == "all" else [given.format]:
        start = time.monotonic()
        found = run(name, given.files, given.seed)
        bad = sum(count for what, count in found.items() if what.startswith("WRONG"))
        print(f"{name}: {given.files:,} files in {time.monotonic() - start:.0f} s: {found['read']:,} read, "
              f"{found['refused']:,} refused, {bad} wrong", flush=True)  # fmt: skip
        wrong += bad
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
