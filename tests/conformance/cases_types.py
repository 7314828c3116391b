"""Cases: number types of networks, columns and policies; frozen weights, LoRA and quantized layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import optimizers as O

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, compiled, floats, ids, rows

HALF, BRAIN = 5e-3, 3e-2


def typed(dtype: str, tolerance: float, optimizer: Callable[[], Any] | None = None) -> Case:
    """A case of a network whose layers are of one type."""

    def build() -> Any:
        layers = [In((4,), dtype="float64" if dtype == "float64" else None)]
        layers += [L.Dense(8, "tanh", dtype=dtype), L.Dense(1, dtype=dtype)]
        loss = keras.losses.MeanSquaredError(dtype=dtype) if dtype == "float64" else "mse"
        return compiled(Seq(layers), loss, optimizer() if optimizer else None)

    number = "float64" if dtype == "float64" else "float32"
    data = lambda r, n: Data(floats(r, n, 4).astype(number), floats(r, n, 1).astype(number))  # noqa: E731
    return Case(dtype, build, data, tolerance=tolerance)


def of_type(dtype: str, low: int, high: int) -> Case:
    """A case of an input column of whole numbers."""

    def build() -> Any:
        x = In((4,), dtype=dtype)
        return compiled(keras.Model(x, L.Dense(1)(L.Rescaling(1.0 / high)(x))))

    def data(random: Any, count: int) -> Data:
        return Data(random.integers(low, high, (count, 4), endpoint=True).astype(dtype), floats(random, count, 1))

    return Case(f"{dtype} input", build, data)


def digits() -> Any:
    """A difference of large float64 numbers, which float32 does not hold."""
    x = In((2,), dtype="float64")
    near = L.Rescaling(1.0, -1_700_000_000.0, dtype="float64")(x)
    return compiled(keras.Model(x, L.Dense(1, dtype="float64")(near)), optimizer=O.SGD(0.01))


def of_times(random: Any, count: int) -> Data:
    return Data(1_700_000_000.0 + random.normal(size=(count, 2)), random.normal(size=(count, 1)))


def truths(random: Any, count: int) -> Data:
    return Data(ids(random, count, 2, 4).astype(bool), floats(random, count, 1))


def of_truths() -> Any:
    x = In((4,), dtype="bool")
    return compiled(keras.Model(x, L.Dense(1)(L.Rescaling(2.0, -1.0)(x))))


def large(random: Any, count: int) -> Data:
    """Labels that only int64 and float64 tell apart: what is left of them after division is random."""
    return Data(floats(random, count, 4), ids(random, count, 3).astype("int64"))


def mixed(policy: str) -> Any:
    """A network as a user builds it under a global policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        layers = [In((4,)), L.Dense(8, "tanh"), L.Dense(1, dtype="float32")]
        return compiled(Seq(layers), "mse", O.SGD(0.05))
    finally:
        keras.config.set_dtype_policy(before)


def plain_float() -> Any:
    return compiled(Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(1, dtype="float32")]), "mse", O.SGD(0.05))


# ── what trains ───────────────────────────────────────────────────────────────────────────────────────────────────────


def adapted(quantized: bool = False) -> Any:
    """LoRA on dense layers: the bases stay as they are."""
    model = Seq([In((6,)), L.Dense(8, "tanh", name="base"), L.Dense(4), L.Dense(1)])
    for layer in model.layers[:2]:
        if quantized:
            layer.quantize("int8")
        layer.enable_lora(2)
    return compiled(model, "mse", O.SGD(0.1))


def adapted_projection() -> Any:
    x = In((5, 3))
    layer = L.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d")
    model = keras.Model(x, L.Dense(1)(L.Flatten()(layer(x))))
    layer.enable_lora(2)
    return compiled(model)


def adapted_table() -> Any:
    layer = L.Embedding(9, 4)
    model = Seq([In((3,), dtype="int32"), layer, L.Flatten(), L.Dense(1)])
    layer.enable_lora(2)
    return compiled(model)


def adapted_pixels() -> Any:
    layer = L.Conv2D(3, 2)
    model = Seq([In((4, 4, 2)), layer, L.Flatten(), L.Dense(1)])
    layer.enable_lora(2)
    return compiled(model)


def frozen_kernel() -> Any:
    model = Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(1)])
    model.layers[0].kernel.trainable = False
    return compiled(model)


def frozen_layer() -> Any:
    model = Seq([In((4,)), L.Dense(8, "tanh", name="first"), L.Dense(1)])
    model.layers[0].trainable = False
    return compiled(model)


def free() -> Any:
    return compiled(Seq([In((4,)), L.Dense(8, "tanh", name="first"), L.Dense(1)]))


def own_functions() -> Any:
    dense = L.Dense(8, userlib.soft, kernel_initializer=userlib.small, kernel_constraint=userlib.bounded)
    return compiled(Seq([In((4,)), dense, L.Dense(1)]))


CASES = [
    typed("float64", 1e-9, lambda: O.SGD(0.05)),
    typed("float16", HALF, lambda: O.SGD(0.02)),
    typed("bfloat16", BRAIN, lambda: O.SGD(0.02)),
    Case("float64 digits", digits, of_times, tolerance=1e-6),
    of_type("int8", -128, 127),
    of_type("int16", -1000, 1000),
    of_type("int64", -1000, 1000),
    of_type("uint8", 0, 255),
    of_type("uint32", 0, 4_000_000_000),
    Case("bool input", of_truths, truths),
    Case("int64 labels", lambda: compiled(Seq([In((4,)), L.Dense(3, "softmax")]), "sparse_categorical_crossentropy"),
         large),
    Case("mixed_float16", lambda: mixed("mixed_float16"), rows(4), tolerance=HALF),
    Case("mixed_bfloat16", lambda: mixed("mixed_bfloat16"), rows(4), tolerance=BRAIN),
    Case("dtypePolicy", plain_float, rows(4), lambda: {"dtypePolicy": "mixed_bfloat16"}, tolerance=BRAIN,
         plain=lambda: mixed("mixed_bfloat16")),
    Case("LoRA", adapted, rows(6)),
    Case("LoRA on int8", lambda: adapted(quantized=True), rows(6)),
    Case("LoRA, einsum dense", adapted_projection, rows(5, 3)),
    Case("LoRA, embedding", adapted_table, lambda r, n: Data(ids(r, n, 9, 3), floats(r, n, 1))),
    Case("LoRA, conv", adapted_pixels, rows(4, 4, 2)),
    Case("a kernel that is not trained", frozen_kernel, rows(4)),
    Case("a layer that is not trained", frozen_layer, rows(4)),
    Case("frozenLayers", free, rows(4), lambda: {"frozenLayers": ["first"]}, plain=frozen_layer),
    Case("registered functions in layers", own_functions, rows(4)),
]  # fmt: skip
