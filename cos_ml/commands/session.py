"""A command's Spark session, whose JVM logs errors only, and results as JSON (driver side)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cos_ml.errors import InvalidInputError
from cos_ml.paths import local_path
from cos_ml.stores import open_filesystem, retried, write_whole

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["CONF_DIR", "in_folder", "json_text", "key_values", "session", "write_json"]

CONF_DIR = Path(__file__).parents[1] / "conf"  # settings of log4j for errors only, and submit.py
SUBMITTED = "PYSPARK_GATEWAY_PORT"  # set for programs that spark-submit has started


@contextlib.contextmanager
def session(name: str, master: str | None = None, conf: dict[str, str] | None = None) -> Iterator[SparkSession]:
    """A Spark session: the active one, that of spark-submit, or a new one that ends with the command."""
    from pyspark.sql import SparkSession

    existing = SparkSession.getActiveSession()
    if existing is None:
        logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs the call that Ctrl-C interrupts, with its stack
        if SUBMITTED not in os.environ:
            _prepare(master)
    builder = SparkSession.builder.appName(f"cos-ml {name}")
    for key, value in (conf or {}).items():
        builder = builder.config(key, value)
    if existing is None and master:
        builder = builder.remote(master) if master.startswith("sc://") else builder.master(master)
    spark = builder.getOrCreate()
    try:
        if existing is None and hasattr(spark, "sparkContext") and not (master or "").startswith("sc://"):
            spark.sparkContext.setLogLevel("ERROR")
        yield spark
    finally:
        if existing is None:
            spark.stop()


def _prepare(master: str | None) -> None:
    """Settings of a JVM that this process starts; a Spark that the user has configured keeps its own."""
    if not os.environ.keys() & {"SPARK_HOME", "SPARK_CONF_DIR"}:
        os.environ["SPARK_CONF_DIR"] = str(CONF_DIR)
    if (master or "local").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def key_values(given: Sequence[str] | dict[str, Any] | None, flag: str) -> dict[str, str]:
    """The settings of a repeatable flag, as KEY=VALUE each, or of a mapping in a job file."""
    if isinstance(given, dict):
        return {str(key): _as_text(value) for key, value in given.items()}
    found = {}
    for setting in given or ():
        key, equals, value = str(setting).partition("=")
        if not equals:
            raise InvalidInputError(f"{flag} {setting}: expected KEY=VALUE.")
        found[key] = value
    return found


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def json_text(value: Any) -> str:
    """A result as JSON; numbers that are not finite, which JSON lacks, are null."""
    return json.dumps(_plain(value), indent=2)


def write_json(value: Any, path: str | None) -> None:
    """Write a result as JSON to a file, at any path or URL that fsspec writes, or to standard output without one."""
    if path in (None, "-"):
        print(json_text(value))
    elif (found := local_path(str(path))) is not None:
        in_folder(found).write_text(json_text(value) + "\n")
    else:
        filesystem, name = open_filesystem(path)
        retried(lambda: write_whole(filesystem, name, [f"{json_text(value)}\n".encode()]))


def in_folder(path: str) -> Path:
    """The path of a local file to write, in a folder that exists: it is created where it is missing."""
    found = Path(local_path(path) or path)
    found.parent.mkdir(parents=True, exist_ok=True)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "toArray"):  # a Vector
        value = value.toArray()
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
