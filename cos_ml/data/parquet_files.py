"""Which files a Parquet dataset consists of (driver side; ``folder_values``: driver and rank)."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from cos_ml.data.table_formats import check_plain_files
from cos_ml.errors import InvalidInputError
from cos_ml.stores import exists, open_filesystem, retried

__all__ = [
    "BUFFER",
    "DataFile",
    "column_chunks",
    "find_files",
    "folder_values",
    "list_files",
    "opened",
    "row_batches",
    "visible",
]

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # null, in the name of a folder
LISTED = 16  # URLs that are looked at at the same time
BUFFER = 1 << 18  # bytes that are read together, for each column; else those of a whole row group are
HIDDEN = re.compile(r"(^|/)(\.|_[^=/]*(/|$))|\._COPYING_$")  # what Spark does not read; a column may be called _x
ARROW = int(pa.__version__.partition(".")[0])
ENDINGS, MAGIC = (".parquet", ".parq", ".pq"), (b"PAR1", b"PARE")  # the latter begins encrypted files


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset: the index of its root, the file system and the path in it, and the values in folders."""

    root: int
    filesystem: Any
    path: str
    folders: dict[str, str | None]


def find_files(urls: Sequence[str]) -> list[DataFile]:
    """The Parquet files at ``urls``, those of a folder sorted by name.

    Raises:
        InvalidInputError: there are none, or they are those of a table of Delta, Iceberg or Hudi.
    """
    if not urls:
        raise InvalidInputError("There are no Parquet files in an empty list.")
    roots = [open_filesystem(url) for url in urls]
    plain: dict[Any, set[str]] = {filesystem: set() for filesystem, _ in roots}
    for filesystem in plain:
        filesystem.invalidate_cache()  # Spark and others write behind its back
    with ThreadPoolExecutor(LISTED) as pool:
        listings = list(pool.map(lambda root: list_files(*root), roots))
    found = []
    for index, (url, (filesystem, root), listed) in enumerate(zip(urls, roots, listings, strict=True)):
        if listed == [root]:  # a file is no table
            plain[filesystem].add(root)
        check_plain_files(url, filesystem, root, listed, plain[filesystem])
        paths = _parquet_files(filesystem, root, listed)
        if not paths:
            raise InvalidInputError(f"There are no Parquet files at {url}.")
        found += [DataFile(index, filesystem, path, folder_values(root, path)) for path in paths]
    return found


@contextlib.contextmanager
def opened(file: DataFile) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``, for the length of a ``with`` block.

    Raises:
        InvalidInputError: the file, or what is read of it, is damaged or encrypted.
    """
    import pyarrow.parquet as pq

    with file.filesystem.open(file.path) as source:
        try:
            yield pq.ParquetFile(source, pre_buffer=False, buffer_size=BUFFER)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # names may be no texts
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):  # not one of pyarrow's
                raise
            raise InvalidInputError(f"The file {file.path} can't be read as Parquet: {error}") from error


def row_batches(stored: Any, group: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a row group of an open file, ``size`` at a time.

    Where damaged columns differ in length, Arrow before 15 ends the process: there, each column is read by itself.
    """
    whole: dict[str, list[str]] = {}
    for name in columns:
        whole.setdefault(name.split(".")[0], []).append(name)
    parts = [*whole.values()] if ARROW < 15 and whole else [columns]
    streams = (stored.iter_batches(size, row_groups=[group], columns=names, use_threads=False) for names in parts)
    for batches in itertools.zip_longest(*streams, fillvalue=pa.RecordBatch.from_arrays([], [])):
        if len({batch.num_rows for batch in batches}) > 1:
            raise pa.ArrowInvalid("its columns differ in length")
        rows = batches[0]
        if len(batches) > 1:
            schema = pa.schema([field for batch in batches for field in batch.schema])
            rows = pa.RecordBatch.from_arrays([one for batch in batches for one in batch.columns], schema=schema)
        rows.validate()  # of structs, whether their fields have the same length
        yield rows


class _Touched(Exception):
    """A file without content is read."""


class _NoContent(io.RawIOBase):
    """A file that has a size and no content."""

    at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: 1 << 60}[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        raise _Touched


def column_chunks(stored: Any, group: int, columns: Sequence[str]) -> list[tuple[str, Any]]:
    """What the footer of an open file says of columns in a row group, by column: one item for each part of a column.

    Where that is damaged, pyarrow ends the process. Only when it begins to read the columns it raises an error instead:
    so they are first read from a file without content.
    """
    import pyarrow.parquet as pq

    metadata = stored.metadata
    names = [metadata.schema.column(at).path.split(".")[0] for at in range(metadata.num_columns)]
    leaves = [(at, name) for at, name in enumerate(names) if name in columns]
    if leaves:
        again = pq.ParquetFile(_NoContent(), metadata=metadata, pre_buffer=False, buffer_size=BUFFER)
        with contextlib.suppress(_Touched):
            next(again.iter_batches(1, row_groups=[group], columns=list(columns), use_threads=False), None)
    return [(name, metadata.row_group(group).column(at)) for at, name in leaves]


def folder_values(root: str, path: str) -> dict[str, str | None]:
    """The values in the names of the folders between ``root`` and a file, such as ``label=1``, by column."""
    inner = path[len(root.rstrip("/")) + 1 :].split("/")[:-1]
    pairs = (folder.partition("=") for folder in inner if "=" in folder)
    return {unquote(name): None if value == NO_VALUE else unquote(value) for name, _, value in pairs}


def list_files(filesystem: Any, root: str) -> list[str]:
    """All files at ``root``; a file on a web server is not asked what it contains.

    Raises:
        OSError: a folder can't be listed. fsspec's own ``find`` would leave out its files, except for object stores,
            which list all at once.
    """
    if filesystem.isfile(root):
        return [root]
    if not retried(partial(exists, filesystem, root)):
        return []
    if filesystem.async_impl:
        return retried(partial(filesystem.find, root))  # type: ignore[no-any-return]
    files, folders = [], [root]
    while folders:
        folder = folders.pop()
        for entry in retried(partial(filesystem.ls, folder, detail=True)):
            name, kind = entry["name"], entry["type"]
            if kind == "file" or (kind != "directory" and not filesystem.isdir(name)):  # a link is neither
                files.append(name)
            elif name.rstrip("/") != folder.rstrip("/"):
                folders.append(name)
    return sorted(files)


def _parquet_files(filesystem: Any, root: str, listed: Sequence[str]) -> list[str]:
    """The sorted Parquet files of those at ``root``, without those that Spark hides, such as its temporary files.

    Hive gives its files no ending, and Spark reads them: what begins as Parquet does is Parquet.
    """
    if listed == [root]:
        return [root]
    candidates = visible(root, listed)

    def is_parquet(path: str) -> bool:
        return path.endswith(ENDINGS) or retried(partial(filesystem.head, path, 4)) in MAGIC

    with ThreadPoolExecutor(LISTED) as pool:
        return list(itertools.compress(candidates, pool.map(is_parquet, candidates)))


def visible(root: str, listed: Sequence[str]) -> list[str]:
    """The sorted files of those in the folder ``root`` that Spark reads: others are temporary, or tell of the rest."""
    start = len(root.rstrip("/")) + 1
    return sorted(path for path in listed if not HIDDEN.search(path[start:]))
