"""Reads the pages of an LMDB file, which may be damaged or hostile (driver side; records: tasks).

The C library trusts a file: a wrong offset makes it read outside of the file or crash the process, and a page that
leads back to itself keeps it busy forever. This reader takes nothing from outside of the file, stops at what
contradicts the format, and reads no more pages than there are.

The format is that of mdb.c in OpenLDAP, version 1, as 64-bit little-endian machines write it. Pages 0 and 1 describe
two trees, of free pages and of records; the one of the later transaction is valid. A page consists of a table of
offsets and of nodes. A node of an inner page has the number of a page below it. A node of a leaf has a key and a value,
or instead of the value the number of the first of several pages with a large one, the duplicates of the key, or the
tree of a named database.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Malformed", "NamedDatabase", "PageFile", "Records", "Span", "Tree", "open_pages"]

_META = struct.Struct("=16xII16xI")  # magic number, version, page size
_META_BYTES = 152
_TREE = struct.Struct("=4xHH24xQQ")  # flags, depth, records, root
_PAGE = struct.Struct("=QHHH")  # number, size of values without nodes, kind, end of the table of offsets
_NODE = struct.Struct("=HHHH")  # size of the value or a page (two parts), flags or a third part, size of the key
_HEADER = 16  # bytes of a page before the table
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _WITHOUT_NODES = 0x01, 0x02, 0x04, 0x20  # kinds of pages
_LARGE, _TREE_BELOW, _DUPLICATES = 1, 2, 4  # flags of nodes
_EMPTY = 2**64 - 1  # the root of a tree without pages
_DEPTH = 32  # of a tree, at most: LMDB's own limit
_HELD = 1 << 20  # bytes of large values to hold at a time
_FINE = 64  # nodes for each part of a tree, so that the parts are even

Records = tuple[list[bytes], list[bytes]]  # keys and values


class Malformed(Exception):
    """The file contradicts its format; the text follows its name."""


class NamedDatabase(Exception):
    """A record is a named database."""


@dataclass(frozen=True)
class Span:
    """The nodes from ``start`` to ``stop``, which is excluded, of a page, with all that is below them."""

    page: int
    start: int
    stop: int


@dataclass(frozen=True)
class Tree:
    """The root page of a tree, and how many records it has."""

    root: int
    entries: int

    @classmethod
    def of(cls, description: bytes) -> Tree:
        """The tree that 48 bytes of a file describe."""
        if len(description) != _TREE.size:
            raise Malformed("is damaged: it has an incomplete description of a tree")
        *_, entries, root = _TREE.unpack(description)
        return cls(root, entries)


@contextmanager
def open_pages(path: str) -> Iterator[PageFile]:
    """Open a file. Raises Malformed if it is no LMDB file or truncated, and OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield PageFile(descriptor)
    finally:
        os.close(descriptor)


