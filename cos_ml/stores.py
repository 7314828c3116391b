"""Files on any storage that fsspec knows: HDFS, object stores, local disks (every side).

URLs come from ``paths.qualified``, so that they mean the same here, to Spark and to the ranks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cos_ml.errors import CosMLError, SetupError

__all__ = ["exists", "is_local", "make_folder", "open_filesystem", "retried", "version_of", "write_whole"]

T = TypeVar("T")

EXTRAS = {"hdfs": "hdfs", "viewfs": "hdfs", "s3": "s3", "s3a": "s3"}  # scheme -> the extra of cos_ml that opens it
WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth attempt
LONGEST = 15.0  # seconds that attempts may take before the last one; clients wait and try again themselves
PIECE = 1 << 20  # bytes that are written together
# What waiting does not mend.
LASTING = (
    CosMLError, FileExistsError, FileNotFoundError, ImportError, IsADirectoryError, NotADirectoryError,
    NotImplementedError, PermissionError, TypeError, ValueError,
)  # fmt: skip
LASTING_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)
NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # a file system that has none
# What fsspec's file systems call the version of a file, by priority.
VERSIONS = ("ETag", "etag", "mtime", "modification_time", "LastModified", "last_modified", "updated", "created")


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path there.

    Raises:
        SetupError: no package is installed that opens URLs of this kind; the message names the one to install.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, OSError, ValueError) as error:
        # pyarrow's words, and fsspec's
        if not isinstance(error, ImportError) and not re.search("libjvm|libhdfs|Protocol not known", str(error)):
            raise
        schemes = re.findall(r"([\w+.-]+)://", url)  # of a chain, several
        scheme = next((one for one in schemes if one in EXTRAS), "")
        if not scheme:
            raise SetupError(f"{url} can't be opened from Python, on the driver or an executor: {error}.") from error
        raise SetupError(
            f"{url} can't be opened from Python, because no package for {scheme}:// is installed. Install one on the "
            f'driver and the executors: pip install "cos-ml[{EXTRAS[scheme]}]". ({str(error).split(": ")[0]}.)'
        ) from error
    return filesystem, path


def retried(action: Callable[[], T]) -> T:
    """The result of ``action``, which is tried again a few times if the storage is away, slow or busy for a while."""
    began = time.monotonic()
    for wait in (*WAITS, None):
        try:
            return action()
        except LASTING:
            raise
        except Exception as error:  # each storage has its own exceptions
            found = _without_java(error)
            lasting = isinstance(found, LASTING) or getattr(found, "errno", None) in LASTING_CODES
            if wait is not None and not lasting and time.monotonic() - began <= LONGEST:
                time.sleep(wait)
            elif found is error:
                raise
            else:
                raise found from error
    raise AssertionError("the last attempt returns or raises")


def _without_java(error: Exception) -> Exception:
    """What a NameNode answered by way of hdfs-native, without Java's stack trace; other errors as they are."""
    answer = re.match(r'RPCError\("[\w.$]*?(\w+)", "((?:[^"\\]|\\[^n])*)', str(error))
    if answer is None:
        return error
    kind, text = answer[1], answer[2].replace("\\", "")
    if "Quota" in kind:
        return OSError(errno.EDQUOT, text)
    return PermissionError(text) if kind == "AccessControlException" else RuntimeError(f"{kind}: {text}")


def is_local(filesystem: Any) -> bool:
    """Whether paths are those of the operating system."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def exists(filesystem: Any, path: str) -> bool:
    """Whether a file or folder exists. An error of the store is raised; fsspec's own ``exists`` returns False then."""
    try:
        filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def version_of(info: dict[str, Any]) -> list[str]:
    """What identifies a version of a file: it changes with the content, not with reading or permissions."""
    return [str(info["size"]), next((str(info[name]) for name in VERSIONS if info.get(name)), str(info))]


def make_folder(filesystem: Any, path: str) -> None:
    """Create a folder. Object stores have none, and s3fs would create a missing bucket instead."""
    if _renames(filesystem):
        filesystem.makedirs(path, exist_ok=True)


def write_whole(filesystem: Any, path: str, pieces: Sequence[Any]) -> None:
    """Write a file that readers see whole or not at all.

    Where files can be renamed, it is written under another name first. Object stores can't rename, but show an object
    only once it is complete.
    """
    if _renames(filesystem):
        folder, _, name = path.rpartition("/")
        unfinished = f"{folder}/.{name}-{uuid.uuid4().hex[:8]}"
        try:
            _write(filesystem, unfinished, pieces)
            _rename(filesystem, unfinished, path)
            return
        except Exception as error:
            with contextlib.suppress(Exception):  # it may not exist, and the storage may still be away
                filesystem.rm_file(unfinished)
            if not isinstance(error, NotImplementedError):
                raise
    filesystem.pipe_file(path, b"".join(pieces))


def _renames(filesystem: Any) -> bool:
    """Whether files can be renamed."""
    return is_local(filesystem) or _mv_renames(filesystem)


def _mv_renames(filesystem: Any) -> bool:
    """Whether ``mv`` renames; by default, fsspec copies and then deletes, and early versions do so on local disks."""
    from fsspec import AbstractFileSystem

    return type(filesystem).mv is not AbstractFileSystem.mv


def _write(filesystem: Any, path: str, pieces: Sequence[Any]) -> None:
    with filesystem.open(path, "wb") as file:
        for view in [memoryview(piece) for piece in pieces]:
            for start in range(0, len(view), PIECE):  # hdfs-native needs ten times as long for what is not bytes
                file.write(view[start : start + PIECE].tobytes())
        file.flush()
        try:
            descriptor = file.fileno()
        except (AttributeError, OSError):  # only files on a disk have one
            return
        try:
            os.fsync(descriptor)
        except OSError as error:  # here some disks say that they are full
            if error.errno not in NO_FSYNC:
                raise


def _rename(filesystem: Any, unfinished: str, path: str) -> None:
    move = filesystem.mv if _mv_renames(filesystem) else os.replace
    try:
        move(unfinished, path)
    except Exception:  # HDFS replaces nothing, and its clients raise errors of different types
        if not exists(filesystem, path):
            raise
        if exists(filesystem, unfinished):  # else it was renamed, and the answer was lost
            filesystem.rm_file(path)
            move(unfinished, path)
