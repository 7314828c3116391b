"""Files of Keras's callbacks on HDFS or an object store: written to local disk, and copied from there (rank side)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras

from cos_ml.callbacks import PATHS
from cos_ml.paths import local_path
from cos_ml.stores import exists, make_folder, open_filesystem, retried, write_whole

__all__ = ["CopyFilesCallback", "with_local_path"]


def with_local_path(plain: dict[str, Any], report: Callable[..., None]) -> tuple[dict[str, Any], Any]:
    """A callback as ``cos_ml.callback`` describes it, which writes to local disk, and the one that copies its files.

    Returns:
        tuple[dict[str, Any], Any]: ``plain`` itself and None, if its path is local or it has none.
    """
    kind = plain["class"].removeprefix("keras.callbacks:")
    name = PATHS.get(kind, "")
    url = plain["arguments"].get(name)
    if not isinstance(url, str) or local_path(url) is not None:
        return plain, None
    # ModelCheckpoint's path may have fields, such as {epoch}, whose values only the callback knows.
    folder = url if kind == "TensorBoard" else url.partition("{")[0].rpartition("/")[0]
    copies = CopyFilesCallback(kind, folder.rstrip("/"), report)
    written = f"{copies.local}{url.removeprefix(folder)}"
    if kind == "CSVLogger":  # which may add to a file that exists
        copies.fetch(Path(written).name)
    return plain | {"arguments": plain["arguments"] | {name: written}}, copies


class CopyFilesCallback(keras.callbacks.Callback):
    """Copies what a callback has written on local disk to a folder elsewhere, at the end of each epoch.

    What can't be copied is a note: a training is worth more than a log.

    Args:
        kind: the class of the callback, for notes.
        url: the folder.
        report: sends an event to the driver.

    Attributes:
        local: the local folder, which ends with the rank.
    """

    def __init__(self, kind: str, url: str, report: Callable[..., None]) -> None:
        super().__init__()
        self.kind, self.url, self.report = kind, url, report
        self.local = tempfile.mkdtemp(prefix="cos_ml-")
        self.filesystem, root = open_filesystem(url)
        self.root = root.rstrip("/")
        self.copied: dict[str, tuple[int, int]] = {}

    def fetch(self, name: str) -> None:
        """Copy a file here, if it exists."""
        path = f"{self.root}/{name}"
        if retried(partial(exists, self.filesystem, path)):
            Path(self.local, name).write_bytes(retried(partial(self.filesystem.cat_file, path)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Copies what has changed."""
        self._copy(f"after epoch {epoch + 1}")

    def on_train_end(self, logs: Any = None) -> None:
        """Copies what has changed, the files that are closed at the end among it."""
        self._copy("at the end of the training")

    def _copy(self, when: str) -> None:
        try:
            for folder, _, names in os.walk(self.local):
                for name in names:
                    self._copy_file(Path(folder, name))
        except Exception as error:  # each storage has its own exceptions
            self.report(event="note", text=f"{self.kind}'s files could not be written to {self.url} {when}: {error!r}.")

    def _copy_file(self, file: Path) -> None:
        found = file.stat()
        version, name = (found.st_mtime_ns, found.st_size), str(file.relative_to(self.local))
        if self.copied.get(name) != version:
            path = f"{self.root}/{name}"
            retried(partial(make_folder, self.filesystem, path.rpartition("/")[0]))
            retried(partial(write_whole, self.filesystem, path, [file.read_bytes()]))
            self.copied[name] = version
