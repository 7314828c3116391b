"""Archives of networks for tasks: Spark's broadcasts, given back with the networks (driver; ``read`` in tasks).

A client of Spark Connect has no broadcasts. It sends small archives with each query, and large ones once to its
session, as files (artifacts), which executors fetch; Spark removes them when the session ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cos_ml import spark_internals
from cos_ml.disks import is_full, no_room

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.core.broadcast import Broadcast
    from pyspark.sql import SparkSession

    from cos_ml.network.archive import Network

    Archive: TypeAlias = "bytes | SessionFile | Broadcast[bytes]"

__all__ = ["read", "shared", "temporary"]

MUCH = 256 << 20  # bytes of files without a network, for which the JVM is asked what still uses them
LONGEST = 60.0  # seconds between two looks at such files
IN_QUERY = 16 << 20  # bytes of archives that a query of Connect carries; no message may have more than 128 MiB


@dataclass(frozen=True)
class SessionFile:
    """An archive that a session of Spark Connect has as a file, which is named after its hash."""

    name: str


class _Shared:
    """The broadcast of one network in one SparkContext.

    Attributes:
        broadcast: what tasks are given.
        file: its file on the driver, with a weak reference to what the JVM has of it; None if unknown.
        users: the networks that are alive, by ``id``.
    """

    def __init__(self, broadcast: Broadcast[bytes]) -> None:
        self.broadcast, self.file = broadcast, spark_internals.broadcast_file(broadcast)
        self.users: set[int] = set()


_known: weakref.WeakKeyDictionary[SparkContext, dict[str, _Shared]] = weakref.WeakKeyDictionary()
_sent: weakref.WeakKeyDictionary[SparkSession, set[str]] = weakref.WeakKeyDictionary()  # files of sessions, by name
_left: list[tuple[Path, Any]] = []  # files whose networks are gone; lazy DataFrames may still need them
_lock = threading.RLock()  # networks may end anywhere, also while this thread holds it
_sweeper: list[threading.Thread] = []


def shared(spark: SparkSession, network: Network) -> Archive:
    """The archive of a network for tasks: a broadcast that all calls share while the network lives.

    A DataFrame that was made with it goes on working when the network is gone.
    """
    if spark_internals.is_connect(spark):
        return _sent_archives(spark, [network.archive])[0]
    context = spark.sparkContext
    with _lock:
        sweep()
        for ended in [one for one in _known if one is not context]:  # a process has one SparkContext at a time
            del _known[ended]
        networks = _known.setdefault(context, {})
        found = networks.get(network.digest)
        if found is None:
            if sum(path.stat().st_size for path, _ in _left if path.exists()) > MUCH:
                spark_internals.collect_garbage(context)
            found = networks[network.digest] = _Shared(_broadcast(context, network.archive))
        if id(network) not in found.users:
            found.users.add(id(network))
            weakref.finalize(network, _release, weakref.ref(context), network.digest, id(network)).atexit = False
        return found.broadcast


def _release(context: weakref.ref[SparkContext], digest: str, user: int) -> None:
    """Called when a network is gone: the last one drops the broadcast, which the JVM frees when no plan has it."""
    with _lock:
        networks = _known.get(context()) if context() else None  # type: ignore[arg-type]
        if not networks or digest not in networks:
            return
        found = networks[digest]
        found.users.discard(user)
        if not found.users:
            del networks[digest]
            if found.file:
                _left.append(found.file)
            if not _sweeper:
                _sweeper.append(threading.Thread(target=_sweep_on, name="cos_ml broadcasts", daemon=True))
                _sweeper[0].start()


def sweep() -> None:
    """Remove the files of networks that are gone and that no plan of the JVM refers to any more."""
    with _lock:
        for entry in list(_left):
            path, reference = entry
            if not spark_internals.is_alive(reference):
                with contextlib.suppress(OSError):
                    path.unlink()
                _left.remove(entry)


def _sweep_on() -> None:
    """Sweep now and then until nothing is left."""
    pause = 0.5
    while True:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST)
        with _lock:
            sweep()
            if not _left:
                _sweeper.clear()
                return


@contextlib.contextmanager
def temporary(spark: SparkSession, archives: Sequence[bytes]) -> Iterator[tuple[Archive, ...]]:
    """``archives`` for the tasks of one job; broadcasts end with this block."""
    if spark_internals.is_connect(spark):
        yield _sent_archives(spark, archives)
        return
    if not hasattr(spark.sparkContext, "broadcast"):
        yield tuple(archives)
        return
    made: list[Any] = []
    try:
        for archive in archives:
            made.append(_broadcast(spark.sparkContext, archive))
        yield tuple(made)
    finally:
        for one in made:
            with contextlib.suppress(Exception):  # the session has ended
                one.destroy()


def _broadcast(context: SparkContext, archive: bytes) -> Broadcast[bytes]:
    """An archive as a broadcast, which the driver keeps on its disk, twice.

    Raises:
        InvalidInputError: the disk is full.
    """
    try:
        return context.broadcast(archive)
    except Exception as error:  # PySpark's PicklingError, or an IOException of the JVM
        if not is_full(error):
            raise
        text = next(line for line in str(error).splitlines() if is_full(line))
        folder = context.getConf().get("spark.local.dir", None) or tempfile.gettempdir()
        raise no_room(f"a network of {len(archive):,} bytes", folder, text.strip()) from None


def _sent_archives(spark: SparkSession, archives: Sequence[bytes]) -> tuple[Archive, ...]:
    """``archives`` as a query of Connect has them: themselves, or as files that its session has received."""
    if sum(map(len, archives)) < IN_QUERY:
        return tuple(archives)
    return tuple(_session_file(spark, archive) for archive in archives)


def _session_file(spark: SparkSession, archive: bytes) -> SessionFile:
    """A file of the session, which is sent if it was not before."""
    name = f"cos_ml-{hashlib.sha256(archive).hexdigest()}"
    with _lock:
        sent = _sent.setdefault(spark, set())
        if name not in sent:
            with tempfile.TemporaryDirectory(prefix="cos_ml-") as folder:
                path = Path(folder, name)
                path.write_bytes(archive)
                spark.addArtifacts(str(path), file=True)
            sent.add(name)
    return SessionFile(name)


def read(archive: Archive) -> bytes:
    """The bytes of an archive, in a task."""
    if isinstance(archive, bytes):
        return archive
    if isinstance(archive, SessionFile):
        from pyspark import SparkFiles

        return Path(SparkFiles.get(archive.name)).read_bytes()
    return spark_internals.broadcast_value(archive)
