"""Caffe's losses and its accuracy for Keras (every side)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from cos_ml.network.keras_internals import with_mask

__all__ = [
    "CaffeAccuracy",
    "CaffeContrastiveLoss",
    "CaffeEuclideanLoss",
    "CaffeHingeLoss",
    "CaffeSigmoidCrossEntropy",
    "CaffeSoftmaxLoss",
    "ComputedLoss",
    "Pair",
]

registered = keras.saving.register_keras_serializable(package="cos_ml")
TINY = 1e-12


class _Normalized(keras.losses.Loss):
    """A loss of each element, whose sum is divided as ``normalization`` says.

    Args:
        normalization: "valid" divides by the elements whose label is not ignored, "full" by all of them, "batch_size"
            by the elements before the axis of classes, "none" by nothing.
        ignore_class: the label that is ignored.
        batch_axes: how many axes in front "batch_size" counts: 1 for the rows, 2 for the steps of sequences, too.
        from_logits: always True: scores are not probabilities. Keras's own losses have this argument.
        time_first: whether "batch_size" counts the steps of a sequence instead of the rows, as Caffe's first axis does.
    """

    def __init__(
        self, normalization: str = "valid", ignore_class: int | None = None, batch_axes: int = 1,
        from_logits: bool = True, time_first: bool = False, name: str | None = None,
        reduction: str = "sum_over_batch_size", dtype: Any = None,
    ) -> None:  # fmt: skip
        time_first = time_first and normalization == "batch_size"
        super().__init__(name or "loss", "sum" if normalization == "none" or time_first else reduction, dtype)
        self.time_first = time_first
        self.normalization, self.ignore_class, self.batch_axes = normalization, ignore_class, batch_axes

    def elements(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each element, whether it counts or not."""
        raise NotImplementedError

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The losses whose mean Keras takes: of each element, or of each row."""
        y_true = self.shaped(y_true, y_pred)
        valid = None if self.ignore_class is None else ops.not_equal(y_true, ops.cast(self.ignore_class, y_true.dtype))
        labels = y_true if valid is None else ops.where(valid, y_true, ops.zeros_like(y_true))
        losses = self.elements(labels, y_pred)
        if valid is not None:
            losses = ops.where(valid, losses, ops.zeros_like(losses))
        if self.normalization == "valid":
            return losses if valid is None else with_mask(losses, valid)
        if self.time_first:
            return losses / y_pred.shape[1]
        if self.normalization == "batch_size":
            return ops.sum(losses, tuple(range(self.batch_axes, len(losses.shape))))
        return losses

    def shaped(self, y_true: Any, y_pred: Any) -> Any:
        """The labels in the shape of the losses."""
        return ops.reshape(y_true, ops.shape(y_pred))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        own = {"normalization": self.normalization, "ignore_class": self.ignore_class, "batch_axes": self.batch_axes}
        return {**super().get_config(), **own, "from_logits": True, "time_first": self.time_first}


@registered
class CaffeSoftmaxLoss(_Normalized):
    """SoftmaxWithLoss: the cross-entropy of scores along the last axis and class ids."""

    def elements(self, y_true: Any, y_pred: Any) -> Any:
        """The cross-entropy at each place."""
        return ops.sparse_categorical_crossentropy(ops.cast(y_true, "int32"), y_pred, from_logits=True)

    def shaped(self, y_true: Any, y_pred: Any) -> Any:
        """The labels, one for each place."""
        return ops.reshape(y_true, ops.shape(y_pred)[:-1])


@registered
class CaffeSigmoidCrossEntropy(_Normalized):
    """SigmoidCrossEntropyLoss: the binary cross-entropy of each score."""

    def elements(self, y_true: Any, y_pred: Any) -> Any:
        """The binary cross-entropy of each score."""
        return ops.maximum(y_pred, 0) - y_pred * y_true + ops.softplus(-ops.abs(y_pred))


class _RowLoss(keras.losses.Loss):
    """A loss that is a number for each row, of which Keras takes the mean."""

    def __init__(
        self, arguments: dict[str, Any], name: str | None, reduction: str = "sum_over_batch_size", dtype: Any = None
    ) -> None:
        super().__init__(name or "loss", reduction, dtype)
        self.arguments = arguments

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), **self.arguments}


@registered
class CaffeEuclideanLoss(_RowLoss):
    """EuclideanLoss: half the squared distance of a row and its label.

    Args:
        time_first: whether the sum is divided by the steps of a sequence instead of the rows, as by Caffe's first axis.
    """

    def __init__(self, time_first: bool = False, name: str | None = None, **options: Any) -> None:
        super().__init__(
            {"time_first": time_first}, name, **{**options, **({"reduction": "sum"} if time_first else {})}
        )

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Half the squared distance of each row."""
        squares = ops.square(y_pred - ops.reshape(y_true, ops.shape(y_pred)))
        halves = ops.sum(squares, tuple(range(1, len(squares.shape)))) / 2
        return halves / y_pred.shape[1] if self.arguments["time_first"] else halves


