"""Training state on any storage that fsspec knows: a fit that was cut off goes on from it (rank 0; ``acquire``: driver).

A folder holds what one fit left behind::

    checkpointDir/
        fit.json                            whose states these are: Params, columns, network
        rows-3b0c.../                       on which rows
            state-auto-000002-000000000     after two epochs and no step of the third

A state is written under another name and renamed, so that whoever reads it sees all of it, and ends with a hash of all
that is before. The last two are kept: where the newest is damaged the one before it serves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cos_ml.data import blobs
from cos_ml.errors import InvalidInputError
from cos_ml.spec import ANY_RUN, CheckpointConfig

__all__ = ["Checkpoint", "CheckpointStore", "acquire"]

KEPT = 2
HASH = hashlib.blake2b().digest_size
HEADER = "header"  # beside the arrays' names
NAME = re.compile(r"state-(\w+)-(\d{6,})-(\d{9,})")
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps.

    Attributes:
        epoch: how many epochs are done.
        step: how many steps of the next one are done.
        plain: what JSON holds: history, the numbers of callbacks and so on.
        arrays: name -> weights, optimizer state and the like.
    """

    epoch: int
    step: int
    plain: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def dump(self) -> list[Any]:
        """A file as bytes-like pieces: the arrays and the rest as ``blobs.dump`` has them, then a hash of all that."""
        header = {"epoch": self.epoch, "step": self.step, "plain": self.plain}
        pieces = blobs.dump({HEADER: json.dumps(header).encode(), **self.arrays})
        digest = hashlib.blake2b()
        for piece in pieces:
            digest.update(piece)
        return [*pieces, digest.digest()]

    @classmethod
    def load(cls, data: bytes) -> Checkpoint:
        """The checkpoint of which ``dump`` made ``data``.

        Raises:
            ValueError: the data is damaged, or is another version's.
        """
        content = memoryview(data)[:-HASH]
        if len(data) < HASH or hashlib.blake2b(content).digest() != data[-HASH:]:
            raise ValueError(f"the hash of its {len(data):,} bytes is another one")
        arrays = blobs.load(content)
        if HEADER not in arrays:
            raise ValueError("it has no header")
        header = json.loads(arrays.pop(HEADER))
        return cls(header["epoch"], header["step"], header["plain"], arrays)


def acquire(folder: CheckpointConfig) -> None:
    """Make the folder this training's own.

    Raises:
        InvalidInputError: it holds states of another training, or can't be written.
    """
    try:
        filesystem, root = _open(folder.url)
        filesystem.makedirs(root, exist_ok=True)
        path = f"{root}/fit.json"
        there = json.loads(filesystem.cat_file(path)) if filesystem.exists(path) else None
        here = json.loads(json.dumps(folder.fit))
        if there == here:
            return
        if there is not None and folder.run == ANY_RUN:
            raise InvalidInputError(
                f"Param checkpointDir: {folder.url} holds the states of another fit: {_difference(there, here)}. Give "
                'this one a folder of its own, or set resume="never" to drop those states and start afresh.'
            )
        for one in filesystem.glob(f"{root}/rows-*"):
            filesystem.rm(one, recursive=True)
        _write_whole(filesystem, path, [json.dumps(here, indent=1).encode()])
    except InvalidInputError:
        raise
    except Exception as error:  # each storage has its own exceptions
        raise InvalidInputError(
            f"Param checkpointDir: {folder.url} can't be used: {type(error).__name__}: {error}. It has to be a folder "
            "that fsspec can write, and that the driver and all executors reach."
        ) from error


def _difference(there: Any, here: dict[str, Any]) -> str:
    """What is not the same, Param by Param."""
    there = there if isinstance(there, dict) else {}
    names = [name for name in (here | there) if there.get(name) != here.get(name)]
    return "; ".join(f"{name} is {_short(there.get(name))} there and {_short(here.get(name))} here" for name in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class CheckpointStore:
    """The states of one training on its rows.

    Args:
        folder: where they are.
        rows: a digest of the rows: states on other rows are not this training's.

    Attributes:
        notes: what a person should know of the states that were found.
    """

    def __init__(self, folder: CheckpointConfig, rows: Sequence[Any]) -> None:
        self.folder = folder
        self.filesystem, root = _open(folder.url)
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        self.root, self.path = root, f"{root}/rows-{digest}"
        self.notes: list[str] = []
        self._damaged: set[str] = set()

    def newest(self) -> Checkpoint | None:
        """The newest state that is whole; None where there is none."""
        self.filesystem.makedirs(self.path, exist_ok=True)
        names = self._names()
        if self.folder.run != ANY_RUN:
            for name in names:
                if _run(name) != self.folder.run:
                    self.filesystem.rm_file(f"{self.path}/{name}")
            names = [name for name in names if _run(name) == self.folder.run]
        for name in reversed(names):
            try:
                return Checkpoint.load(self.filesystem.cat_file(f"{self.path}/{name}"))
            except ValueError as error:
                self.notes.append(f"The checkpoint {name} is damaged ({error}): the one before it is used.")
                self._damaged.add(name)
        others = [one for one in self.filesystem.glob(f"{self.root}/rows-*") if not one.endswith(self.path)]
        if not names and others and self.folder.run == ANY_RUN:
            self.notes.append(
                f"The states under {self.folder.url} are of other rows: this fit starts from its first epoch. Rows "
                "that differ each time they are read can't be gone on with: cache or store them first."
            )
        return None

    def write(self, state: Checkpoint) -> None:
        """Store one more state, and drop all but the last two that are whole."""
        name = f"state-{self.folder.run}-{state.epoch:06d}-{state.step:09d}"
        _write_whole(self.filesystem, f"{self.path}/{name}", state.dump())
        self._damaged.discard(name)
        names = self._names()
        kept = [one for one in names if one not in self._damaged][-KEPT:]
        for old in set(names) - set(kept):
            self.filesystem.rm_file(f"{self.path}/{old}")

    def _names(self) -> list[str]:
        """Of all states, the newest last; what a killed writer left is removed."""
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:  # object storage has no folders but those of its files
            found = []
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in found]
        for name in names:
            if name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    self.filesystem.rm_file(f"{self.path}/{name}")
        return sorted(filter(NAME.fullmatch, names), key=_age)


def _age(name: str) -> tuple[int, int]:
    _, epoch, step = NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    return int(epoch), int(step)


def _run(name: str) -> str:
    return NAME.fullmatch(name)[1]  # type: ignore[index]


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(url)
    return filesystem, root.rstrip("/")


def _write_whole(filesystem: Any, path: str, pieces: Sequence[Any]) -> None:
    """Write a file that nobody sees a part of."""
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/.{name}-{uuid.uuid4().hex[:8]}"
    with filesystem.open(unfinished, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        with contextlib.suppress(AttributeError, OSError):  # storage that is no disk has no fileno
            os.fsync(file.fileno())
    filesystem.mv(unfinished, path)
