"""Look at all of an HDF5 file (a process of its own, which the driver starts): ``python -P h5_look.py PATH``.

The HDF5 library does not return from some damaged files, and crashes on others: here it may.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import h5py

__all__ = ["look"]

SECONDS = 5  # of the processor, after which the kernel ends the process


def look(path: str) -> None:
    """Read the attributes of every object, each once."""

    def visit(_: str, one: Any) -> None:  # what returns a value ends the visit
        dict(one.attrs)

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    look(sys.argv[1])
