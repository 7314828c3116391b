"""Damages LMDB files at random and reads them: ``python -m tests.support.lmdb_fuzz COUNT [SEED]``, ``make fuzz-lmdb``.

A damaged file is read or refused. It must never take memory or time beyond its size, nor the process with it: each
batch of files is read by a child process with a time limit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lmdb

from cos_ml.sources.lmdb_pages import Malformed, NamedDatabase, open_pages

PER_CHILD = 2000
SECONDS = 120  # for a child, which takes a few seconds
PARTS = 3


def make(folder: Path) -> list[Path]:
    """Small databases of each kind."""
    made = []
    for name, how in {
        "plain": {},
        "duplicates": {"dupsort": True},
        "fixed": {"dupsort": True, "dupfixed": True},
        "numbers": {"integerkey": True},
        "empty": {},
    }.items():
        file = folder / f"{name}.mdb"
        with lmdb.open(str(file), subdir=False, map_size=1 << 26, max_dbs=3) as environment:
            named = name not in ("plain", "empty")
            database = environment.open_db(name.encode(), **how) if named else None
            with environment.begin(write=True, db=database) as transaction:
                for row in range(0 if name == "empty" else 400):
                    key = row.to_bytes(4, "little") if name == "numbers" else b"%08d" % (row // (300 if named else 1))
                    value = row.to_bytes(8, "big") if name == "fixed" else bytes([row % 7]) * (9 + row * 37 % 500)
                    transaction.put(key, value * 20 if name == "plain" and row % 50 == 0 else value)
        made.append(file)
    return made


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A copy with other bytes, mostly among LMDB's offsets and numbers; sometimes cut off or with a page twice."""
    page, count = 4096, len(content) // 4096
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 50])):
        at = chance.randrange(count) * page
        kind = chance.randrange(6)
        if kind == 0:
            at += chance.randrange(page)
        elif kind < 4:
            at += chance.randrange(160)
        else:  # a node: the offsets follow 16 bytes of header
            at += int.from_bytes(changed[at + 16 + 2 * chance.randrange(20) :][:2], "little") % (page - 8)
            at += chance.randrange(8)
        changed[at] = chance.choice([0, 1, 2, 4, 0x7F, 0x80, 0xFF, chance.randrange(256), changed[at] ^ 1])
    if chance.random() < 0.1:
        one, other = (chance.randrange(count) * page for _ in range(2))
        changed[one : one + page] = content[other : other + page]
    return bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.05 else changed)


def read(file: Path) -> str:
    """Read a file in every way, as several tasks do; returns what came of it."""
    size = file.stat().st_size
    try:
        with open_pages(str(file)) as pages:
            trees = [pages.main, *(tree for _, tree in pages.databases())]
        outcome = "read"
        for tree in trees[:20]:
            with open_pages(str(file)) as pages:
                parts = pages.parts(tree, PARTS)
            for part in parts:
                taken = 0
                with open_pages(str(file)) as pages:
                    try:
                        for keys, values in pages.records(part):
                            assert len(keys) == len(values)
                            taken += sum(map(len, values))
                            assert taken <= 2 * size, "more bytes than the file has"
                    except NamedDatabase:
                        outcome = "named"
    except Malformed as error:
        return " ".join(str(error).partition(": it has")[0].split()[:6])
    return outcome


def run(count: int, seed: int) -> dict[str, int]:
    """Read ``count`` damaged files in this process; returns how often what came of it."""
    chance = random.Random(seed)
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        contents = [file.read_bytes() for file in make(Path(folder))]
        file = Path(folder, "damaged.mdb")
        for _ in range(count):
            file.write_bytes(damaged(chance.choice(contents), chance))
            outcome = read(file)
            found[outcome] = found.get(outcome, 0) + 1
    return found


def main(count: int, seed: int) -> int:
    """Run child processes; returns the number of those that crashed, hung or raised what they should not."""
    failures, start = 0, time.perf_counter()
    for child in range(-(-count // PER_CHILD)):
        command = [
            sys.executable,
            "-c",
            f"from tests.support.lmdb_fuzz import run; print(run({PER_CHILD}, {seed + child}))",
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            failed = done.returncode != 0
            print(seed + child, done.stderr[-2000:] if failed else done.stdout.strip()[:300], flush=True)
        except subprocess.TimeoutExpired:
            failed = True
            print(seed + child, "took too long", flush=True)
        failures += failed
    print(f"{child + 1} children of {PER_CHILD} files in {time.perf_counter() - start:.0f} s: {failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) != 0)
