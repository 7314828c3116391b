"""Options that data sources have in common, as Spark passes them (driver side)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cos_ml.errors import InvalidInputError
from cos_ml.paths import local_path
from cos_ml.sources.copies import default_filesystem

__all__ = ["one_of", "positive_int", "source_path"]


def one_of(options: Mapping[str, str], name: str, *choices: str) -> str:
    """The value of an option; the first of ``choices`` where it is not set.

    Raises:
        InvalidInputError: it is none of ``choices``.
    """
    value = options.get(name, choices[0])
    if value not in choices:
        raise InvalidInputError(f"Option {name}: expected one of {', '.join(choices)}, received {value!r}.")
    return value


def positive_int(options: Mapping[str, str], name: str) -> int | None:
    """The value of an option that is an integer >= 1; None where it is not set.

    Raises:
        InvalidInputError: it is something else.
    """
    value = options.get(name)
    if value is None or (value.isdecimal() and int(value) > 0):
        return None if value is None else int(value)
    raise InvalidInputError(f"Option {name}: expected an integer >= 1, received {value!r}.")


def source_path(path: str, what: str) -> str:
    """An absolute path, or a URL: executors may have another working directory.

    Args:
        path: as the user gave it; without a scheme it is on the ``fs.defaultFS`` of HADOOP_CONF_DIR.
        what: what is expected there, for messages.

    Raises:
        InvalidInputError: it is empty, a malformed URL, or relative on a file system that is not local.
    """
    found, default = local_path(path), default_filesystem()
    if not path or (found is None and path.startswith("file:")):
        raise InvalidInputError(f"Expected the path of {what}, or its URL, received {path!r}.")
    if found is None:
        return path
    if not default or path.startswith("file:"):
        return os.path.abspath(found)
    if not path.startswith("/"):
        raise InvalidInputError(
            f"{path!r} is a relative path on {default} (fs.defaultFS): expected an absolute one, such as "
            f"{default}/user/NAME/{path}, or file://{os.path.abspath(path)} for this machine."
        )
    return default + path
