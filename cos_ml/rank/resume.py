"""What a checkpoint contains, when one is written, and how a training resumes from one (rank side).

Weights and the optimizer are the same on all ranks, so those of rank 0 are stored. The order of rows and the seeds of
Dropout are functions of seed, epoch, partition and step. A checkpoint also contains what else a step depends on: the
metrics' sums over all ranks, and the state of callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from cos_ml.network.forward import seed_generators
from cos_ml.rank.callback_state import check_state, get_state, set_state
from cos_ml.rank.checkpoint_store import Checkpoint, CheckpointStore, find
from cos_ml.rank.checkpoint_writer import CheckpointWriter
from cos_ml.rank.context import RankContext
from cos_ml.rank.trainer import Plan
from cos_ml.spec import CheckpointConfig

__all__ = ["CheckpointCallback", "TrainerState"]


@dataclass(frozen=True)
class TrainerState:
    """The state of a training, as its checkpoints contain it.

    Attributes:
        plan: the trainer's, with the compiled network.
        stateful: name -> object whose attributes change from epoch to epoch, such as a callback.
    """

    plan: Plan
    stateful: Mapping[str, Any]

    def weights(self) -> list[Any]:
        """The variables that have the same values on every rank."""
        return self.plan.variables

    def checkpoint(self, epoch: int, step: int, sums: list[np.ndarray]) -> Checkpoint:
        """The checkpoint after ``epoch`` epochs and ``step`` steps; ``sums`` are the metrics' over all ranks."""
        arrays = {f"weights/{index}": variable.numpy() for index, variable in enumerate(self.weights())}
        arrays |= {f"metrics/{index}": array for index, array in enumerate(sums)}
        stateful = {}
        for name, holder in self.stateful.items():
            stateful[name], found, _ = get_state(holder)
            arrays |= {f"stateful/{name}/{key}": array for key, array in found.items()}
        plain = {
            "stateful": stateful,
            "counts": [int(variable.numpy()[1]) for variable in seed_generators(self.plan.network)],
            "stopped": self.plan.stopped,
        }
        # Copies, and no scalars: the training goes on while they are written.
        return Checkpoint(epoch, step, plain, {name: np.array(array) for name, array in arrays.items()})

    def lost(self) -> list[str]:
        """The attributes that no checkpoint contains, as "Class.name"."""
        kinds = [(type(holder).__name__, get_state(holder)[2]) for holder in self.stateful.values()]
        return sorted({f"{kind}.{name}" for kind, names in kinds for name in names})

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError for a checkpoint that lacks something of this training, or has it in another shape."""
        expected = {str(at): (tuple(one.shape), _type_of(one)) for at, one in enumerate(self.weights())}
        found = {name: (one.shape, one.dtype.name) for name, one in checkpoint.arrays_under("weights/").items()}
        if list(found.items()) != list(expected.items()):
            raise ValueError("its weights are not those of the network")
        kinds = {"stateful": dict, "counts": list, "stopped": bool}
        if missing := [name for name, kind in kinds.items() if not isinstance(checkpoint.plain.get(name), kind)]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        for name, plain in checkpoint.plain["stateful"].items():
            check_state(plain, checkpoint.arrays_under(f"stateful/{name}/"))

    def restore_weights(self, checkpoint: Checkpoint) -> None:
        """Assign the values that the variables had."""
        for variable, array in zip(self.weights(), checkpoint.arrays_under("weights/").values(), strict=True):
            variable.assign(array)

    def restore_stateful(self, checkpoint: Checkpoint) -> None:
        """Set the attributes that the objects on this rank had."""
        for name, holder in self.stateful.items():
            if name in checkpoint.plain["stateful"]:
                set_state(holder, checkpoint.plain["stateful"][name], checkpoint.arrays_under(f"stateful/{name}/"))


def _type_of(variable: Any) -> str:
    """The name of a variable's type, Keras's or TensorFlow's."""
    return str(getattr(variable.dtype, "name", variable.dtype))


