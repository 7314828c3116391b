"""Storage that fails as a test says, and a session whose default file system is any."""

from typing import ClassVar

import fsspec
from pyspark.errors import AnalysisException

MEMORY = fsspec.get_filesystem_class("memory")


class FaultyStore(MEMORY):
    """Files in memory, with a rename. Each operation takes the first of ``failures``, and raises it if it is one."""

    protocol = "faulty"
    cachable = False
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failures: ClassVar[list] = []

    @classmethod
    def reset(cls):
        cls.store, cls.pseudo_dirs, cls.failures = {}, [""], []

    def _fail(self):
        if self.failures and (failure := self.failures.pop(0)):
            raise failure

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def _open(self, path, mode="rb", **options):
        self._fail()
        return super()._open(path, mode, **options)

    exists = fsspec.AbstractFileSystem.exists  # that of most stores: any error means no

    def cat_file(self, path, **options):
        self._fail()
        return super().cat_file(path, **options)

    def info(self, path, **options):
        self._fail()
        return super().info(path, **options)

    def makedirs(self, path, exist_ok=False):
        self._fail()
        super().makedirs(path, exist_ok=exist_ok)

    def mv(self, path1, path2, **options):
        self._fail()
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


class ObjectStore(FaultyStore):
    """The same without a rename, as object stores are."""

    protocol = "objects"
    store: ClassVar[dict] = {}
    mv = fsspec.AbstractFileSystem.mv


class Session:
    """Looks for files as Spark does, in folders below ``home``; or raises ``home``."""

    def __init__(self, home, s3=False):
        self.home, self.s3, self.asked, self.default = home, s3, 0, ""
        self.conf = self.read = self

    def get(self, name, default):
        return self.default

    def option(self, *_):
        return self

    def text(self, names):
        self.asked += 1
        if isinstance(self.home, Exception):
            raise self.home
        if names[0].startswith("s3:") and not self.s3:
            raise RuntimeError('No FileSystem for scheme "s3"')
        found = f"{self.home.rstrip('/')}/{names[0]}"
        raise AnalysisException(f"[PATH_NOT_FOUND] Path does not exist: {found}. SQLSTATE: 42K03")