class PageFile:
    """An open file. Each object reads as many pages as the file has, and fails then: there is a cycle.

    Attributes:
        size: bytes of a page.
        count: the number of pages.
        main: the tree of all records.
    """

    def __init__(self, descriptor: int) -> None:
        """Read what describes the file. Raises Malformed if it is no LMDB file or truncated."""
        self._file = descriptor
        metas = [os.pread(self._file, _META_BYTES, 0)]
        self.size = _page_size(metas[0])
        metas.append(os.pread(self._file, _META_BYTES, self.size))
        if _page_size(metas[1]) != self.size:
            raise Malformed("is damaged: it has pages of several sizes")
        meta = max(metas, key=lambda one: int.from_bytes(one[144:], "little"))  # by the number of the transaction
        self.main = Tree.of(meta[88:136])
        self.count = self._left = int.from_bytes(meta[136:144], "little") + 1
        if (found := os.fstat(self._file).st_size) < self.size * self.count:
            raise Malformed(f"is truncated: it has {found:,} of {self.size * self.count:,} bytes")

    def parts(self, tree: Tree, count: int) -> list[list[Span]]:
        """A tree in ``count`` parts of about equal size; fewer if it has few records.

        Reads the inner pages down to a level that is fine enough: some hundred pages, however large the tree is.
        """
        level = [] if tree.root == _EMPTY else [self._page(tree.root)]
        for _ in range(_DEPTH):
            lengths = [len(_nodes(page)) for _, page in level]
            if not level or sum(lengths) >= _FINE * count or not _is_inner(level[0][1]):
                break
            level = [self._page(below) for _, page in level for below in _below(page, _nodes(page))]
        else:
            raise Malformed("is damaged: it has a tree that is too deep")
        return _cut([(number, length) for (number, _), length in zip(level, lengths, strict=True)], count)

    def records(self, spans: Sequence[Span]) -> Iterator[Records]:
        """The keys and values below ``spans``, in order, about a page at a time.

        Raises:
            Malformed: the file contradicts its format.
            NamedDatabase: a record is one.
        """
        for span in spans:
            for number, page, nodes in self._leaves(span.page, span.start, span.stop):
                yield from self._records(number, page, nodes)

    def databases(self) -> Iterator[tuple[bytes, Tree]]:
        """The named databases: name and tree."""
        for _, page, nodes in self._leaves(self.main.root):
            keys, values, others = _entries(page, nodes)
            for at, (flags, _) in others.items():
                if flags == _TREE_BELOW:
                    yield keys[at], Tree.of(values[at])

    def _records(self, number: int, page: bytes, nodes: Sequence[int]) -> Iterator[Records]:
        keys, values, others = _entries(page, nodes)
        done = held = 0
        for at, (flags, size) in others.items():
            if flags == _LARGE:
                values[at] = self._large_value(int.from_bytes(values[at], "little"), size)
                held += size
                if held >= _HELD:
                    yield keys[done : at + 1], values[done : at + 1]
                    values[done : at + 1] = [b""] * (at + 1 - done)  # which frees them
                    done, held = at + 1, 0
                continue
            if at > done:
                yield keys[done:at], values[done:at]
            for duplicates in self._duplicates(number, values[at], flags):
                yield [keys[at]] * len(duplicates), duplicates
            done = at + 1
        if done < len(keys):
            yield keys[done:], values[done:]

    def _duplicates(self, number: int, value: bytes, flags: int) -> Iterator[list[bytes]]:
        """The values of a key that has several: in a small page within its node, or in a tree of their own."""
        if flags == _TREE_BELOW:
            raise NamedDatabase
        if flags == _DUPLICATES:
            yield _values(value)
        elif flags == _DUPLICATES | _TREE_BELOW:
            for _, page, _ in self._leaves(Tree.of(value).root):
                yield _values(page)
        else:
            raise Malformed(f"is damaged: it has a record of an unknown kind, {flags}, on page {number}")

    def _leaves(
        self, number: int, start: int = 0, stop: int | None = None, depth: int = _DEPTH
    ) -> Iterator[tuple[int, bytes, Sequence[int]]]:
        """The leaves below a page: number, content, and the offsets of their nodes."""
        if number == _EMPTY:
            return
        if not depth:
            raise Malformed("is damaged: it has a tree that is too deep")
        number, page = self._page(number)
        nodes = _nodes(page)[start:stop]
        if _is_inner(page):
            for below in _below(page, nodes):
                yield from self._leaves(below, depth=depth - 1)
        else:
            yield number, page, nodes

    def _page(self, number: int) -> tuple[int, bytes]:
        page = self._read(number, self.size)
        if not page[10] & (_BRANCH | _LEAF):
            raise Malformed(f"is damaged: it has a page {number} that is none of a tree")
        return number, page

    def _large_value(self, number: int, size: int) -> bytes:
        data = self._read(number, _HEADER + size)
        if not data[10] & _OVERFLOW:
            raise Malformed(f"is damaged: it has a page {number} that is none of a large value")
        return data[_HEADER:]

    def _read(self, number: int, size: int) -> bytes:
        """The first ``size`` bytes of a page and of those that follow it."""
        pages = -(-size // self.size)
        if number < 2 or number + pages > self.count:
            raise Malformed(f"is damaged: it refers to page {number}, but its pages are 2 to {self.count - 1}")
        self._left -= pages
        if self._left < 0:
            raise Malformed("is damaged: it refers to the same pages again and again")
        data = os.pread(self._file, size, number * self.size)
        if len(data) < size:
            raise Malformed(f"is truncated: it ends within page {number}")
        if data[:8] != number.to_bytes(8, "little"):
            raise Malformed(f"is damaged: it has another page in the place of page {number}")
        return data


def _page_size(meta: bytes) -> int:
    """The size of the pages, from a page that describes the file."""
    if len(meta) < _META_BYTES or _META.unpack_from(meta)[0] != _MAGIC:
        raise Malformed("is not a readable LMDB database: it does not begin as one")
    _, version, size = _META.unpack_from(meta)
    if version != _VERSION or not 256 <= size <= 1 << 16 or size & (size - 1):
        raise Malformed(
            f"is not a readable LMDB database: it has version {version} and pages of {size:,} bytes, expected version "
            f"{_VERSION} and a power of 2"
        )
    return int(size)


def _is_inner(page: bytes) -> bool:
    return bool(page[10] & _BRANCH)


def _nodes(page: bytes) -> Sequence[int]:
    """The offsets of the nodes of a page."""
    end = _end(page)
    return struct.unpack_from(f"={(end - _HEADER) // 2}H", page, _HEADER)


def _end(page: bytes) -> int:
    """Where the table of a page ends."""
    end = int(_PAGE.unpack_from(page)[3]) if len(page) >= _HEADER else 0
    if not _HEADER <= end <= len(page):
        raise Malformed("is damaged: it has a page whose table does not fit into it")
    return end


def _below(page: bytes, nodes: Sequence[int]) -> list[int]:
    """The pages to which the nodes of an inner page refer."""
    _check_fit(page, nodes)
    found = [_NODE.unpack_from(page, at) for at in nodes]
    return [low | middle << 16 | high << 32 for low, middle, high, _ in found]


def _entries(page: bytes, nodes: Sequence[int]) -> tuple[list[bytes], list[bytes], dict[int, tuple[int, int]]]:
    """The keys and values of the nodes of a leaf; and the flags and sizes of values that the page only refers to."""
    _check_fit(page, nodes)
    unpack, most = _NODE.unpack_from, len(page)
    keys: list[bytes] = []
    values: list[bytes] = []
    others: dict[int, tuple[int, int]] = {}
    used = 0
    for at in nodes:
        low, high, flags, length = unpack(page, at)
        value = at + 8 + length
        end = value + (low | high << 16)
        if flags:
            others[len(keys)] = flags, end - value
            end = value + 8 if flags & _LARGE else end
        used += end - at
        if end > most:
            raise Malformed("is damaged: it has a record that does not fit into its page")
        keys.append(page[at + 8 : value])
        values.append(page[value:end])
    if used > most:
        raise Malformed("is damaged: it has records that overlap")
    return keys, values, others


def _values(page: bytes) -> list[bytes]:
    """The keys of a leaf of duplicates: values of one size without nodes, or those of nodes."""
    end = _end(page)
    _, size, kind, _ = _PAGE.unpack_from(page)
    if not kind & _WITHOUT_NODES:
        return _entries(page, _nodes(page))[0]
    stop = _HEADER + (end - _HEADER) // 2 * size
    if not size or stop > len(page):
        raise Malformed("is damaged: it has values that do not fit into their page")
    return [page[at : at + size] for at in range(_HEADER, stop, size)]


def _check_fit(page: bytes, nodes: Sequence[int]) -> None:
    if nodes and max(nodes) + _NODE.size > len(page):
        raise Malformed("is damaged: it has a node that does not fit into its page")


def _cut(level: Sequence[tuple[int, int]], count: int) -> list[list[Span]]:
    """Pages, given by number and number of nodes, as ``count`` parts with about equally many nodes; none is empty."""
    ends = list(accumulate(length for _, length in level))
    total = ends[-1] if ends else 0
    parts = []
    for part in range(count):
        first, last = part * total // count, (part + 1) * total // count
        spans = []
        for at in range(bisect_right(ends, first), len(level)):
            number, length = level[at]
            begin = ends[at] - length
            if begin >= last:
                break
            if length:
                spans.append(Span(number, max(first - begin, 0), min(last - begin, length)))
        if first < last:
            parts.append(spans)
    return parts