class CheckpointCallback(keras.callbacks.Callback):
    """Writes checkpoints every so many epochs and, within epochs, steps; resumes from the newest one that exists.

    It comes after all callbacks whose state is part of a checkpoint. Rank 0 reads and writes.

    Args:
        state: the state of the training.
        config: where checkpoints are kept, and how often they are written.
        context: this rank.
        average: gives non-trainable weights the same values on all ranks.
        finite: whether to write no checkpoint whose weights are NaN or infinite, as nobody could resume from it.

    Attributes:
        checkpoint: the checkpoint from which the training resumes, if any.

    Raises:
        InvalidInputError: the folder contains checkpoints of another training, or can't be used.
        RankError: it does not answer.
    """

    def __init__(
        self, state: TrainerState, config: CheckpointConfig, context: RankContext,
        average: Callable[[], None], finite: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.state, self.config, self.context, self.average, self.finite = state, config, context, average, finite
        self.store: CheckpointStore | None = None
        self.writer: CheckpointWriter | None = None
        checkpoint = None
        if context.rank == 0:
            limit = state.plan.spec.stall_timeout
            self.store, checkpoint = find(config, context.digest, 0.75 * limit, state.check)
            self.writer = CheckpointWriter(self.store, 0.5 * limit, self._note)
        self.checkpoint = self._resume(checkpoint)
        self.lost: list[str] | None = None

    def _resume(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """Restore the weights of a checkpoint that rank 0 has on every rank; rank 0 alone has its metrics' sums."""
        for note in self.store.notes if self.store else ():
            self._note(note)
        shared = b""
        if checkpoint is not None:
            self.state.restore_weights(checkpoint)
            arrays = {name: array for name, array in checkpoint.arrays.items() if name.startswith("stateful/")}
            shared = b"".join(replace(checkpoint, arrays=arrays).dump())
        shared = self.context.communicator.broadcast({"checkpoint": shared}, 0)["checkpoint"]
        if not shared:
            return None
        self.context.communicator.broadcast_variables(self.state.weights())
        return checkpoint or Checkpoint.load(shared)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.checkpoint is not None:
            self.state.restore_stateful(self.checkpoint)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.last_step = epoch, 0
        if self.checkpoint is not None and self.checkpoint.epoch == epoch and self.checkpoint.step:
            self.last_step = self.checkpoint.step
            self.state.plan.pending = list(self.checkpoint.arrays_under("metrics/").values())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step, plan = batch + 1, self.state.plan
        whole_call = not step % plan.spec.steps_per_execution
        if self.config.steps is None or not whole_call or step >= plan.schedule.steps(self.epoch):
            return
        if step - self.last_step >= self.config.steps:
            self.last_step = step
            self.average()
            metrics = self.state.plan.network.metrics_variables  # sums and counts of the epoch so far
            self._write(self.epoch, step, [self.context.communicator.sum(variable.numpy()) for variable in metrics])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        done = epoch + 1
        if done % self.config.epochs == 0 or done == self.state.plan.until or self.model.stop_training:
            self._write(done, 0, [])

    def _write(self, epoch: int, step: int, sums: list[np.ndarray]) -> None:
        if self.writer is None:
            return
        floats = (variable.numpy() for variable in self.model.weights if "float" in variable.dtype)
        if self.finite and not all(np.isfinite(weights).all() for weights in floats):
            self._note(f"No checkpoint was written after epoch {epoch}, step {step}: its weights are NaN or infinite.")
            return
        if self.lost is None:
            self.lost = self.state.lost()
            if self.lost:
                self._note(
                    f"Checkpoints do not contain {', '.join(self.lost)}: a training that resumes starts with new ones. "
                    "Callbacks can keep numbers, strings, dates, arrays, and lists, tuples, sets and dicts of them."
                )
        self.writer.write(self.state.checkpoint(epoch, step, sums))

    def on_train_end(self, logs: Any = None) -> None:
        if self.writer is not None:
            self.context.heartbeat.enter("checkpoint")
            self.writer.finish()

    def close(self) -> None:
        """End what is being written, also where the training has failed."""
        if self.writer is not None:
            self.writer.close()

    def _note(self, text: str) -> None:
        self.context.report(event="note", text=text)
