"""Paths as users write them, for what opens them (every side)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

__all__ = ["as_string", "local_path", "spark_paths"]


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


def spark_paths(path: str | os.PathLike[str]) -> Iterator[str]:
    """What to ask Spark to read, in order, for what is at ``path``: Spark reads ``[x]`` and ``{a,b}`` in it as a glob.

    The first is ``path`` itself and no other; the second, if it differs, what matches it as a glob.
    """
    text = as_string(path)
    literal = re.sub(r"[\\*?\[\]{}]", r"\\\g<0>", text)
    yield literal
    if literal != text:
        yield text
