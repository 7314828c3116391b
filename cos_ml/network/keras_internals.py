"""Every use of Keras that is not its public API (every side).

Each function says what happens where Keras no longer has what it uses; ``docs/architecture.md`` lists them. All were
seen with Keras 3.15; setup.cfg bounds the versions that are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["all_layers", "loss_arguments", "loss_tracker", "output_loss_trackers", "producer", "uncompiled"]


def producer(tensor: Any) -> Any:
    """The layer that computes a symbolic tensor. Unknown: None."""
    return getattr(getattr(tensor, "_keras_history", None), "operation", None)


def all_layers(model: Any) -> Sequence[Any]:
    """All layers of a model, including cells and wrapped layers. Unknown: those that ``layers`` lists, at any depth."""
    flatten = getattr(model, "_flatten_layers", None)
    if flatten:
        return list(flatten())
    return [model, *(inner for layer in getattr(model, "layers", ()) for inner in all_layers(layer))]


def loss_arguments(loss: Any) -> dict[str, Any]:
    """The arguments of a loss object that Keras 3.15 leaves out of its configuration (Huber's delta). Unknown: none."""
    return dict(getattr(loss, "_fn_kwargs", {}))


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Within the block Keras saves ``model`` without its optimizer. Unknown: with it, which is correct but larger."""
    if not getattr(model, "compiled", False):
        yield
        return
    optimizer = model.optimizer
    with suppress(AttributeError):  # of attributes that have become read-only
        model.compiled, model.optimizer = False, None
    try:
        yield
    finally:
        with suppress(AttributeError):
            model.compiled, model.optimizer = True, optimizer


def loss_tracker(model: Any) -> Any:
    """The metric that tracks a compiled model's loss.

    Raises:
        RuntimeError: Keras no longer has it, so the loss of a step could not be exact.
    """
    return _required(model, "_loss_tracker")


def output_loss_trackers(model: Any, labels: Any, outputs: Any, kind: type) -> Iterable[Any]:
    """The metrics that track the loss of each output, made instances of ``kind``.

    Raises:
        RuntimeError: Keras no longer has them, so the losses of a step could not be exact.
    """
    compiled = _required(model, "_compile_loss")
    if not compiled.built:
        compiled.build(labels, outputs)
    for tracker in compiled.metrics:
        tracker.__class__ = kind
    return compiled.metrics


def _required(model: Any, name: str) -> Any:
    value = getattr(model, name, None)
    if value is None:
        import keras

        raise RuntimeError(f"Keras {keras.version()} has no Model.{name}. Install Keras 3.15, which cos_ml supports.")
    return value
