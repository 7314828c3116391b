"""TrainSpec: one training as plain values, which the driver sends to its ranks (driver, task and rank side)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cos_ml.data.columns import Column

__all__ = ["ANY_RUN", "CheckpointConfig", "ClassWeights", "TrainSpec"]

ANY_RUN = "auto"


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a training keeps its checkpoints, and how often it writes them.

    Attributes:
        url: a folder that fsspec can write and every rank can reach.
        epochs: the number of epochs between two checkpoints.
        steps: the number of steps between two checkpoints within an epoch; None for none within epochs.
        fit: what identifies the training, by Param: it never resumes from another one's checkpoints.
        run: "auto" to resume from the checkpoint of any run; another name to resume only from those of that run.
    """

    url: str
    epochs: int = 1
    steps: int | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    run: str = ANY_RUN


@dataclass(frozen=True)
class ClassWeights:
    """The weights of classes in the loss of the training rows.

    Attributes:
        label: the field of the label column: class ids, or one-hot rows.
        count: the number of classes.
        weights: the weight of each class; None to weigh them so that each has the same sum over the training rows.
    """

    label: str
    count: int
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TrainSpec:
    """One training, as plain values.

    Fields that are not listed are values of Params, which EstimatorParams describes (``spec=``); defaults are the same.

    Attributes:
        inputs, labels: the columns of the network's inputs and outputs, in its order.
        weight: the column of row weights; None for none.
        class_weights: the weights of classes, by which those of training rows are multiplied; None for none.
        validation: the boolean column that marks validation rows; None for none.
        compile: arguments of ``keras.Model.compile``, each in Keras's serialized form.
        run_eagerly: whether steps run without being traced, as the network was compiled.
        modules: modules of custom Keras classes, to import first.
        frozen: names of layers whose weights do not change.
        layer_rates: factors of the learning rate by full name of a layer or weight; what contains others comes first.
        callbacks: Keras callbacks as plain data, as ``callbacks.callback`` makes them.
        checkpoint: where checkpoints are kept; None for no checkpoints.
        stop_at_non_finite: whether a loss that is NaN or infinite is an error.
        variables: environment variables of the ranks, for Horovod and NCCL.
        network: the index of the network that training starts from, among the job's networks.
        name: the name of this candidate in a job that trains several; else empty.
    """

    inputs: tuple[Column, ...]
    labels: tuple[Column, ...]
    weight: Column | None = None
    validation: Column | None = None
    class_weights: ClassWeights | None = None
    compile: dict[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    learning_rate: float | None = None
    batch_size: int = 32
    epochs: int = 1
    max_steps: int | None = None
    validation_steps: int | None = None
    validation_fraction: float | None = None
    shuffle: bool = True
    seed: int = 0
    handle_invalid: str = "error"
    steps_per_execution: int = 16
    use_gpu: bool = False
    frozen: tuple[str, ...] = ()
    layer_rates: dict[str, float] = field(default_factory=dict)
    callbacks: tuple[dict[str, Any], ...] = ()
    patience: int | None = None
    restore_best: bool = False
    halving_factor: int | None = None
    halving_min_epochs: int = 1
    checkpoint: CheckpointConfig | None = None
    stop_at_non_finite: bool = True
    stall_timeout: float = 1800.0
    compression: str = "none"
    accumulation: int = 1
    dtype_policy: str | None = None
    jit_compile: bool = False
    run_eagerly: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    network: int = 0
    name: str = ""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a batch: inputs, labels and weight."""
        return (*self.inputs, *self.labels, *((self.weight,) if self.weight else ()))

    @property
    def stored(self) -> tuple[Column, ...]:
        """All columns that are read: those of a batch, and the validation mark."""
        return (*self.columns, *((self.validation,) if self.validation else ()))

    @property
    def layout(self) -> tuple[Any, ...]:
        """The same for candidates that can train on the same spooled rows in the same processes."""
        flat = [replace(one, shape=(one.size,)) if one.shape and one.size is not None else one for one in self.columns]
        split = (self.validation_fraction, self.seed) if self.validation_fraction else ()
        rest = (self.handle_invalid, self.use_gpu, self.halving_factor, self.halving_min_epochs)
        return (*flat, self.validation, *split, *rest, *sorted(self.variables.items()))

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
        if classes := values["class_weights"]:
            weights = None if classes["weights"] is None else tuple(classes["weights"])
            values["class_weights"] = ClassWeights(**classes | {"weights": weights})
        values["checkpoint"] = CheckpointConfig(**values["checkpoint"]) if values["checkpoint"] else None
        return cls(**values)


def _column(values: dict[str, Any]) -> Column:
    alternatives = tuple(map(tuple, values["alternatives"]))
    shape, parts = tuple(values["shape"]), tuple(values["parts"])
    return Column(**values | {"shape": shape, "alternatives": alternatives, "parts": parts})
