"""A process that reads damaged files, and says of each what came of it: started by ``tests/fuzz/__main__.py``."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import random
import resource
import sys
import warnings
from pathlib import Path

from tests.fuzz.formats import FORMATS, Format

MEMORY = 2 << 30  # bytes that a process may take beside what it has imported
FILLS = (0x00, 0xA5)  # what malloc fills memory with: values that depend on it are none of the file's
M_PERTURB = -6  # glibc's number of that setting


def outcome_of(kind: Format, content: bytes, file: Path) -> str:
    """ "read", "refused", or what is wrong: an exception that is not documented, or bytes that are not the file's."""
    file.write_bytes(content)
    found = set()
    for fill in FILLS if kind.twice else FILLS[:1]:
        ctypes.CDLL(None).mallopt(M_PERTURB, fill)
        try:
            values = kind.read(file)
        except kind.refusals:
            return "foreign bytes: read once, then refused" if found else "refused"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
        if kind.inside and not all(value in content for value in values):
            return "foreign bytes"
        found.add(hashlib.sha256(b"\0".join(values)).digest())
    return "read" if len(found) == 1 else "foreign bytes: other values each time"


def case(kind: Format, goods: list[bytes], seed: int, index: int) -> bytes:
    """The damaged file of this number."""
    chance = random.Random(f"{seed}/{index}")
    return kind.damage(chance.choice(goods), chance)


def main(name: str, folder: str, seed: int, first: int, last: int) -> None:
    """Read the files ``first`` to ``last`` (excluded); a line of output for each before it is read, and one after."""
    warnings.simplefilter("ignore")
    kind, goods = FORMATS[name], [file.read_bytes() for file in sorted(Path(folder, "good").iterdir())]
    scratch = Path(folder, f"damaged{kind.ending}")
    for good in goods:  # imports what reading takes
        assert outcome_of(kind, good, scratch) == "read", f"a good file is not read: {outcome_of(kind, good, scratch)}"
    size = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for index in itertools.islice(itertools.count(first), last - first):
        print(index, outcome_of(kind, case(kind, goods, seed, index), scratch), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
