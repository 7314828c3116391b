"""TrainSpec: all that a rank knows (both sides)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cos_ml.data.columns import Column

__all__ = ["ANY_RUN", "CheckpointConfig", "TrainSpec"]

ANY_RUN = "auto"


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a training keeps its checkpoints, and how often it writes them.

    Attributes:
        url: a folder that fsspec can write and every rank can reach.
        epochs: epochs between two checkpoints.
        steps: steps between two checkpoints within an epoch; None for none within epochs.
        fit: what identifies the training, by Param: it never resumes from another one's checkpoints.
        run: "auto" resumes from the checkpoint of any run; another name, only from those of that run.
    """

    url: str
    epochs: int = 1
    steps: int | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    run: str = ANY_RUN


@dataclass(frozen=True)
class TrainSpec:
    """One training, as plain values: what the driver's Params come down to.

    Attributes:
        inputs, labels: the columns of the network's inputs and outputs, in its order.
        weight: the column of row weights, if there is one.
        validation: the boolean column that marks validation rows, if there is one.
        compile: arguments of ``keras.Model.compile``, each in Keras's serialised form.
        modules: modules of custom Keras classes, to import first.
        learning_rate: in place of the optimizer's own.
        batch_size: rows per rank and step.
        epochs: passes over the data.
        shuffle: a new order in every epoch, within each rank's own rows.
        seed: of the order of rows and of Dropout.
        handle_invalid: "error" or "skip" bad rows, or "keep" them as NaN.
        steps_per_execution: training steps in one call of TensorFlow.
        use_gpu: train on the GPU that Spark assigned.
        frozen: names of layers that stay as they are.
        callbacks: Keras callbacks as plain data, as ``callbacks.callback`` makes it.
        patience: epochs without improvement after which training stops; None trains them all.
        restore_best: end with the weights of the best epoch.
        checkpoint: where states of the training go; None for none.
        stop_at_non_finite: end with an error when the loss is NaN or infinite.
        stall_timeout: seconds that a rank may take for 16 steps, or for any other one thing.
        compression: "fp16" halves the bytes of gradients between ranks; "none".
        accumulation: steps whose gradients are averaged before the weights change.
        dtype_policy: Keras's, while training; None for each layer's own.
        jit_compile: compile loss and gradients with XLA.
        variables: of the ranks' environment, for Horovod and NCCL.
        network: which of the job's networks it begins with.
        name: of this candidate, in a job that trains several; else empty.
    """

    inputs: tuple[Column, ...]
    labels: tuple[Column, ...]
    weight: Column | None = None
    validation: Column | None = None
    compile: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    learning_rate: float | None = None
    batch_size: int = 32
    epochs: int = 1
    shuffle: bool = True
    seed: int = 0
    handle_invalid: str = "error"
    steps_per_execution: int = 16
    use_gpu: bool = False
    frozen: tuple[str, ...] = ()
    callbacks: tuple[dict[str, Any], ...] = ()
    patience: int | None = None
    restore_best: bool = False
    checkpoint: CheckpointConfig | None = None
    stop_at_non_finite: bool = True
    stall_timeout: float = 1800.0
    compression: str = "none"
    accumulation: int = 1
    dtype_policy: str | None = None
    jit_compile: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    network: int = 0
    name: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column that a rank reads: inputs, labels, weight; not the validation mark, which sorts rows."""
        return (*self.inputs, *self.labels, *((self.weight,) if self.weight else ()))

    @property
    def stored(self) -> tuple[Column, ...]:
        """Every column that a rank's rows come from: also the validation mark."""
        return (*self.columns, *((self.validation,) if self.validation else ()))

    @property
    def layout(self) -> tuple[Any, ...]:
        """What decides spool and processes: candidates of one layout train on the same rows, each in its own shape."""
        flat = [replace(one, shape=(one.size,)) if one.shape and one.size is not None else one for one in self.columns]
        return (*flat, self.validation, self.handle_invalid, self.use_gpu, *sorted(self.variables.items()))

    def dumps(self) -> str:
        """This spec as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> TrainSpec:
        """The spec that ``dumps`` wrote."""
        values = json.loads(text)
        for name in ("inputs", "labels"):
            values[name] = tuple(_column(column) for column in values[name])
        for name in ("weight", "validation"):
            values[name] = _column(values[name]) if values[name] else None
        for name in ("modules", "frozen", "callbacks"):
            values[name] = tuple(values[name])
        values["checkpoint"] = CheckpointConfig(**values["checkpoint"]) if values["checkpoint"] else None
        return cls(**values)


def _column(values: dict[str, Any]) -> Column:
    return Column(**values | {"shape": tuple(values["shape"])})
