"""Spares a Python worker work that PySpark repeats for each of its tasks (barrier task and scoring task side).

For each task, PySpark's worker has Python read the directories of the archives on ``sys.path`` again, which takes 0.1
to 0.2 s for Spark's own, and collects garbage, which takes longer the more is loaded.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import zipfile
import zipimport

from pyspark import TaskContext

__all__ = ["cores", "current_task", "freeze", "spare_archives"]

PYTHON = (".py", ".pyc")


def current_task() -> TaskContext:
    """The task that this Python worker runs."""
    context = TaskContext.get()
    assert context is not None
    return context


def spare_archives() -> None:
    """Keep Python from reading Spark's archives again for the next task of this worker.

    Archives without Python code, such as the jar that Spark puts there, are removed from ``sys.path``. Of the others,
    the cached importers are dropped, one for each package; Python makes them again from its cache of the archives'
    directories when it needs them. Archives from ``addPyFile`` stay as they are.
    """
    if TaskContext.get() is None:  # the driver's own process, whose path is the user's
        return
    from pyspark import SparkFiles  # which pyspark-client lacks; no tasks run on it

    added = SparkFiles.getRootDirectory()
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter) and not path.startswith(added):
            del sys.path_importer_cache[path]
            if path in sys.path and not _has_python(path):
                sys.path.remove(path)


@functools.cache
def _has_python(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(PYTHON) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return True  # not known to have none


def freeze() -> None:
    """Exclude from garbage collection all that is alive now: TensorFlow, Keras and the networks of this worker.

    Call it when a network has computed its first rows. Garbage is collected before, and with it networks that were
    frozen earlier and have been dropped for this one.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def cores() -> int:
    """The number of cores of this task: ``spark.task.cpus``, or what its resource profile says."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # how Spark passes spark.task.cpus to its workers
    if given.isdecimal():
        return int(given)
    context = TaskContext.get()
    return context.cpus() if context else 1
