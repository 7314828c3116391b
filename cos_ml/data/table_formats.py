"""Tells a folder of plain files from one of a table, whose files are not all of its rows (driver side)."""

from __future__ import annotations

from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.stores import open_filesystem

__all__ = ["check_no_table", "check_plain_files"]

PARENTS = 8  # folders above a path in which a table's log is looked for


def check_no_table(url: str) -> None:
    """``check_plain_files`` for a URL."""
    check_plain_files(*open_filesystem(url))


def check_plain_files(filesystem: Any, path: str, plain: set[str] | None = None) -> None:
    """Raises InvalidInputError for a path in a table of Delta, Iceberg or Hudi.

    Such a folder has files of deleted and replaced rows, too; only the table's log tells which files count.

    Args:
        filesystem: fsspec's file system of the path.
        path: a file or a folder.
        plain: folders of this file system that are known to be no tables, which this call completes; pass the same set
            with each path of a list, so that no folder is looked at twice.
    """
    plain = set() if plain is None else plain
    root = folder = path.rstrip("/")
    for _ in range(PARENTS):
        try:
            found = None if folder in plain else _format(filesystem, folder)
        except PermissionError:
            if folder == root:
                raise
            return  # who may read what is below may still not look here
        if found:
            name, reader = found
            where = "a" if folder == root else f"in {folder}, a"
            raise InvalidInputError(
                f"{path} is {where} table of {name}: its folder also has files of deleted and replaced rows, which "
                f'would be read. Read it with Spark instead, and fit the DataFrame: spark.read.format("{reader}")'
                f'.load("{filesystem.unstrip_protocol(folder)}").'
            )
        plain.add(folder)
        above = folder.rpartition("/")[0]
        if above in ("", folder) or above.endswith((":", ":/")):
            return
        folder = above


def _format(filesystem: Any, folder: str) -> tuple[str, str] | None:
    """The name of the table's format, and what Spark calls it; None for a folder of no table."""
    if filesystem.isdir(f"{folder}/_delta_log"):
        return "Delta Lake", "delta"
    if filesystem.isdir(f"{folder}/.hoodie"):
        return "Hudi", "hudi"
    metadata = f"{folder}/metadata"
    if filesystem.isdir(metadata) and any(
        name.endswith((".metadata.json", "version-hint.text")) for name in filesystem.ls(metadata, detail=False)
    ):
        return "Iceberg", "iceberg"
    return None
