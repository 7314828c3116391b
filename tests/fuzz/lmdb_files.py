"""Small LMDB databases of each kind, and damage that hits what LMDB calculates with."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb


def make(folder: Path) -> None:
    """Small databases of each kind."""
    for name, how in {
        "plain": {},
        "duplicates": {"dupsort": True},
        "fixed": {"dupsort": True, "dupfixed": True},
        "numbers": {"integerkey": True},
        "empty": {},
    }.items():
        file = folder / f"{name}.mdb"
        with lmdb.open(str(file), subdir=False, map_size=1 << 26, max_dbs=3, lock=False) as environment:
            named = name not in ("plain", "empty")
            database = environment.open_db(name.encode(), **how) if named else None
            with environment.begin(write=True, db=database) as transaction:
                for row in range(0 if name == "empty" else 400):
                    key = row.to_bytes(4, "little") if name == "numbers" else b"%08d" % (row // (300 if named else 1))
                    value = row.to_bytes(8, "big") if name == "fixed" else bytes([row % 7]) * (9 + row * 37 % 500)
                    transaction.put(key, value * 20 if name == "plain" and row % 50 == 0 else value)


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
