"""Copies of files on HDFS and object stores for readers that need a local disk, one on each executor (driver, task)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

from cos_ml.errors import InvalidInputError
from cos_ml.stores import open_filesystem, retried, version_of

__all__ = ["default_filesystem", "local_copy"]


def default_filesystem() -> str:
    """``fs.defaultFS`` as HADOOP_CONF_DIR sets it; "" if that is local. For Spark's processes without a session."""
    folder = os.environ.get("HADOOP_CONF_DIR") or os.environ.get("YARN_CONF_DIR") or ""
    file = Path(folder, "core-site.xml")
    if not folder or not file.is_file():
        return ""
    properties = ElementTree.parse(file).getroot().iter("property")
    found = {one.findtext("name", "").strip(): one.findtext("value", "").strip() for one in properties}
    url = found.get("fs.defaultFS") or found.get("fs.default.name") or ""
    return "" if url.startswith("file:") else url.rstrip("/")


def local_copy(url: str, name: str) -> str:
    """The path of a copy of a file, which the first task of an executor makes; it ends with the executor.

    Args:
        url: the file, or a folder that contains it.
        name: the name of the file in a folder.

    Raises:
        InvalidInputError: there is no such file, or this is no process of Spark's.
    """
    parent = next((one for one in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if os.path.isdir(one)), None)
    if parent is None:
        raise InvalidInputError(f"Only Spark can read {url}: expected a file on this machine, such as a copy of it.")
    filesystem, path = open_filesystem(url)
    try:
        info = retried(partial(filesystem.info, path))
        if info["type"] == "directory":
            path, url = f"{path.rstrip('/')}/{name}", f"{url.rstrip('/')}/{name}"
            info = retried(partial(filesystem.info, path))
    except FileNotFoundError as error:
        here = f" The file on this machine is file://{path}." if path.startswith("/") and os.path.exists(path) else ""
        raise InvalidInputError(f"There is no file {name} at {url}.{here}") from error
    digest = hashlib.sha256(repr([url, *version_of(info)]).encode()).hexdigest()
    copy = Path(parent, f"cos_ml-{digest[:24]}")
    with open(f"{copy}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other tasks wait for the copy
        if not copy.exists():
            unfinished = Path(f"{copy}.part")
            try:
                retried(partial(filesystem.get_file, path, str(unfinished)))
                unfinished.replace(copy)
            finally:  # a part of it would fill the disk
                unfinished.unlink(missing_ok=True)
    return str(copy)
