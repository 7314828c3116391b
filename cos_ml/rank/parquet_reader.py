"""A rank's row groups as pyarrow reads them, from any file system that fsspec opens (rank side)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from cos_ml.data.parquet import Shards, column_names
from cos_ml.data.parquet_files import BUFFER, folder_values, row_batches
from cos_ml.data.spool import local_folder
from cos_ml.errors import InvalidInputError
from cos_ml.rank.row_copies import RowCopies
from cos_ml.stores import open_filesystem, retried

__all__ = ["ParquetReader"]

THREADS = 8  # at most, each with a row group
AHEAD = 32 << 20  # bytes of row groups that are open at the same time, but at least two of them
PIECE = 1 << 20  # bytes of rows that are decoded together; of each open row group, one piece is in memory
FOOTERS = 256  # that are kept
Convert = Callable[[pa.RecordBatch, int, Mapping[str, str | None]], Any]


class ParquetReader:
    """The row groups of one rank. Several passes may go on at the same time.

    Args:
        shards: the dataset.
        rank: which shard to read.
    """

    def __init__(self, shards: Shards, rank: int) -> None:
        self.shards = shards
        self.systems = [open_filesystem(url) for url in shards.roots]
        counts = [count for _, _, count in shards.files]
        files, starts = np.repeat(np.arange(len(counts)), counts), np.cumsum([0, *counts])
        self.groups = [(int(files[index]), int(index - starts[files[index]])) for index in
                       range(rank, len(files), len(shards.rows))]  # fmt: skip
        self.count = sum(shards.rows[rank].values())
        self.copies = RowCopies(local_folder()) if shards.copied else None
        self._footer = lru_cache(FOOTERS)(self._read_footer)

    def read(self, fields: Sequence[str], seed: int, shuffle: bool, row_bytes: int, convert: Convert) -> Iterator[Any]:
        """What ``convert`` makes of the rows, a piece at a time, in an order that depends only on ``seed``.

        Args:
            fields: the fields of the columns to read.
            seed: what the order of row groups depends on.
            shuffle: whether row groups come in a random order, a piece of each of several in turn, or in that of the
                files.
            row_bytes: the memory that a row needs.
            convert: a function of rows, the number of the first of them in its row group, and the values in the names
                of the file's folders. Several threads call it.
        """
        order = np.random.default_rng(seed).permutation(len(self.groups)) if shuffle else range(len(self.groups))
        group_bytes = row_bytes * self.count // max(len(self.groups), 1)
        open_groups = int(np.clip(AHEAD // max(group_bytes, 1), 2, THREADS))
        size = max(1, PIECE // max(row_bytes, 1))
        streams = (self._pieces(int(index), fields, size, convert) for index in order)
        pool = ThreadPoolExecutor(open_groups, "cos_ml-read")

        def begin(count: int) -> list[tuple[Iterator[Any], Future[Any]]]:
            return [(stream, pool.submit(next, stream, None)) for stream in itertools.islice(streams, count)]

        try:
            waiting = deque(begin(open_groups))
            while waiting:
                stream, piece = waiting.popleft()
                if (rows := piece.result()) is None:
                    waiting.extend(begin(1))
                    continue
                (waiting.append if shuffle else waiting.appendleft)((stream, pool.submit(next, stream, None)))
                yield rows
        finally:  # a pass that ends early does not wait for a slow store
            pool.shutdown(wait=False, cancel_futures=True)

    def _pieces(self, index: int, fields: Sequence[str], size: int, convert: Convert) -> Iterator[Any]:
        """One row group, ``size`` rows at a time."""
        folders = self._folders(self.groups[index][0])
        columns = column_names([self.shards.names[field] for field in fields], folders)
        batches, copy = self.copies.get(index, columns) if self.copies else None, None
        if batches is None:
            batches = self._batches(index, columns, size)
            whole = self.copies is not None and set(fields) == set(self.shards.names)
            copy = self.copies.begin(index) if self.copies is not None and whole else None
        done = 0
        for batch in batches:
            if copy:
                copy.add(batch)
            yield convert(batch, done, folders)
            done += batch.num_rows
        if copy:
            copy.close()

    def _batches(self, index: int, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
        """The rows of a row group; after a failure of the storage, it is opened again for those that are left."""
        batches, done = self._stored(index, columns, size), 0

        def following() -> pa.RecordBatch | None:
            nonlocal batches
            try:
                return next(batches, None)
            except Exception:
                batches = itertools.islice(self._stored(index, columns, size), done, None)
                raise

        while (batch := retried(following)) is not None:
            done += 1
            yield batch

    def _stored(self, index: int, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
        file, group = self.groups[index]
        filesystem, path = self._place(file)
        local = isinstance(filesystem, LocalFileSystem)
        try:
            footer = self._footer(file)
            if not columns:  # all of them are in the names of folders
                count = footer.row_group(group).num_rows
                for start in range(0, count, size):
                    yield pa.RecordBatch.from_arrays([pa.nulls(min(size, count - start))], [""])
                return
            if local:
                with pq.ParquetFile(path, metadata=footer, pre_buffer=False, buffer_size=BUFFER) as stored:
                    yield from row_batches(stored, group, columns, size)
                return
            # Most file systems would read up to 50 MB more with each row group, for readers that go on from there.
            options = {} if isinstance(filesystem, CachingFileSystem) else {"cache_type": "none"}
            with (
                filesystem.open(path, **options) as opened,
                pq.ParquetFile(opened, metadata=footer, pre_buffer=True) as stored,
            ):
                yield from stored.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)
        except (pa.ArrowException, UnicodeDecodeError, IndexError, FileNotFoundError) as error:
            raise _damaged(group, path, error) from error
        except Exception as error:  # each storage has its own
            if local and type(error) is OSError and error.errno is None:  # pyarrow's, of a damaged page
                raise _damaged(group, path, error) from error
            error.add_note(f"This was while row group {group} of {path} was read.")
            raise

    def _read_footer(self, file: int) -> Any:
        filesystem, path = self._place(file)
        with filesystem.open(path) as opened:
            return pq.read_metadata(opened)

    def _place(self, file: int) -> tuple[Any, str]:
        root, path, _ = self.shards.files[file]
        return self.systems[root][0], path

    def _folders(self, file: int) -> dict[str, str | None]:
        root, path, _ = self.shards.files[file]
        return folder_values(self.systems[root][1], path)


def _damaged(group: int, path: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"The Parquet files changed during the fit, or are damaged: row group {group} of {path}: {error}"
    )
