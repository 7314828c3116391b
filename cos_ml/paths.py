"""Paths as users write them, for what opens them (every side)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["as_string", "exists", "literal", "local_path", "readable"]


def as_string(path: str | os.PathLike[str]) -> str:
    """A path, given as a string or a ``pathlib.Path``, as a string; raises TypeError for anything else."""
    found = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(found, str):
        raise TypeError(f"expected a path, as a string or a pathlib.Path, received {path!r:.80}")
    return found


def local_path(path: str | os.PathLike[str]) -> str | None:
    """The path of a file on this machine, given as a path or a file URL; None for a URL of another kind.

    Spark takes ``%20`` in a URL as it stands, ``Path.as_uri()`` means a space by it: the one that exists is taken, and
    where neither does, the space.
    """
    text = as_string(path)
    url = re.fullmatch(r"file:(?://(?:localhost)?(?=/)|(?!//))(/.*)", text, re.DOTALL)
    if url is None:
        return None if re.match(r"[A-Za-z][\w+.-]*://|file:", text) else text
    found = "/" + url[1].lstrip("/")
    return found if os.path.lexists(found) else unquote(found)


def literal(path: str | os.PathLike[str]) -> str:
    """What to ask Spark to read for this path and no other: in names, Spark takes ``[x]`` and ``{a,b}`` for a glob."""
    return re.sub(r"[\\*?\[\]{}]", r"\\\g<0>", as_string(path))


def readable(spark: SparkSession, path: str | os.PathLike[str]) -> str:
    """What to ask Spark to read for this path: itself where it exists, else what matches it as a glob."""
    text = as_string(path)
    return literal(text) if literal(text) != text and exists(spark, text) else text


def exists(spark: SparkSession, path: str) -> bool:
    """Whether there is a file or a folder, on any file system that Spark supports."""
    from pyspark.errors import AnalysisException

    twice = [literal(path)] * 2  # of a single path that does not exist, Spark logs a stack trace
    try:
        _ = spark.read.option("recursiveFileLookup", True).text(twice).schema
    except AnalysisException as error:
        return "PATH_NOT_FOUND" not in str(error)
    return True
