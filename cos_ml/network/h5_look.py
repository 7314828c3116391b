"""Look at all of an HDF5 file (a process of its own, which the driver starts): ``python -P h5_look.py PATH``.

The HDF5 library does not return from some damaged files, and crashes on others: here it may.
"""

from __future__ import annotations

import sys

import h5py

__all__ = ["look"]


def look(path: str) -> None:
    """Read the attributes and the arrays' types of every object, each once."""
    with h5py.File(path) as file:
        dict(file.attrs)
        file.visititems(lambda _, one: dict(one.attrs) and None)


if __name__ == "__main__":
    look(sys.argv[1])
