"""Checkpoints on any storage that fsspec knows, from which an interrupted fit resumes (rank 0; ``acquire``: driver).

A folder contains the checkpoints of one fit::

    checkpointDir/
        fit.json                                what identifies the fit: Params, columns, network
        rows-3b0c.../                           the rows it trains on
            checkpoint-auto-000002-000000000    after two epochs and no step of the third

Readers see a checkpoint whole or not at all: it is written under another name and renamed or, on an object store,
written at once. It states its format and ends with a hash of its content. The last two are kept: where the newest is
damaged, or of another format or network, the one before it is used. What fails because the storage is away or busy is
tried again for a few seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cos_ml.data import blobs
from cos_ml.errors import CosMLError, InvalidInputError, RankError
from cos_ml.spec import ANY_RUN, CheckpointConfig
from cos_ml.stores import exists, is_local, make_folder, open_filesystem, retried, write_whole

__all__ = ["Checkpoint", "CheckpointStore", "acquire", "find"]

FORMAT = 1  # of a checkpoint's content; files that state none have this one
KEPT = 2
HASH = hashlib.blake2b().digest_size
TRAINING = "training"  # in the plain part: a digest of the fit and its rows, which early files lack
HEADER = "header"  # beside the arrays' names
NAME = re.compile(r"(?:checkpoint|state)-\w+-\d{6,}-\d{9,}")  # "state": an earlier format, reported as damaged
SHOWN = 60  # characters of a value in a message
MAX_FIT_BYTES = 16 << 20  # of fit.json


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
        header = {"format": FORMAT, "epoch": self.epoch, "step": self.step, "plain": self.plain}
        pieces = blobs.dump({HEADER: json.dumps(header).encode(), **self.arrays})
        digest = hashlib.blake2b()
        for piece in pieces:
            digest.update(piece)
        return [*pieces, digest.digest()]

    @classmethod
    def load(cls, data: bytes) -> Checkpoint:
        """The checkpoint in a file that ``dump`` returned.

        Raises:
            ValueError: the data is damaged, or has another format.
        """
        content = memoryview(data)[:-HASH]
        if len(data) < HASH or hashlib.blake2b(content).digest() != data[-HASH:]:
            raise ValueError(f"its hash does not match its {len(data):,} bytes")
        arrays = blobs.load(content)
        return cls(*_header(arrays.pop(HEADER, b"null")), arrays=_arrays(arrays))


def _header(content: Any) -> tuple[int, int, dict[str, Any]]:
    """Epoch, step and the plain part of a checkpoint; raises ValueError where they are missing or of another format."""
    try:
        header = json.loads(content)
    except (RecursionError, TypeError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    header = header if isinstance(header, dict) else {}
    if (found := header.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"it has format {_short(found)}, expected {FORMAT}: another version of cos_ml wrote it")
    epoch, step, plain = (header.get(name) for name in ("epoch", "step", "plain"))
    if not isinstance(plain, dict) or not all(type(one) is int and one >= 0 for one in (epoch, step)):
        raise ValueError("its header lacks the epoch, the step or what belongs to them")
    return epoch, step, plain  # type: ignore[return-value]


def _arrays(items: dict[str, Any]) -> dict[str, np.ndarray]:
    if other := next((name for name, item in items.items() if not isinstance(item, np.ndarray)), None):
        raise ValueError(f"{other!r:.80} is no array")
    return items


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
    stored, wrong = _stored_fit(filesystem, path)
    fit = json.loads(json.dumps(config.fit))
    if stored == fit and not wrong:
        return
    if (stored is not None or wrong) and config.run == ANY_RUN:
        raise InvalidInputError(
            f"Param checkpointDir: {config.url} {wrong or _another(stored, fit)}. Use another folder for this fit, or "
            'set resume="never" to delete the checkpoints there and start over.'
        )
    for rows in _rows(filesystem, root):
        filesystem.rm(rows, recursive=True)
    write_whole(filesystem, path, [json.dumps(fit, indent=1).encode()])


def _stored_fit(filesystem: Any, path: str) -> tuple[dict[str, Any] | None, str]:
    """What identifies the fit that has the folder, or None; and what is wrong with the file that says it, or ""."""
    try:
        kind = filesystem.info(path)["type"]
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    if kind == "directory":
        raise InvalidInputError(
            f"Param checkpointDir: {path} is a folder, expected a file of cos_ml or none. Remove it, or use another "
            "folder for this fit."
        )
    try:
        stored = json.loads(filesystem.cat_file(path, end=MAX_FIT_BYTES))
    except (RecursionError, ValueError) as error:
        return None, f"contains a damaged fit.json, so that nobody knows whose checkpoints are there: {error}"
    if not isinstance(stored, dict):
        return None, f"contains a fit.json that no fit of cos_ml has written: {_short(stored)}"
    return stored, ""


def _another(stored: dict[str, Any] | None, fit: dict[str, Any]) -> str:
    if not stored or not stored.keys() & fit.keys():
        return f"contains a fit.json that no fit of cos_ml has written: {_short(stored)}"
    return f"contains checkpoints of another fit: {_difference(stored, fit)}"


def _difference(stored: dict[str, Any], fit: dict[str, Any]) -> str:
    """The Params that differ, with both values."""
    names = [name for name in (fit | stored) if stored.get(name) != fit.get(name)]
    return "; ".join(f"{name} was {_short(stored.get(name))} and is {_short(fit.get(name))} now" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def find(
    config: CheckpointConfig, rows: Sequence[Any], limit: float, check: Callable[[Checkpoint], None] | None = None
) -> tuple[CheckpointStore, Checkpoint | None]:
    """Reserve the folder for one training; returns its checkpoints on these rows, and the newest of them.

    Args:
        config, rows: as for ``CheckpointStore``.
        limit: seconds that the storage may take.
        check: as for ``CheckpointStore.newest``.

    Raises:
        InvalidInputError: the folder contains checkpoints of another training, or can't be used.
        RankError: the storage does not answer in time: no retry helps as long as it does not.
    """
    result: Future[tuple[CheckpointStore, Checkpoint | None]] = Future()

    def look() -> None:
        try:
            acquire(config)
            store = CheckpointStore(config, rows)
            result.set_result((store, store.newest(check)))
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
        self.path = f"{self.root}/rows-{_digest(rows)}"
        self._training = _digest([config.fit, rows])
        self.notes: list[str] = []
        self._prefix = f"checkpoint-{config.run}-"
        self._damaged: set[str] = set()
        self._folders: set[str] = set()

    def newest(self, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint | None:
        """The newest checkpoint that can be used; None where there is none. Of others there is a note.

        Args:
            check: raises ValueError for a checkpoint that does not fit this training.
        """
        retried(partial(make_folder, self.filesystem, self.path))
        names = retried(self._names)
        if self.config.run != ANY_RUN:
            for name in [name for name in names if not name.startswith(self._prefix)]:
                self._remove(name)
                names.remove(name)
        for name in reversed(names):
            try:
                return self._read(name, check)
            except ValueError as error:
                self._pass_over(name, f"is damaged or not of this training ({error})")
                self._damaged.add(name)
        others = [path for path in retried(partial(_rows, self.filesystem, self.root)) if not path.endswith(self.path)]
        if not names and others and self.config.run == ANY_RUN:
            self.notes.append(
                f"The checkpoints in {self.config.url} belong to other rows: this fit starts from its first epoch. "
                "Where rows differ each time Spark computes them, cache or store them first."
            )
        return None

    def _read(self, name: str, check: Callable[[Checkpoint], None] | None) -> Checkpoint:
        """A checkpoint. One that looks damaged is read once more: the storage may have sent it in part."""
        read = partial(self.filesystem.cat_file, f"{self.path}/{name}")
        try:
            found = Checkpoint.load(retried(read))
        except ValueError:
            found = Checkpoint.load(retried(read))
        if found.plain.pop(TRAINING, self._training) != self._training:  # moved here by hand from another folder
            raise ValueError("it is of another training")
        if check is not None:
            check(found)
        return found

    def _pass_over(self, name: str, why: str) -> None:
        self.notes.append(f"The checkpoint {name} {why}. The one before it is used, if any.")

    def write(self, checkpoint: Checkpoint) -> None:
        """Store one more checkpoint, and delete all but the last two that are undamaged."""
        name = f"{self._prefix}{checkpoint.epoch:06d}-{checkpoint.step:09d}"
        if name in self._folders:  # a file would be moved into it
            raise IsADirectoryError(f"{self.path}/{name} is a folder: remove it")
        marked = replace(checkpoint, plain=checkpoint.plain | {TRAINING: self._training})
        retried(partial(write_whole, self.filesystem, f"{self.path}/{name}", marked.dump()))
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
            entries = self.filesystem.ls(self.path, detail=True)
        except FileNotFoundError:  # object storage has no empty folders
            entries = []
        kinds = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["type"] for entry in entries}
        folders = {name for name, kind in kinds.items() if kind == "directory" and NAME.fullmatch(name)}
        for name in folders - self._folders:
            self._pass_over(name, "is a folder")
            self._folders.add(name)
        names = [name for name, kind in kinds.items() if kind != "directory"]
        for name in names:
            if name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    self.filesystem.rm_file(f"{self.path}/{name}")
        return sorted(filter(NAME.fullmatch, names), key=lambda name: [int(number) for number in name.split("-")[2:]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _open(url: str) -> tuple[Any, str]:
    filesystem, root = open_filesystem(url)
    return filesystem, root.rstrip("/")


def _rows(filesystem: Any, root: str) -> list[str]:
    """The folders of checkpoints in ``root``; not by a glob, as its name may contain brackets."""
    filesystem.invalidate_cache()
    paths = [path.rstrip("/") for path in filesystem.ls(root, detail=False)] if exists(filesystem, root) else []
    return [path for path in paths if path.rsplit("/", 1)[-1].startswith("rows-")]
