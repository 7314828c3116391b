"""Disks that are full: one error, with the host, the folder and what to do, as no retry helps (every side)."""

from __future__ import annotations

import errno
import os
import socket
import traceback

from cos_ml.errors import InvalidInputError

__all__ = ["REMEDY", "is_full", "no_room"]

CODES = (errno.ENOSPC, errno.EDQUOT)
TEXTS = tuple(map(os.strerror, CODES))  # Java's and TensorFlow's messages contain the C library's, too
REMEDY = "Give spark.local.dir more room."


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or its text, says that a disk is full or a quota is used up."""
    found = error if isinstance(error, str) else "".join(traceback.format_exception_only(error))  # str() may fail
    return getattr(error, "errno", None) in CODES or any(text in found for text in TEXTS)


def no_room(what: str, folder: str, error: BaseException | str, remedy: str = REMEDY) -> InvalidInputError:
    """The error where a disk of this host has no room for ``what`` in ``folder``."""
    place = getattr(error, "filename", None) or folder
    return InvalidInputError(f"The host {socket.gethostname()} has no room for {what} in {place}: {error}. {remedy}")
