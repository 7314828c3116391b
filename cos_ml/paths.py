"""Paths as users write them, for what opens them (every side)."""

from __future__ import annotations

import os
import posixpath
import re
import uuid
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cos_ml.errors import InvalidInputError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["as_string", "exists", "for_spark", "literal", "local_path", "qualified", "qualified_file", "readable"]

URL = re.compile(r"([A-Za-z][\w+.-]*)://([^/]*)(.*)", re.DOTALL)
HADOOP = ("hdfs", "viewfs")  # whose host may be left out: that of fs.defaultFS
_answers: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()  # of sessions


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


def qualified(spark: SparkSession, path: str | os.PathLike[str]) -> str:
    """The URL that ``path`` means to Spark, for all that open it, by Spark or by fsspec, on any host (driver side).

    A path without a scheme is on Spark's default file system (``fs.defaultFS``), and a relative one is in the user's
    folder there. If that file system is the local one, the result is an absolute path without a scheme. URLs stay as
    they are, except that ``hdfs:///x`` and ``hdfs:/x`` get their host.

    Raises:
        InvalidInputError: Spark's default file system does not answer.
    """
    text = re.sub(rf"^({'|'.join(HADOOP)}):/(?!/)", r"\1:///", as_string(path))
    url = URL.fullmatch(text)
    if "::" in text or text.startswith(("file:", "~")) or (url and (url[2] or url[1] not in HADOOP)):
        return text
    home = _home(spark, text)
    default = URL.fullmatch(home)
    if url:
        return f"{url[1]}://{default[2]}{url[3]}" if default and default[1] == url[1] else text
    folder = default[3] if default else home
    absolute = text if text.startswith("/") else "/" + posixpath.normpath(posixpath.join(folder, text)).lstrip("/")
    return f"{default[1]}://{default[2]}{absolute}" if default else absolute


def qualified_file(path: str | os.PathLike[str]) -> str:
    """``qualified`` for a file that this process reads: as it is if that is local, or if there is no session."""
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    text = as_string(path)
    try:
        spark = SparkSession.active()
    except PySparkException:  # there is none
        return text
    found = qualified(spark, text)
    return text if local_path(found) is not None else found


def _home(spark: SparkSession, path: str) -> str:
    """The folder of relative paths: a path if it is local, else a URL.

    Spark names it where it looks for a file that does not exist. This is the same with Spark Connect.
    """
    from pyspark.errors import AnalysisException

    answers = _answers.setdefault(spark, {})
    default = spark.conf.get("fs.defaultFS", "")  # which a session can change
    name = f"cos_ml-{uuid.uuid4().hex}"
    if str(default) not in answers:
        try:
            _ = spark.read.text([name] * 2).schema
        except AnalysisException as error:
            found = re.search(rf" (\w[\w+.-]*:(?! ).*?/){name}", str(error))
            if found is None:
                raise _no_answer(path, error) from error
            answers[str(default)] = found[1]
        except Exception as error:  # Py4J's and those of Connect
            raise _no_answer(path, error) from error
    home = answers[str(default)]
    return home if local_path(home) is None else str(local_path(home))


def _no_answer(path: str, error: Exception) -> InvalidInputError:
    reason = next((line for line in str(error).splitlines() if line.startswith(": ")), str(error).split("\n")[0])
    example = "hdfs://HOST:PORT/PATH" if URL.fullmatch(path) else f"file://{os.path.abspath(path)}"
    return InvalidInputError(
        f"{path} is on Spark's default file system (fs.defaultFS), which does not answer: "
        f"{reason.removeprefix(': ').rstrip('.')}. Give a full URL, such as {example}."
    )


def for_spark(spark: SparkSession, path: str | os.PathLike[str]) -> str:
    """The path as Spark takes it: ``s3://`` as ``s3a://`` where Hadoop has no file system of the former name."""
    text = as_string(path)
    if not text.startswith("s3://"):
        return text
    answers = _answers.setdefault(spark, {})
    if "s3" not in answers:
        try:
            _exists(spark, "s3:///")
            answers["s3"] = "s3"
        except Exception as error:  # Py4J's and those of Connect
            answers["s3"] = "s3a" if 'No FileSystem for scheme "s3"' in str(error) else "s3"
    return f"{answers['s3']}{text[2:]}"


def literal(path: str | os.PathLike[str]) -> str:
    """What to ask Spark to read for this path and no other: in names, Spark takes ``[x]`` and ``{a,b}`` for a glob."""
    return re.sub(r"[\\*?\[\]{}]", r"\\\g<0>", as_string(path))


def readable(spark: SparkSession, path: str | os.PathLike[str]) -> str:
    """What to ask Spark to read for this path: itself where it exists, else what matches it as a glob."""
    text = for_spark(spark, path)
    return literal(text) if literal(text) != text and exists(spark, text) else text


def exists(spark: SparkSession, path: str) -> bool:
    """Whether there is a file or a folder, on any file system that Spark supports."""
    return _exists(spark, for_spark(spark, path))


def _exists(spark: SparkSession, path: str) -> bool:
    from pyspark.errors import AnalysisException

    twice = [literal(path)] * 2  # of a single path that does not exist, Spark logs a stack trace
    try:
        _ = spark.read.option("recursiveFileLookup", True).text(twice).schema
    except AnalysisException as error:
        return "PATH_NOT_FOUND" not in str(error)
    return True
