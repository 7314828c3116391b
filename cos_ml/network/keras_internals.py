"""Every use of Keras that is not its public API (every side).

Each function says what it needs and, where Keras no longer has it, what happens instead. ``docs/architecture.md`` lists
them. All were seen with Keras 3.15; setup.cfg bounds the versions that are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "all_layers",
    "input_structure",
    "loss_arguments",
    "loss_tracker",
    "output_loss_trackers",
    "producer",
]


def input_structure(model: Any) -> Any:
    """The structure of inputs that a functional model was built with; None where Keras does not keep it."""
    return getattr(model, "_inputs_struct", None)


def producer(tensor: Any) -> Any:
    """The layer that computes a symbolic tensor; None where Keras does not keep it."""
    history = getattr(tensor, "_keras_history", None)
    return getattr(history, "operation", None)


def all_layers(model: Any) -> Sequence[Any]:
    """All layers of a model, those inside layers included; without Keras's own list, the model's layers."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten()) if flatten else list(model.layers)


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Arguments that a loss object was made with; Keras 3.15 leaves some out of its configuration, Huber's delta say."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def loss_tracker(model: Any) -> Any:
    """The metric that tracks a compiled model's loss.

    Raises:
        RuntimeError: Keras has none, so the loss of a step could not be exact.
    """
    tracker = getattr(model, "_loss_tracker", None)
    if tracker is None:
        raise _gone("_loss_tracker")
    return tracker


def output_loss_trackers(model: Any, labels: Any, outputs: Any, kind: type) -> Iterable[Any]:
    """The metrics that track the loss of each output, made instances of ``kind``.

    Raises:
        RuntimeError: Keras has none, so the losses of a step could not be exact.
    """
    compiled = getattr(model, "_compile_loss", None)
    if compiled is None:
        raise _gone("_compile_loss")
    if not compiled.built:
        compiled.build(labels, outputs)
    for tracker in compiled.metrics:
        tracker.__class__ = kind
    return compiled.metrics


def _gone(name: str) -> RuntimeError:
    import keras

    return RuntimeError(
        f"Keras {keras.version()} has no Model.{name}: cos_ml was built for Keras 3.15. Install an earlier Keras."
    )
