"""What a task does once to the Python worker that runs it, for the tasks after it (scoring task side).

PySpark's worker does two things for each task whose cost grows with what is loaded: it lets Python read the directories
of archives on ``sys.path`` again, of which Spark's own take 0.1 to 0.2 s, and it collects garbage.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import zipfile
import zipimport

from pyspark import SparkFiles, TaskContext

__all__ = ["cores", "freeze", "spare_archives"]

PYTHON = (".py", ".pyc")


def spare_archives() -> None:
    """Let Python not read Spark's archives again for the next task of this worker.

    One without Python, such as the jar that Spark puts there, leaves ``sys.path``. Of others Python forgets its
    importers, one for each package in them, which it makes anew from what it knows of the archive when they are needed.
    Archives from ``addPyFile`` stay as they are.
    """
    if TaskContext.get() is None:  # the driver's own process, whose path is the user's
        return
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
        return True  # whatever it is, it is not ours to judge


def freeze() -> None:
    """Let the garbage collector pass over all that is alive now: TensorFlow, Keras and the networks of this worker.

    It is called when a network has computed its first rows. What is garbage by then goes first, with that of networks
    that were frozen before and dropped for this one.
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
