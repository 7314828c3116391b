"""Tells a folder of plain files from one of a table, whose files are not all of its rows (driver side).

With Spark Connect, a task runs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import unquote

from cos_ml.data.names import quoted
from cos_ml.errors import InvalidInputError
from cos_ml.stores import open_filesystem, retried

__all__ = ["Table", "check_no_table", "check_plain_files", "check_plain_url"]

NAMES = {"delta": "Delta Lake", "hudi": "Hudi", "iceberg": "Iceberg"}  # of formats, as Spark calls them
# Files of a table's log, each format's in a group of its name.
LOG = re.compile(
    r"(?P<folder>.*?)/(?:(?P<delta>_delta_log)/|(?P<hudi>\.hoodie)/"
    r"|(?P<iceberg>metadata)/(?:[^/]*\.metadata\.json|version-hint\.text)$)"
)
PARENTS = 8  # folders above a path in which a table's log is looked for


@dataclass(frozen=True)
class Table:
    """A table that is not to be read file by file.

    Attributes:
        format: as Spark calls it.
        folder: its folder, as the file system calls it.
        url: what Spark loads.
        where: a condition in SQL, for those of its rows that a path means; "" for all.
    """

    format: str
    folder: str
    url: str = ""
    where: str = ""

    @property
    def rows(self) -> str:
        """What reads the rows, in Python."""
        found = f'spark.read.format("{self.format}").load("{self.url}")'
        return f'{found}.where("{self.where}")' if self.where else found


def check_plain_files(
    url: str, filesystem: Any, path: str, listed: Iterable[str], plain: set[str] | None = None,
    remedy: Callable[[Table], str] = lambda table: f"est.fit({table.rows})",
) -> None:  # fmt: skip
    """Raises InvalidInputError for files of a table of Delta, Iceberg or Hudi.

    The table's folder has files of deleted and replaced rows, too; only its log tells which files count.

    Args:
        url: a file or a folder.
        filesystem: fsspec's file system of it.
        path: its path there.
        listed: the files below it.
        plain: folders of this file system that are known to be no tables, which this call completes; pass the same set
            with each path of a list, so that no folder is looked at twice.
        remedy: what to do instead.
    """
    table = _table_in(listed) or _table_around(filesystem, path, set() if plain is None else plain)
    if table is None:
        return
    folder = path.rstrip("/")
    where = "is in" if len(table.folder) < len(folder) else "contains"
    relation = "is" if table.folder == folder else f"{where} {table.folder},"
    raise InvalidInputError(
        f"{url} {relation} a table of {NAMES[table.format]}: its folder also has files of deleted and replaced rows, "
        f"which would be read. Instead: {remedy(_loadable(url, filesystem, folder, table))}."
    )


def check_plain_url(url: str, remedy: Callable[[Table], str]) -> None:
    """``check_plain_files`` for a URL, and for all that it matches as a glob."""
    filesystem, path = open_filesystem(url)
    plain: set[str] = set()
    check_plain_files(url, filesystem, path, filesystem.find(path), plain, remedy)
    for root in filter(path.__ne__, filesystem.glob(path)):
        check_plain_files(filesystem.unstrip_protocol(root), filesystem, root, filesystem.find(root), plain, remedy)


def check_no_table(url: str) -> None:
    """Raises InvalidInputError for a cacheDir in a table."""
    filesystem, path = open_filesystem(url)
    table = _table_around(filesystem, path, set())
    if table:
        raise InvalidInputError(
            f"Param cacheDir: {url} is in {table.folder}, a table of {NAMES[table.format]}, which deletes files that "
            "are not its own. Choose a folder outside of it."
        )


def _table_in(listed: Iterable[str]) -> Table | None:
    """The table that has a log among these files."""
    found = next(filter(None, map(LOG.match, listed)), None)
    return Table(str(found.lastgroup), found["folder"]) if found else None


def _table_around(filesystem: Any, path: str, plain: set[str]) -> Table | None:
    """The table whose folder is ``path``, or above it."""
    root = folder = path.rstrip("/")
    for _ in range(PARENTS):
        try:
            kind = None if folder in plain else _format(filesystem, folder)
        except PermissionError:
            if folder == root:
                raise
            return None  # who may read what is below may still not look here
        if kind:
            return Table(kind, folder)
        plain.add(folder)
        above = folder.rpartition("/")[0]
        if above in ("", folder) or above.endswith((":", ":/")):
            return None
        folder = above
    return None


def _format(filesystem: Any, folder: str) -> str | None:
    """The format of the table in a folder; None for a folder of no table."""
    if _is_folder(filesystem, f"{folder}/_delta_log"):
        return "delta"
    if _is_folder(filesystem, f"{folder}/.hoodie"):
        return "hudi"
    metadata = f"{folder}/metadata"
    if _is_folder(filesystem, metadata) and _table_in(filesystem.ls(metadata, detail=False)):
        return "iceberg"
    return None


def _is_folder(filesystem: Any, path: str) -> bool:
    """Whether there is a folder; fsspec's own ``isdir`` says no where a storage does not answer."""
    try:
        return bool(retried(partial(filesystem.info, path))["type"] != "file")  # to a web server, all are files
    except (FileNotFoundError, NotADirectoryError):
        return False


def _loadable(url: str, filesystem: Any, path: str, table: Table) -> Table:
    """The table with what Spark loads, and with a condition where the names of a partition's folders are one."""
    inner, outer = path[len(table.folder) :], table.folder[len(path) :]  # one of them is empty
    loaded = url.rstrip("/").removesuffix(inner) + outer  # Spark knows the user's scheme and host
    if table.format == "iceberg" and not filesystem.isfile(f"{table.folder}/metadata/version-hint.text"):
        loaded = "CATALOG.DATABASE.TABLE"  # only its catalog knows which metadata counts
    pairs = (map(unquote, one.split("=", 1)) for one in inner.split("/") if "=" in one)
    where = (f"{name if name.isidentifier() else quoted(name)} = '{value}'" for name, value in pairs)
    return replace(table, url=loaded, where=" AND ".join(where))
