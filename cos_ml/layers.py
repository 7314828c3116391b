"""Layers that Keras does not have, for sparse Vectors as indices and values (every side)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["EmbeddingBag", "sparse_inputs"]

COMBINERS = ("sum", "mean", "sqrtn")


@keras.saving.register_keras_serializable(package="cos_ml")
class EmbeddingBag(keras.layers.Embedding):
    """The weighted sum, or mean, of the embeddings of each row's indices.

    Called on ``[indices, values]`` it weights the embedding of each index by its value; on ``indices`` alone, by 1.
    Negative indices are padding and have no weight; a row that has no others gives 0. With ``output_dim=1`` it is a
    linear layer of a sparse row. The gradient of the table is sparse.

    Args:
        input_dim: the number of embeddings: the size of the Vectors.
        output_dim: the size of an embedding.
        combiner: "sum"; "mean", the sum divided by that of the values; or "sqrtn", the sum divided by the root of the
            sum of the squared values.
        options: the other arguments of ``keras.layers.Embedding``. With ``mask_zero`` the index 0 is padding, too.

    Examples:
        >>> inputs = sparse_inputs("words")
        >>> net = keras.Model(inputs, EmbeddingBag(1000, 8, combiner="mean")(inputs))
        >>> net.output_shape
        (None, 8)
    """

    def __init__(self, input_dim: int, output_dim: int, combiner: str = "sum", **options: Any) -> None:
        if combiner not in COMBINERS:
            raise ValueError(f"EmbeddingBag: combiner is one of {COMBINERS}, received {combiner!r}.")
        super().__init__(input_dim, output_dim, **options)
        self.combiner = combiner
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """The embeddings of [rows, ..., n] indices, and maybe values, as [rows, ..., output_dim]."""
        indices, values = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        if keras.backend.standardize_dtype(indices.dtype) not in ("int32", "int64"):
            indices = ops.cast(indices, "int32")
        used = ops.greater(indices, 0) if self.mask_zero else ops.greater_equal(indices, 0)
        for one in mask if isinstance(mask, (list, tuple)) else [mask]:
            used = used if one is None else ops.logical_and(used, one)
        # In float16, counts and squares would overflow.
        kind = self.variable_dtype
        weights = ops.cast(used, kind) if values is None else ops.where(used, ops.cast(values, kind), 0.0)
        weights = self._scaled(weights)
        vectors = super().call(ops.maximum(indices, 0))
        weights = ops.expand_dims(ops.cast(weights, vectors.dtype), -2)
        return ops.squeeze(ops.matmul(weights, vectors), -2)

    def _scaled(self, weights: Any) -> Any:
        """The weights, divided as ``combiner`` says; 0 where the divisor is."""
        if self.combiner == "sum":
            return weights
        each = weights if self.combiner == "mean" else ops.square(weights)
        total = ops.sum(each, axis=-1, keepdims=True)
        empty = ops.equal(total, 0)
        total = ops.where(empty, 1.0, total)  # the root of 0 has no gradient
        return ops.where(empty, 0.0, weights / (total if self.combiner == "mean" else ops.sqrt(total)))

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """None: a row of the result has no steps."""

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the result."""
        first = input_shape[0] if isinstance(input_shape[0], (list, tuple)) else input_shape
        return (*first[:-1], self.output_dim)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> Any:
        """The result as a symbolic tensor."""
        first, *others = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        shapes = [tuple(first.shape), *(tuple(one.shape) for one in others)]
        if len(shapes) > 2 or len({len(shape) for shape in shapes}) > 1 or len(first.shape) < 2:
            raise ValueError(
                f"EmbeddingBag {self.name!r} takes indices, or [indices, values] of the same shape (rows, ..., n), "
                f"received shapes {shapes}."
            )
        if keras.backend.standardize_dtype(first.dtype).startswith("uint"):
            raise ValueError(
                f"EmbeddingBag {self.name!r}: expected indices of a signed type such as int32, because -1 pads rows, "
                f"received {first.dtype}."
            )
        return keras.KerasTensor(self.compute_output_shape(first.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such a layer."""
        return dict(super().get_config()) | {"combiner": self.combiner}


def sparse_inputs(name: str = "features", dtype: str | None = None) -> list[Any]:
    """The two inputs of a network for a column of Vectors: the indices and the values of the entries that are not 0.

    ``DeepNetEstimator`` and ``DeepNetModel`` fill both from one column, ``featuresCol`` or one of ``inputCols``. Others
    fill them with arrays, padded with the index -1.

    Args:
        name: the name of the column; the inputs are called ``{name}_indices`` and ``{name}_values``.
        dtype: the type of the values; None for Keras's own, float32.

    Returns:
        list[Any]: the inputs, both of shape (None,).
    """
    indices = keras.Input((None,), dtype="int32", name=f"{name}_indices")
    return [indices, keras.Input((None,), dtype=dtype, name=f"{name}_values")]
