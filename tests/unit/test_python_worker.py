import gc
import importlib
import sys
import weakref
import zipfile
import zipimport

import pytest
from pyspark import SparkFiles

from cos_ml import python_worker


class Context:
    def cpus(self):
        return 3


@pytest.fixture
def task(monkeypatch, tmp_path):
    """A task's worker, with the files of ``addPyFile`` in ``tmp_path / "added"``."""
    added = tmp_path / "added"
    added.mkdir()
    monkeypatch.setattr(python_worker.TaskContext, "get", classmethod(lambda _: Context()))
    monkeypatch.setattr(SparkFiles, "getRootDirectory", classmethod(lambda _: str(added)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "path_importer_cache", dict(sys.path_importer_cache))
    return tmp_path


def archive(path, *members):
    """An archive on ``sys.path`` in which Python has looked for a module."""
    with zipfile.ZipFile(path, "w") as made:
        for member in members:
            made.writestr(member, "VALUE = 1")
    sys.path.append(str(path))
    sys.path_importer_cache[str(path)] = zipimport.zipimporter(str(path))
    return str(path)


def test_archives_are_not_read_again(task):
    jar = archive(task / "core.zip", "a/B.class")
    spark = archive(task / "spark.zip", "of_spark/__init__.py", "of_spark/part.py", "of_spark/other.py")
    own = archive(task / "added" / "own.zip", "data.txt")
    importlib.import_module("of_spark.part")

    assert f"{spark}/of_spark" in sys.path_importer_cache
    python_worker.spare_archives()
    assert jar not in sys.path
    assert spark in sys.path
    assert own in sys.path
    left = [path for path, one in sys.path_importer_cache.items() if isinstance(one, zipimport.zipimporter)]
    assert left == [own]
    assert importlib.import_module("of_spark.other").VALUE == 1
    for name in [name for name in sys.modules if name.startswith("of_spark")]:
        del sys.modules[name]


def test_the_drivers_own_path_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    jar = archive(tmp_path / "core.jar", "a/B.class")
    python_worker.spare_archives()
    assert jar in sys.path
    del sys.path_importer_cache[jar]


def test_what_is_frozen_goes_when_it_is_garbage():
    class Cycle:
        pass

    kept, dropped = Cycle(), Cycle()
    dropped.itself = dropped
    seen = weakref.ref(dropped)
    try:
        python_worker.freeze()
        assert gc.get_freeze_count() > 1000
        del dropped
        gc.collect()
        assert seen() is not None  # the collector passes over it
        python_worker.freeze()
        assert seen() is None
        assert kept
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("given", "cores"), [("4", 4), ("2,1", 2), (None, 3), ("", 3), ("many", 3)])
def test_cores(task, monkeypatch, given, cores):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert python_worker.cores() == cores
