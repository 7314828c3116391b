"""Cases: the layers of ``keras.layers``, by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, compiled, floats, ids, rows

LINE, STEPS, PIXELS, CUBE = (6,), (5, 3), (6, 6, 2), (4, 4, 4, 1)


def ends(name: str, shape: tuple[int, ...], *make: Callable[[], Any], **options: Any) -> Case:
    """A case of layers between an input of this shape and two numbers."""

    def build() -> Any:
        return compiled(Seq([In(shape), *(one() for one in make), L.Flatten(), L.Dense(2)]))

    return Case(name, build, rows(*shape, out=2), **options)


def graph(name: str, shape: tuple[int, ...], connect: Callable[[Any], Any], **options: Any) -> Case:
    """A case whose layers are no chain: ``connect`` makes a tensor of the input's."""

    def build() -> Any:
        x = In(shape)
        return compiled(keras.Model(x, L.Dense(2)(L.Flatten()(connect(x)))))

    return Case(name, build, rows(*shape, out=2), **options)


def merged(x: Any) -> Any:
    a, b = L.Dense(4)(x), L.Dense(4, "tanh")(x)
    parts = [L.Add()([a, b]), L.Subtract()([a, b]), L.Multiply()([a, b]), L.Average()([a, b]), L.Maximum()([a, b])]
    return L.Concatenate()([*parts, L.Minimum()([a, b]), L.Dot(-1)([a, b])])


def nested(x: Any) -> Any:
    inner, twice = Seq([In((6,)), L.Dense(5, "relu"), L.Dense(6)], name="inner"), L.Dense(6, "tanh")
    return L.Add()([x, inner(twice(twice(x)))])


def attention(x: Any) -> Any:
    query, value = L.Dense(4)(x), L.Dense(4)(x)
    return L.Concatenate()([L.Attention(use_scale=True)([query, value]), L.AdditiveAttention()([query, value])])


def transposed(x: Any) -> Any:
    cube = L.Conv3DTranspose(2, 2, 2)(x)
    plane = L.Conv2DTranspose(2, 3, 2, padding="same")(L.Reshape((8, 16))(cube)[..., None])
    return L.Conv1DTranspose(2, 3, 2)(L.Reshape((16, 64))(plane))


def pooled(x: Any) -> Any:
    cube = L.AveragePooling3D(2)(L.MaxPooling3D(2, strides=1)(L.Conv3D(4, 1)(x)))
    plane = L.AveragePooling2D(2, strides=1)(L.MaxPooling2D(2, strides=1)(L.Reshape((8, 8, 1))(L.Conv3D(1, 1)(x))))
    line = L.AveragePooling1D(2)(L.MaxPooling1D(3)(L.Reshape((16, 4))(L.Conv3D(1, 1)(x))))
    return L.Rescaling(0.1)(L.Concatenate()([L.Flatten()(one) for one in (cube, plane, line)]))


def of_ids(name: str, build: Callable[[Any], Any], classes: int = 9, steps: int = 4, dtype: str = "int32") -> Case:
    """A case whose input are whole numbers."""

    def made() -> Any:
        x = In((steps,), dtype=dtype)
        return compiled(keras.Model(x, L.Dense(1)(L.Flatten()(build(x)))))

    return Case(name, made, lambda r, n: Data(ids(r, n, classes, steps).astype(dtype), floats(r, n, 1)))


def of_words(name: str, build: Callable[[Any], Any]) -> Case:
    """A case whose input are strings."""

    def made() -> Any:
        x = In((1,), dtype="string")
        return compiled(keras.Model(x, L.Dense(1)(L.Flatten()(build(x)))))

    words = np.array(["a cat", "the dog", "a dog", "some bird", "the cat and a bird"], object)
    return Case(name, made, lambda r, n: Data(words[ids(r, n, 5)], floats(r, n, 1)))


def crossed() -> Any:
    inputs = [In((1,), dtype="int64", name="a"), In((1,), dtype="int64", name="b")]
    return compiled(keras.Model(inputs, L.Flatten()(L.Embedding(50, 1)(L.HashedCrossing(50)(inputs)))))


def norm() -> Any:
    return L.BatchNormalization(synchronized=True, momentum=0.8)