@registered
class CaffeHingeLoss(_RowLoss):
    """HingeLoss: each class against all others, for scores along the last axis and class ids.

    Args:
        squared: whether each margin is squared (L2).
        from_logits: always True: scores are not probabilities. Keras's own losses have this argument.
    """

    def __init__(
        self, squared: bool = False, from_logits: bool = True, name: str | None = None, **options: Any
    ) -> None:
        super().__init__({"squared": squared, "from_logits": True}, name, **options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The margins of each row."""
        labels = ops.cast(ops.reshape(y_true, ops.shape(y_pred)[:-1]), "int32")
        signs = 1 - 2 * ops.one_hot(labels, y_pred.shape[-1], dtype=y_pred.dtype)
        margins = ops.relu(1 + signs * y_pred)
        margins = ops.square(margins) if self.arguments["squared"] else margins
        return ops.sum(margins, tuple(range(1, len(margins.shape))))


@registered
class CaffeContrastiveLoss(_RowLoss):
    """ContrastiveLoss of pairs (rows, 2, features), whose label is 1 where both are alike.

    Args:
        margin: how far apart the two of an unlike pair should be.
        legacy: compare the squared distance with the margin, as Caffe once did.
    """

    def __init__(self, margin: float = 1.0, legacy: bool = False, name: str | None = None, **options: Any) -> None:
        super().__init__({"margin": margin, "legacy": legacy}, name, **options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each pair."""
        margin, alike = self.arguments["margin"], ops.cast(ops.reshape(y_true, (-1,)), y_pred.dtype)
        squared = ops.sum(ops.square(y_pred[:, 0] - y_pred[:, 1]), tuple(range(1, len(y_pred.shape) - 1)))
        if self.arguments["legacy"]:
            apart = ops.relu(margin - squared)
        else:  # a root has no gradient at 0
            apart = ops.square(ops.relu(margin - ops.sqrt(ops.maximum(squared, TINY))))
        return (alike * squared + (1 - alike) * apart) / 2


@registered
class Pair(keras.layers.Layer):
    """Two tensors of one shape as one, (rows, 2, ...): the output that a loss compares with itself."""

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """The shape of the pairs."""
        return (input_shape[0][0], 2, *input_shape[0][1:])

    def call(self, inputs: Sequence[Any]) -> Any:
        """The pairs."""
        return ops.stack(inputs, 1)


@registered
class ComputedLoss(keras.layers.Layer):
    """Adds a loss of two tensors that the network computes to that of the network, and gives the first one.

    Args:
        loss: the loss; its labels are the second tensor.
        weight: of the loss.
    """

    def __init__(self, loss: Any, weight: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.loss, self.weight = loss, weight

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the first tensor."""
        return input_shape[0]

    def call(self, inputs: Sequence[Any]) -> Any:
        """The first tensor."""
        scores, labels = inputs
        self.add_loss(self.weight * self.loss(labels, scores))
        return scores

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "weight": self.weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ComputedLoss:
        """The layer of these arguments."""
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


@registered
class CaffeAccuracy(keras.metrics.Metric):
    """Accuracy of scores along the last axis: a tie of the right class with another one counts against it.

    Args:
        top_k: among how many of the largest scores the right class must be.
        ignore_label: a label that does not count.
        name: of the metric.
        dtype: of its sums.
    """

    def __init__(
        self, top_k: int = 1, ignore_label: int | None = None, name: str = "accuracy", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.top_k, self.ignore_label = top_k, ignore_label
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count the rows, or places, of a batch."""
        scores = ops.convert_to_tensor(y_pred)
        places = ops.shape(scores)[:-1]
        labels = ops.reshape(ops.cast(y_true, "int32"), places)
        weights = ops.ones(places, self.dtype)
        if self.ignore_label is not None:
            weights = ops.cast(ops.not_equal(labels, self.ignore_label), self.dtype)
        if sample_weight is not None:
            given = ops.cast(sample_weight, self.dtype)
            missing = max(0, len(weights.shape) - len(given.shape))
            weights = weights * ops.reshape(given, (*ops.shape(given), *[1] * missing))
        right = ops.sum(ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype) * scores, -1, keepdims=True)
        as_good = ops.sum(ops.cast(scores >= right, "int32"), -1) - 1  # without the right one itself
        self.total.assign_add(ops.sum(weights * ops.cast(as_good < self.top_k, self.dtype)))
        self.count.assign_add(ops.sum(weights))

    def result(self) -> Any:
        """The part that is right; 0 where nothing counts."""
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "top_k": self.top_k, "ignore_label": self.ignore_label}
