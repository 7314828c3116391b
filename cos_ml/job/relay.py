"""Progress of fits in sessions of Spark Connect, by way of the server's host (client, server and relay side).

Executors often can't reach a client, but they reach the server, which is Spark's driver. A process there, the relay,
takes the events of a fit, and the client asks for them: the schema of a table function is computed there, without a
task. The relay ends when the client removes its folder, or asks no more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_ml.job.progress import Address, ProgressServer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["relayed"]

PERIOD = 2.0  # seconds between two questions of the client, each a short process on the server's host
LONGEST = 60.0  # seconds without a question after which a relay ends
POLL = 0.05  # seconds
MAX_ANSWER, MAX_EVENTS = 256 << 10, 256 << 20  # bytes of events, in one answer and in all
FUNCTION = "cos_ml_relay"  # of the session
EVENTS, ADDRESS, ERRORS = "events", "address", "errors"  # a relay's files

logger = logging.getLogger(__name__)


# ── client ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def relayed(
    spark: SparkSession, host: str, show: Callable[[dict[str, Any]], None], ports: Sequence[int] | None = None
) -> Iterator[Address | None]:
    """Where ranks report progress, which is passed to ``show`` for the length of a ``with`` block; None for nowhere.

    Args:
        spark: the session.
        host: where the relay listens, an address of Spark's driver.
        show: takes each event.
        ports: those that the relay may listen on; None for any.
    """
    from pyspark.sql import functions as F

    name, over = secrets.token_hex(16), threading.Event()  # who knows the name can read the events
    function: Any = F.udtf(Relay)
    try:
        spark.udtf.register(FUNCTION, function)
        address = Address(**_ask(spark, "start", name, host, list(ports or ())))
    except Exception as error:  # progress is never a reason to fail
        logger.warning("No progress will be shown: the server of Spark Connect can't relay it. %s", _reason(error))
        yield None
        return
    fetching = threading.Thread(target=_fetch, args=(spark, name, show, over), name="cos_ml progress", daemon=True)
    fetching.start()
    try:
        yield address
    finally:
        over.set()
        fetching.join(LONGEST)  # the server may be gone, for which the client waits long


def _fetch(spark: SparkSession, name: str, show: Callable[[dict[str, Any]], None], over: threading.Event) -> None:
    """Pass events on until ``over``, then the rest of them, and end the relay, which otherwise ends by itself."""
    events: list[Any] = []
    offset, ended, answered = 0, False, time.monotonic()
    while events or not ended:
        ended, events = over.wait(PERIOD), []
        try:
            offset, events = _ask(spark, "fetch", name, offset)
            answered = time.monotonic()
        except Exception as error:
            if ended:
                return
            if time.monotonic() > answered + LONGEST:
                logger.warning("No more progress will be shown: Spark Connect's relay has ended. %s", _reason(error))
                return
        for event in events:
            show(event)
    with contextlib.suppress(Exception):
        _ask(spark, "end", name)


def _ask(spark: SparkSession, *question: Any) -> Any:
    """What ``_answer`` returns on the server's host."""
    unique = secrets.token_hex(8)  # the server remembers the schemas of queries
    asked = {"question": json.dumps(question), "unique": unique}
    [field] = spark.sql(f"SELECT * FROM {FUNCTION}(:question, :unique)", asked).schema.fields
    return json.loads(field.metadata["answer"])


def _reason(error: Exception) -> str:
    """The line of an error's text that names its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception): ", line)), lines[0])


# ── server ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Relay:
    """A table function whose schema has the answer to a question; it has no rows."""

    @staticmethod
    def analyze(question: Any, unique: Any) -> Any:
        """The schema, which Spark asks for on the host of its driver."""
        from pyspark.sql.types import StringType, StructField, StructType
        from pyspark.sql.udtf import AnalyzeResult

        answer = {"answer": json.dumps(_answer(*json.loads(question.value)))}
        return AnalyzeResult(StructType([StructField("answer", StringType(), metadata=answer)]))

    def eval(self, question: str, unique: str) -> Iterator[tuple[str]]:
        """Nothing: Spark requires the method."""
        yield from ()


def _answer(request: str, name: str, *arguments: Any) -> Any:
    """Starts a relay and returns its address; or returns an offset and the events up to it; or ends the relay.

    Spark may ask twice.
    """
    folder = Path(tempfile.gettempdir(), f"cos_ml-relay-{name}")
    if request == "start":
        return _start(folder, *arguments)
    if request == "fetch":
        return _events(folder, *arguments)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _start(folder: Path, host: str, ports: list[int]) -> dict[str, Any]:
    """Start a relay, and wait until it listens; returns its address."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        command = [sys.executable, "-m", __name__, str(folder), host, *map(str, ports)]
        with (folder / ERRORS).open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        while process.poll() is None and not (folder / ADDRESS).exists():
            time.sleep(POLL)
    if (folder / ADDRESS).exists():
        address: dict[str, Any] = json.loads((folder / ADDRESS).read_text())
        return address
    problem = (folder / ERRORS).read_text().strip() or "It ended at once."
    shutil.rmtree(folder)
    raise RuntimeError(problem.splitlines()[-1])


def _events(folder: Path, offset: int) -> tuple[int, list[Any]]:
    """The events from this offset of their file on, and the offset of those that follow."""
    os.utime(folder)  # the sign that somebody asks
    with (folder / EVENTS).open("rb") as file:
        file.seek(offset)
        text = file.read(MAX_ANSWER)
    whole = text[: text.rfind(b"\n") + 1]
    return offset + len(whole), [json.loads(line) for line in whole.splitlines()]


# ── relay ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def serve(folder: Path, host: str, ports: Sequence[int]) -> None:
    """Write the events that arrive into a file, until the folder is gone or nobody has asked for long."""
    with (folder / EVENTS).open("ab", buffering=0) as file:

        def write(event: dict[str, Any]) -> None:
            if file.tell() < MAX_EVENTS:
                file.write(json.dumps(event).encode() + b"\n")

        with contextlib.closing(ProgressServer(host, write, ports)) as server:
            unfinished = folder / f"{ADDRESS}.part"
            unfinished.write_text(json.dumps(asdict(server.address)))
            unfinished.rename(folder / ADDRESS)
            asked, since = 0, time.monotonic()
            with contextlib.suppress(FileNotFoundError):  # the client has removed the folder
                while time.monotonic() < since + LONGEST:
                    if asked != (latest := folder.stat().st_mtime_ns):
                        asked, since = latest, time.monotonic()
                    time.sleep(PERIOD)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], [*map(int, sys.argv[3:])])