CASES = [
    ends("dense", LINE, lambda: L.Dense(6, "tanh"), lambda: L.Dense(4, use_bias=False)),
    ends("dense, regularizers", LINE,
         lambda: L.Dense(6, kernel_regularizer="l2", bias_regularizer="l1", activity_regularizer="l2"),
         lambda: L.Dense(4, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.1)),
         lambda: L.ActivityRegularization(0.01, 0.02)),
    ends("dense, constraints", LINE, lambda: L.Dense(6, kernel_constraint=keras.constraints.MaxNorm(0.5)),
         lambda: L.Dense(4, kernel_constraint="non_neg", bias_constraint=keras.constraints.UnitNorm())),
    ends("einsum dense", STEPS, lambda: L.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d")),
    of_ids("embedding", lambda x: L.Embedding(9, 3, embeddings_regularizer="l2")(x)),
    of_ids("reversible embedding", lambda x: (e := L.ReversibleEmbedding(9, 3))(e(x), reverse=True)),
    ends("conv 1D", (8, 3), lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2), lambda: L.Conv1D(2, 2, 2)),
    ends("conv 2D", PIXELS, lambda: L.Conv2D(4, 3, padding="same", groups=2), lambda: L.Conv2D(2, 2, 2)),
    ends("conv 3D", CUBE, lambda: L.Conv3D(2, 2)),
    ends("separable conv", PIXELS, lambda: L.SeparableConv2D(4, 3, depth_multiplier=2), lambda: L.Reshape((4, 16)),
         lambda: L.SeparableConv1D(3, 2)),
    ends("depthwise conv", PIXELS, lambda: L.DepthwiseConv2D(3, depth_multiplier=2), lambda: L.Reshape((4, 16)),
         lambda: L.DepthwiseConv1D(2)),
    graph("conv transposed", (2, 2, 2, 1), transposed),
    graph("pooling", CUBE, pooled),
    graph("global pooling", PIXELS, lambda x: L.Concatenate()(
        [L.GlobalMaxPooling2D()(L.Conv2D(3, 2)(x)), L.GlobalAveragePooling2D()(L.Conv2D(3, 2)(x))])),
    graph("adaptive pooling", PIXELS, lambda x: L.Concatenate()(
        [L.AdaptiveAveragePooling2D(2)(L.Conv2D(3, 2)(x)), L.AdaptiveMaxPooling2D(2)(L.Conv2D(3, 2)(x))])),
    ends("LSTM", STEPS, lambda: L.LSTM(4, return_sequences=True, recurrent_regularizer="l2"), lambda: L.LSTM(3)),
    ends("GRU", STEPS, lambda: L.GRU(4, return_sequences=True), lambda: L.GRU(3, reset_after=False)),
    ends("simple RNN", STEPS, lambda: L.SimpleRNN(4, go_backwards=True)),
    ends("RNN of stacked cells", STEPS, lambda: L.RNN([L.LSTMCell(3), L.GRUCell(4)], unroll=True)),
    ends("bidirectional", STEPS, lambda: L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")),
    ends("conv LSTM 2D", (3, 4, 4, 1), lambda: L.ConvLSTM2D(2, 2, return_sequences=True)),
    ends("time distributed", STEPS, lambda: L.TimeDistributed(L.Dense(4, "tanh"))),
    graph("attention", STEPS, attention),
    graph("multi-head attention", STEPS, lambda x: L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)),
    graph("grouped query attention", STEPS, lambda x: L.GroupQueryAttention(4, 4, 2)(x, x)),
    ends("layer normalization", STEPS, lambda: L.Dense(4), L.LayerNormalization),
    ends("group normalization", PIXELS, lambda: L.Conv2D(4, 2), lambda: L.GroupNormalization(2)),
    ends("RMS and unit normalization", LINE, lambda: L.Dense(6), L.RMSNormalization, L.UnitNormalization),
    ends("spectral normalization", LINE, lambda: L.SpectralNormalization(L.Dense(5)), train=2 * 16 + 11),
    ends("batch normalization, synchronized", LINE, lambda: L.Dense(6), norm, lambda: L.Dense(4, "relu"), norm),
    ends("batch normalization, synchronized, pixels", PIXELS, lambda: L.Conv2D(4, 2), norm, L.ReLU),
    ends("batch normalization", LINE, lambda: L.Dense(6), L.BatchNormalization, kind="one rank"),
    graph("merging", LINE, merged),
    ends("reshaping", PIXELS, lambda: L.ZeroPadding2D(1), lambda: L.Cropping2D(2), lambda: L.UpSampling2D(2),
         lambda: L.Permute((3, 1, 2)), lambda: L.Reshape((8, 16)), lambda: L.Cropping1D(1), lambda: L.UpSampling1D(2),
         lambda: L.ZeroPadding1D(1), lambda: L.Flatten(), lambda: L.RepeatVector(2)),
    ends("activations", LINE, lambda: L.Dense(6), L.LeakyReLU, L.PReLU, L.ELU, lambda: L.Activation("gelu"),
         lambda: L.Dense(6, "swish"), L.Softmax),
    graph("a layer twice, a model in the model", LINE, nested),
    ends("dropout, noise", LINE, lambda: L.Dense(8), lambda: L.Dropout(0.4, seed=1),
         lambda: L.GaussianNoise(0.1, seed=2), kind="one rank", reseeded=True),
    ends("own layer", LINE, lambda: L.Dense(6), lambda: userlib.Scale(penalty=0.1)),
    ends("spectrogram", (64, 1), lambda: L.STFTSpectrogram("magnitude", 16, 8, 16)),
    ends("rescaling, normalization", LINE, lambda: L.Rescaling(2.0, 1.0),
         lambda: L.Normalization(mean=[1.0] * 6, variance=[2.0] * 6)),
    ends("discretization, category encoding", LINE, lambda: L.Discretization([-0.5, 0.0, 0.5]),
         lambda: L.CategoryEncoding(4, "multi_hot")),
    ends("resizing, center crop", PIXELS, lambda: L.Resizing(5, 5), lambda: L.CenterCrop(4, 4),
         lambda: L.Conv2D(2, 2)),
    of_ids("integer lookup, hashing", lambda x: L.Concatenate()([
        L.Embedding(9, 3)(L.IntegerLookup(vocabulary=[*range(8)])(x)), L.Embedding(7, 3)(L.Hashing(7)(x))]),
        dtype="int64"),
    Case("hashed crossing", crossed, lambda r, n: Data([ids(r, n, 40, 1), ids(r, n, 40, 1)], floats(r, n, 1))),
    of_words("string lookup", lambda x: L.Embedding(7, 3)(L.StringLookup(vocabulary=["a cat", "the dog", "a dog"])(x))),
    of_words("text vectorization", lambda x: L.Embedding(9, 3)(L.TextVectorization(
        vocabulary=["a", "cat", "dog", "the", "bird"], output_sequence_length=4)(x))),
]  # fmt: skip
