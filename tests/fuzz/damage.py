"""Changes bytes of files at random, always the same ones for one seed."""

from __future__ import annotations

import random
import zipfile
from io import BytesIO

TELLING = (0, 1, 2, 4, 0x7F, 0x80, 0xFF)  # bytes on which signs, sizes and ends depend


def damaged(content: bytes, chance: random.Random, begin: int = 0) -> bytes:
    """A copy with 1 to 30 other bytes from ``begin`` on, often close together; some are cut off, some doubled."""
    if len(content) <= begin:
        return content
    changed = bytearray(content)
    place = chance.randrange(begin, len(changed))
    for _ in range(chance.choice([1, 1, 2, 3, 5, 10, 30])):
        near = chance.random() < 0.5
        at = min(place + chance.randrange(16), len(changed) - 1) if near else chance.randrange(begin, len(changed))
        changed[at] = chance.choice([*TELLING, chance.randrange(256), changed[at] ^ 1 << chance.randrange(8)])
    how = chance.random()
    if how < 0.05:
        del changed[chance.randrange(begin, len(changed)) :]
    elif how < 0.08:
        changed[place:place] = changed[chance.randrange(begin, len(changed)) :][: chance.randrange(1, 100)]
    return bytes(changed)


def damaged_member(archive: bytes, chance: random.Random) -> bytes:
    """A zip archive one of whose members has other bytes, and a right checksum of them."""
    with zipfile.ZipFile(BytesIO(archive)) as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = chance.choice(sorted(members))
    members[name] = damaged(members[name], chance)
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
    return file.getvalue()
