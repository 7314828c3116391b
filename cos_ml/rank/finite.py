"""Keeps numbers that are not finite from becoming a fit's result, or from choosing one (rank side)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from cos_ml.errors import RankError

__all__ = ["CheckFinite", "FiniteEarlyStopping", "check_validation", "check_weights", "lasting"]

REMEDY = (
    "Look for values in the columns that are far too large, lower learningRate, or give the optimizer a clipnorm. "
    'handleNonFiniteLoss="keep" continues regardless.'
)


class CheckFinite(keras.callbacks.Callback):
    """Ends a training whose validation loss, or whose weights after the last step, are not finite: on all ranks alike.

    It comes before callbacks that choose weights, or keep them.

    Args:
        network: the user's model, before it trains.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.allowed = lasting(network)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        check_validation(logs or {}, f"after epoch {epoch + 1}")

    def on_train_end(self, logs: Any = None) -> None:
        check_weights(self.model, self.allowed)


class FiniteEarlyStopping(keras.callbacks.EarlyStopping):
    """Keras's, for which an epoch is no better than others if its loss, or a weight to restore, is not finite."""

    validations = 0  # within epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        epoch += self.validations  # at 0 Keras never stops
        finite = _is_finite((logs or {}).get(self.monitor, 0.0))
        if finite and not (self.restore_best_weights and non_finite(self.model)):
            super().on_epoch_end(epoch, logs)
            return
        self.wait += 1
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch, self.model.stop_training = epoch, True

    def on_validation(self, logs: dict[str, Any]) -> None:
        """A validation within an epoch counts as the end of one does."""
        if self.monitor in logs:
            self.on_epoch_end(0, logs)
            self.validations += 1


def check_validation(logs: dict[str, Any], place: str) -> None:
    """Raises RankError for a validation loss that is not finite; ``place`` is where in the training it was found."""
    if not _is_finite(logs.get("val_loss", 0.0)):
        raise RankError(
            f"The validation loss is NaN or infinite {place}. {REMEDY} Then such an epoch is never the best one."
        )


def lasting(network: Any) -> set[str]:
    """The constants of a network that are not finite, as a mask of -inf is: they stay as they are."""
    trainable = {id(variable) for variable in network.trainable_weights}
    return {variable.path for variable in non_finite(network) if id(variable) not in trainable}


def non_finite(network: Any) -> list[Any]:
    """The weights of a network that are NaN or infinite."""
    floats = (variable for variable in network.weights if "float" in variable.dtype)
    return [variable for variable in floats if not _is_finite(variable.numpy())]


def check_weights(network: Any, allowed: set[str]) -> None:
    """Raises RankError if training has made weights NaN or infinite: the loss of a step is computed before its update.

    Args:
        network: the trained network.
        allowed: the paths of weights that may be, as ``lasting`` found them.
    """
    found = [variable.path for variable in non_finite(network) if variable.path not in allowed]
    if found:
        more = f" and {len(found) - 1} others" if len(found) > 1 else ""
        raise RankError(f"After the last step the weights {found[0]!r}{more} are NaN or infinite. {REMEDY}")


def _is_finite(values: Any) -> bool:
    return bool(np.isfinite(values).all())
