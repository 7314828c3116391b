"""Finds keys that divide an LMDB database evenly, without reading the database (driver side).

LMDB's API has no rank of a key and no count of a range. Reading all keys would: it takes 0.06 s for 60,000 records of
800 bytes, but 3 s per million of them and as long as a database of inline values takes to read. The inner pages of the
database's B-tree, some hundred whatever its size, contain evenly spaced keys; this module reads them from the file.

The format is that of mdb.c in OpenLDAP. A misread page could only make the ranges uneven, never wrong. Pages 0 and 1
describe the tree; the one of the later transaction is valid. An inner page consists of a table of offsets and of nodes,
each with a page number and the smallest key on that page.
"""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["even_keys"]

_META = struct.Struct("=16xII16x")  # magic number, version
_TREE = struct.Struct("=IHH4Q")  # page size, flags, depth; branch, leaf and overflow pages, entries
_PAGE = struct.Struct("=10xHH2x")  # flags, end of the table
_NODE = struct.Struct("=HHHH")  # the page number in three parts, the size of the key
_MAGIC, _VERSION, _BRANCH = 0xBEEFC0DE, 1, 1


def even_keys(environment: Any, file: str, count: int) -> list[bytes]:
    """Sorted keys that divide the database into ``count`` ranges of about equal size; fewer if it has few records.

    Args:
        environment: the open database.
        file: its file.
        count: the number of ranges.
    """
    with environment.begin() as transaction:
        flags = environment.open_db(None, txn=transaction, create=False).flags(transaction)
        if flags["reverse_key"] or flags["integerkey"]:  # such keys are not sorted by their bytes
            return []
        if environment.stat()["entries"] <= 256 * count:  # a few pages for each range
            keys = list(transaction.cursor().iternext(keys=True, values=False))
        else:
            keys = _inner_keys(file, environment.stat()["psize"], 64 * count)
    chosen = {keys[at * len(keys) // count] for at in range(1, count)} if keys else set()
    return sorted(chosen - set(keys[:1]))  # nothing comes before the first key


def _inner_keys(file: str, size: int, enough: int) -> list[bytes]:
    """The keys of the first level of inner pages that has ``enough`` of them; pages have ``size`` bytes."""
    with open(file, "rb") as pages:
        root, depth = max(_meta(_page(pages, number, size)) for number in (0, 1))[1:]
        level = [(b"", root)]
        for _ in range(depth - 1):
            level = [child for key, number in level for child in _children(key, _page(pages, number, size))]
            if len(level) >= enough:
                break
    return [key for key, _ in level]


def _page(pages: Any, number: int, size: int) -> bytes:
    pages.seek(number * size)
    return pages.read(size)


def _meta(page: bytes) -> tuple[int, int, int]:
    """The transaction, and the root and the depth of its tree; depth 0 if the format is unknown."""
    if _META.unpack_from(page) != (_MAGIC, _VERSION):
        return 0, 0, 0
    main = 40 + 48  # after the header and the tree of free pages
    _, _, depth, *_ = _TREE.unpack_from(page, main)
    root, _, transaction = struct.unpack_from("=QQQ", page, main + _TREE.size)
    return transaction, root, depth


def _children(least: bytes, page: bytes) -> list[tuple[bytes, int]]:
    """The smallest key and the page of each node of an inner page; the first node omits its key, ``least``."""
    flags, end = _PAGE.unpack_from(page)
    if not flags & _BRANCH:
        return []
    found = []
    for at in struct.unpack_from(f"={(end - _PAGE.size) // 2}H", page, _PAGE.size):
        low, middle, high, length = _NODE.unpack_from(page, at)
        start = at + _NODE.size
        found.append((page[start : start + length] or least, low | middle << 16 | high << 32))
    return found
