"""What a training's state is, when it is written, and how a training goes on from one (rank side).

Weights and the optimizer are the same on all ranks, so rank 0's are enough. The order of rows and the seeds of Dropout
are functions of seed, epoch, partition and step. What else a step depends on goes into the state: the metrics' sums
over all ranks, and what callbacks remember.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from cos_ml.rank.callbacks import generators
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore, acquire
from cos_ml.rank.collectives import Communicator
from cos_ml.spec import CheckpointConfig

__all__ = ["CheckpointCallback", "TrainerState"]


@dataclass(frozen=True)
class TrainerState:
    """What belongs to a training's state.

    Attributes:
        trainer: the compiled network.
        remembering: name -> object that remembers something from epoch to epoch, as callbacks do.
    """

    trainer: Any
    remembering: Mapping[str, Any]

    def weights(self) -> list[Any]:
        """The variables that every rank has the same values of."""
        return [*self.trainer.weights, *self.trainer.optimizer.variables]

    def metrics(self) -> list[Any]:
        """The variables of metrics: sums and counts of the epoch so far."""
        return [variable for metric in self.trainer.metrics for variable in metric.variables]

    def state(self, epoch: int, step: int, sums: list[np.ndarray]) -> Checkpoint:
        """The state after ``epoch`` epochs and ``step`` steps, with the metrics' sums over all ranks."""
        arrays = {f"weights/{index}": variable.numpy() for index, variable in enumerate(self.weights())}
        arrays |= {f"metrics/{index}": array for index, array in enumerate(sums)}
        remembered = {}
        for name, one in self.remembering.items():
            remembered[name], kept = plain_of(one)
            arrays |= {f"remembered/{name}/{key}": array for key, array in kept.items()}
        plain = {
            "remembered": remembered,
            "counts": [int(variable.numpy()[1]) for variable in generators(self.trainer)],
            "stopped": bool(self.trainer.stop_training),
        }
        return Checkpoint(epoch, step, plain, arrays)

    def restore_weights(self, state: Checkpoint) -> None:
        """Give the variables the values that they had."""
        for variable, array in zip(self.weights(), _below(state, "weights/").values(), strict=True):
            variable.assign(array)

    def restore_remembered(self, state: Checkpoint) -> None:
        """Let callbacks remember what they did; those that this rank has."""
        for name, one in self.remembering.items():
            if name in state.plain["remembered"]:
                give_back(one, state.plain["remembered"][name], _below(state, f"remembered/{name}/"))


def _below(state: Checkpoint, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in state.arrays.items() if name.startswith(prefix)}


def plain_of(holder: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What an object remembers, as far as it is numbers, texts and arrays: for JSON, and as arrays."""
    plain: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    # What it was made with it is made with again; and Keras turns the sign of its own min_delta at the first use.
    given = {*inspect.signature(type(holder)).parameters, "model", "_model", "params"}
    for name, value in vars(holder).items():
        if name in given:
            continue
        if isinstance(value, (np.floating, np.integer)):
            value = value.item()
        if _is_plain(value):
            plain[name] = value
        elif isinstance(value, list) and all(isinstance(one, np.ndarray) for one in value):
            arrays |= {f"{name}/{index}": one for index, one in enumerate(value)}
    return plain, arrays


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))


def give_back(holder: Any, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Let an object remember what ``plain_of`` found."""
    for name, value in plain.items():
        setattr(holder, name, value)
    lists: dict[str, dict[int, np.ndarray]] = {}
    for key, array in arrays.items():
        name, _, index = key.rpartition("/")
        lists.setdefault(name, {})[int(index)] = array
    for name, found in lists.items():
        setattr(holder, name, [found[index] for index in sorted(found)])


def _told(state: Checkpoint | None) -> dict[str, np.ndarray]:
    """What the other ranks need of a state beside the weights, as arrays."""
    if state is None:
        return {"none": np.zeros(1, np.uint8)}
    header = json.dumps({"epoch": state.epoch, "step": state.step, "plain": state.plain})
    arrays = {name: array for name, array in state.arrays.items() if name.startswith("remembered/")}
    return arrays | {"header": np.frombuffer(header.encode(), np.uint8)}


class CheckpointCallback(keras.callbacks.Callback):
    """Writes the state every so many epochs, and within them every so many steps; goes on from one that is there.

    It comes after all callbacks whose memory is part of the state.

    Args:
        memory: what the state is made of.
        folder: where it goes.
        ranks, rank: all ranks, and which one this is. The first one writes.
        rows: a digest of all ranks' rows.
        steps: in an epoch.
        average: makes statistics of layers the same on all ranks.
        finite: write no state whose weights are NaN or infinite: nothing good comes of going on from it.
        note: says something to the person at the driver.

    Attributes:
        state: that the training goes on from.

    Raises:
        InvalidInputError: the folder is another training's, or can't be used.
    """

    def __init__(
        self,
        memory: TrainerState,
        folder: CheckpointConfig,
        communicator: Communicator,
        rank: int,
        rows: list[Any],
        steps: int,
        average: Callable[[], None],
        finite: bool,
        note: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.memory, self.folder, self.communicator, self.steps = memory, folder, communicator, steps
        self.average, self.finite, self.note = average, finite, note
        self.states: CheckpointStore | None = None
        if rank == 0:
            acquire(folder)
            self.states = CheckpointStore(folder, rows)
        self.state = self._go_on()
        self.owed: list[np.ndarray] = []

    def _go_on(self) -> Checkpoint | None:
        """Put every rank into the newest state, if there is one; only rank 0's has weights and the metrics' sums."""
        state = self.states.newest() if self.states else None
        for text in self.states.notes if self.states else ():
            self.note(text)
        told = self.communicator.broadcast(_told(state) if self.states else None, 0)
        if "header" not in told:
            return None
        if state is not None:
            self.memory.restore_weights(state)
        self.communicator.broadcast_variables(self.memory.weights())
        if state is not None:
            return state
        header = json.loads(told["header"].tobytes())
        return Checkpoint(header["epoch"], header["step"], header["plain"], told)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.state is not None:
            self.memory.restore_remembered(self.state)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.last = epoch, 0
        if self.state is not None and self.state.epoch == epoch and self.state.step:
            self.last = self.state.step
            self.owed = list(_below(self.state, "metrics/").values())  # rank 0's alone: they are sums over all

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.owed:  # metrics have their variables only now
            for variable, total in zip(self.memory.metrics(), self.owed, strict=True):
                variable.assign_add(total)
            self.owed = []
        done = batch + 1
        if self.folder.steps is not None and done - self.last >= self.folder.steps and done < self.steps:
            self.last = done
            self.average()
            self._write(
                self.epoch, done, [self.communicator.sum(variable.numpy()) for variable in self.memory.metrics()]
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        done = epoch + 1
        if done % self.folder.epochs == 0 or done == self.params["epochs"] or self.model.stop_training:
            self._write(done, 0, [])

    def _write(self, epoch: int, step: int, sums: list[np.ndarray]) -> None:
        if self.states is None:
            return
        floats = (one.numpy() for one in self.model.weights if "float" in one.dtype)
        if self.finite and not all(np.isfinite(weights).all() for weights in floats):
            self.note(f"The weights after epoch {epoch}, step {step} are NaN or infinite: no checkpoint is written.")
            return
        try:
            self.states.write(self.memory.state(epoch, step, sums))
        except Exception as error:  # each storage has its own; the training is worth more than one state of it
            self.note(f"The checkpoint after epoch {epoch}, step {step} can't be written: {error!r}.")
