"""Checkpoints on any storage that fsspec knows, from which an interrupted fit resumes (rank 0; ``acquire``: driver).

A folder contains the checkpoints of one fit::

    checkpointDir/
        fit.json                                what identifies the fit: Params, columns, network
        rows-3b0c.../                           the rows it trains on
            checkpoint-auto-000002-000000000    after two epochs and no step of the third

Readers see a checkpoint whole or not at all: it is written under another name and renamed or, on an object store,
written at once. It ends with a hash of its content. The last two are kept: where the newest is damaged, the one before
it is used. What fails because the storage is away or busy is tried again for a few seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cos_ml.data import blobs
from cos_ml.errors import CosMLError, InvalidInputError, RankError
from cos_ml.spec import ANY_RUN, CheckpointConfig
from cos_ml.stores import exists, is_local, make_folder, open_filesystem, retried, write_whole

__all__ = ["Checkpoint", "CheckpointStore", "acquire", "find"]

KEPT = 2
HASH = hashlib.blake2b().digest_size
HEADER = "header"  # beside the arrays' names
NAME = re.compile(r"(?:checkpoint|state)-\w+-\d{6,}-\d{9,}")  # "state": an earlier format, reported as damaged
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps.

    Attributes:
        epoch: the number of finished epochs.
        step: the number of finished steps of the next epoch.
        plain: the part that JSON can hold: history, the state of callbacks and so on.
        arrays: name -> weights, optimizer variables and the like.
    """

    epoch: int
    step: int
    plain: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def arrays_under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names start with ``prefix``, by the rest of their names."""
        return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}

    def dump(self) -> list[Any]:
        """A file as bytes-like pieces: the arrays and, as JSON, the rest, then a hash of it all."""
        header = {"epoch": self.epoch, "step": self.step, "plain": self.plain}
        pieces = blobs.dump({HEADER: json.dumps(header).encode(), **self.arrays})
        digest = hashlib.blake2b()
        for piece in pieces:
            digest.update(piece)
        return [*pieces, digest.digest()]

    @classmethod
    def load(cls, data: bytes) -> Checkpoint:
        """The checkpoint in a file that ``dump`` returned.

        Raises:
            ValueError: the data is damaged, or was written by another version.
        """
        content = memoryview(data)[:-HASH]
        if len(data) < HASH or hashlib.blake2b(content).digest() != data[-HASH:]:
            raise ValueError(f"its hash does not match its {len(data):,} bytes")
        arrays = blobs.load(content)
        if HEADER not in arrays:
            raise ValueError("it has no header")
        return cls(**json.loads(arrays.pop(HEADER)), arrays=arrays)


def acquire(config: CheckpointConfig) -> None:
    """Reserve the folder for one training, and create it where necessary.

    Raises:
        InvalidInputError: the folder contains checkpoints of another training, or can't be written.
    """
    try:
        retried(partial(_acquire, config))
    except CosMLError:
        raise
    except Exception as error:  # each storage has its own exceptions
        raise InvalidInputError(
            f"Param checkpointDir: {config.url} can't be used: {type(error).__name__}: {error}. Expected a folder that "
            "fsspec can write and that the driver and all executors can reach."
        ) from error


def _acquire(config: CheckpointConfig) -> None:
    filesystem, root = _open(config.url)
    make_folder(filesystem, root)
    path = f"{root}/fit.json"
    stored = json.loads(filesystem.cat_file(path)) if exists(filesystem, path) else None
    fit = json.loads(json.dumps(config.fit))
    if stored == fit:
        return
    if stored is not None and config.run == ANY_RUN:
        raise InvalidInputError(
            f"Param checkpointDir: {config.url} contains checkpoints of another fit: {_difference(stored, fit)}. "
            'Use another folder for this fit, or set resume="never" to delete those checkpoints and start over.'
        )
    for rows in _rows(filesystem, root):
        filesystem.rm(rows, recursive=True)
    write_whole(filesystem, path, [json.dumps(fit, indent=1).encode()])


def _difference(stored: Any, fit: dict[str, Any]) -> str:
    """The Params that differ, with both values."""
    stored = stored if isinstance(stored, dict) else {}
    names = [name for name in (fit | stored) if stored.get(name) != fit.get(name)]
    return "; ".join(f"{name} was {_short(stored.get(name))} and is {_short(fit.get(name))} now" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def find(config: CheckpointConfig, rows: Sequence[Any], limit: float) -> tuple[CheckpointStore, Checkpoint | None]:
    """Reserve the folder for one training; returns its checkpoints on these rows, and the newest of them.

    Args:
        config, rows: as for ``CheckpointStore``.
        limit: seconds that the storage may take.

    Raises:
        InvalidInputError: the folder contains checkpoints of another training, or can't be used.
        RankError: the storage does not answer in time: no retry helps as long as it does not.
    """
    result: Future[tuple[CheckpointStore, Checkpoint | None]] = Future()

    def look() -> None:
        try:
            acquire(config)
            store = CheckpointStore(config, rows)
            result.set_result((store, store.newest()))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=look, daemon=True).start()  # no thread can be ended
    try:
        return result.result(limit)
    except TimeoutError:
        if result.done():  # of the storage's own
            raise
        raise RankError(
            f"Param checkpointDir: {config.url} did not answer within {limit:g} s (three quarters of Param "
            "stallTimeout), so it is unknown where this training should resume. Fit again when the storage does, raise "
            "stallTimeout if it is that slow, or use another folder to start over."
        ) from None


class CheckpointStore:
    """The checkpoints of one training on its rows.

    Args:
        config: the folder and the run.
        rows: a digest of the rows; checkpoints of other rows are ignored.

    Attributes:
        local: whether they are on a disk of this host, or mounted on it.
        notes: messages to the user about the checkpoints that were found.
    """

    def __init__(self, config: CheckpointConfig, rows: Sequence[Any]) -> None:
        self.config = config
        self.filesystem, self.root = _open(config.url)
        self.local = is_local(self.filesystem)
        self.path = f"{self.root}/rows-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]}"
        self.notes: list[str] = []
        self._prefix = f"checkpoint-{config.run}-"
        self._damaged: set[str] = set()

    def newest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint; None where there is none."""
        retried(partial(make_folder, self.filesystem, self.path))
        names = retried(self._names)
        if self.config.run != ANY_RUN:
            for name in [name for name in names if not name.startswith(self._prefix)]:
                self._remove(name)
                names.remove(name)
        for name in reversed(names):
            try:
                return self._read(name)
            except ValueError as error:
                self.notes.append(f"The checkpoint {name} is damaged ({error}). The one before it is used, if any.")
                self._damaged.add(name)
        others = [path for path in retried(partial(_rows, self.filesystem, self.root)) if not path.endswith(self.path)]
        if not names and others and self.config.run == ANY_RUN:
            self.notes.append(
                f"The checkpoints in {self.config.url} belong to other rows: this fit starts from its first epoch. "
                "Where rows differ each time Spark computes them, cache or store them first."
            )
        return None

    def _read(self, name: str) -> Checkpoint:
        """A checkpoint. One that looks damaged is read once more: the storage may have sent it in part."""
        read = partial(self.filesystem.cat_file, f"{self.path}/{name}")
        try:
            return Checkpoint.load(retried(read))
        except ValueError:
            return Checkpoint.load(retried(read))

    def write(self, checkpoint: Checkpoint) -> None:
        """Store one more checkpoint, and delete all but the last two that are undamaged."""
        name = f"{self._prefix}{checkpoint.epoch:06d}-{checkpoint.step:09d}"
        retried(partial(write_whole, self.filesystem, f"{self.path}/{name}", checkpoint.dump()))
        self._damaged.discard(name)
        names = retried(self._names)
        kept = [name for name in names if name not in self._damaged][-KEPT:]
        for old in set(names) - set(kept):
            self._remove(old)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # an attempt whose answer was lost removed it
            retried(partial(self.filesystem.rm_file, f"{self.path}/{name}"))

    def _names(self) -> list[str]:
        """The names of all checkpoints, the newest last; files that a killed writer left unfinished are deleted."""
        self.filesystem.invalidate_cache()
        try:
            paths = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:  # object storage has no empty folders
            paths = []
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
        for name in names:
            if name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    self.filesystem.rm_file(f"{self.path}/{name}")
        return sorted(filter(NAME.fullmatch, names), key=lambda name: [int(number) for number in name.split("-")[2:]])


def _open(url: str) -> tuple[Any, str]:
    filesystem, root = open_filesystem(url)
    return filesystem, root.rstrip("/")


def _rows(filesystem: Any, root: str) -> list[str]:
    """The folders of checkpoints in ``root``; not by a glob, as its name may contain brackets."""
    filesystem.invalidate_cache()
    paths = [path.rstrip("/") for path in filesystem.ls(root, detail=False)] if exists(filesystem, root) else []
    return [path for path in paths if path.rsplit("/", 1)[-1].startswith("rows-")]
