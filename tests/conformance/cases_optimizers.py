"""Cases: the optimizers of ``keras.optimizers``, their settings, and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import optimizers as O
from keras.optimizers import schedules as S

from tests.conformance import userlib
from tests.conformance.case import Case, Data, In, L, Seq, compiled, floats, ids, rows


def net() -> Any:
    return Seq([In((4,)), L.Dense(8, "tanh"), L.Dense(1)])


def optimized(name: str, make: Callable[[], Any], **options: Any) -> Case:
    """A case of an optimizer."""
    return Case(name, lambda: compiled(net(), "mse", make()), rows(4), valid=0, **options)


def sparse(name: str, make: Callable[[], Any]) -> Case:
    """A case whose gradients are those of some rows of a table."""

    def build() -> Any:
        return compiled(Seq([In((3,), dtype="int32"), L.Embedding(30, 4), L.Flatten(), L.Dense(1)]), "mse", make())

    return Case(name, build, lambda r, n: Data(ids(r, n, 30, 3), floats(r, n, 1)), valid=0)


def scheduled(name: str, schedule: Callable[[], Any]) -> Case:
    """A case of a learning rate that changes with the steps."""
    return optimized(name, lambda: O.SGD(schedule(), momentum=0.5))


def excluded() -> Any:
    optimizer = O.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def several() -> Any:
    """The first layer by Adam, the others by SGD."""
    model = Seq([In((4,)), L.Dense(8, "tanh", name="first"), L.Dense(1)])
    each = O.OptimizerMap(O.SGD(0.05), {".*first/.*": O.Adam(0.02)})
    return compiled(model, "mse", O.MultiOptimizer(each))


def schedule_free() -> Any:
    """Its momentum starts from the weights: where fit builds the optimizer, Keras starts it anew in each step."""
    model = compiled(net(), "mse", O.ScheduleFreeAdamW(0.02))
    model.optimizer.build(model.trainable_variables)
    return model


CASES = [
    optimized("SGD, nesterov", lambda: O.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1)),
    optimized("Adam, amsgrad", lambda: O.Adam(0.02, amsgrad=True, epsilon=1e-3)),
    optimized("AdamW", lambda: O.AdamW(0.02, weight_decay=0.1)),
    optimized("exclude_from_weight_decay", excluded),
    optimized("Adadelta", lambda: O.Adadelta(1.0)),
    optimized("Adafactor", lambda: O.Adafactor(0.05)),
    optimized("Adagrad", lambda: O.Adagrad(0.05)),
    optimized("Adamax", lambda: O.Adamax(0.02)),
    optimized("Ftrl", lambda: O.Ftrl(0.1, l1_regularization_strength=0.01)),
    optimized("Lamb", lambda: O.Lamb(0.02)),
    optimized("Lion", lambda: O.Lion(0.003), tolerance=2e-5),
    optimized("Muon", lambda: O.Muon(0.02), tolerance=5e-5),
    optimized("Nadam", lambda: O.Nadam(0.02)),
    optimized("RMSprop, centered", lambda: O.RMSprop(0.01, momentum=0.5, centered=True)),
    Case("ScheduleFreeAdamW", schedule_free, rows(4), valid=0),
    optimized("clipnorm", lambda: O.SGD(0.1, clipnorm=0.1)),
    optimized("clipvalue", lambda: O.Adam(0.02, clipvalue=0.01, epsilon=1e-3)),
    optimized("global_clipnorm", lambda: O.SGD(0.1, global_clipnorm=0.2)),
    optimized("EMA", lambda: O.SGD(0.1, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2)),
    optimized("accumulation", lambda: O.Adam(0.02, gradient_accumulation_steps=2)),
    optimized("LossScaleOptimizer", lambda: O.LossScaleOptimizer(O.SGD(0.05), 64.0, dynamic_growth_steps=2)),
    optimized("own optimizer", lambda: userlib.SignSGD(0.02)),
    sparse("table of vectors, Adam", lambda: O.Adam(0.05)),
    sparse("table of vectors, Adagrad", lambda: O.Adagrad(0.05)),
    sparse("table of vectors, RMSprop, clipped", lambda: O.RMSprop(0.02, clipnorm=0.05)),
    scheduled("ExponentialDecay", lambda: S.ExponentialDecay(0.1, 2, 0.5)),
    scheduled("PiecewiseConstantDecay", lambda: S.PiecewiseConstantDecay([1, 3], [0.1, 0.05, 0.01])),
    scheduled("PolynomialDecay", lambda: S.PolynomialDecay(0.1, 5, 0.01, power=2.0, cycle=True)),
    scheduled("InverseTimeDecay", lambda: S.InverseTimeDecay(0.1, 2, 0.7, staircase=True)),
    scheduled("CosineDecay, warmup", lambda: S.CosineDecay(0.01, 4, warmup_target=0.1, warmup_steps=2)),
    scheduled("CosineDecayRestarts", lambda: S.CosineDecayRestarts(0.1, 2, m_mul=0.8)),
    scheduled("own schedule", lambda: userlib.Stairs(0.1)),
    Case("learningRate", lambda: compiled(net(), "mse", O.Adam(0.5)), rows(4), lambda: {"learningRate": 0.02},
         plain=lambda: compiled(net(), "mse", O.Adam(0.02))),
    Case("learningRate beside a schedule", lambda: compiled(net(), "mse", O.SGD(S.CosineDecay(0.1, 9))), rows(4),
         lambda: {"learningRate": 0.02}, refused="learningRate"),
    Case("gradientAccumulationSteps", lambda: compiled(net(), "mse", O.SGD(0.05)), rows(4),
         lambda: {"gradientAccumulationSteps": 3},
         plain=lambda: compiled(net(), "mse", O.SGD(0.05, gradient_accumulation_steps=3))),
    Case("MultiOptimizer", several, rows(4)),
    Case("jitCompile", lambda: compiled(net(), "mse", O.Adam(0.02), metrics=["mae"]), rows(4, weighted=True),
         lambda: {"jitCompile": True}),
    Case("jitCompile, a rank without rows", lambda: compiled(net(), "mse", O.SGD(0.05)), rows(4),
         lambda: {"jitCompile": True}, train=2 * 16 + 5),
    Case("jitCompile of a mask", lambda: compiled(Seq([In((5, 3)), L.Masking(), L.LSTM(4, return_sequences=True)])),
         lambda random, count: Data(floats(random, count, 5, 3), floats(random, count, 5, 4)),
         lambda: {"jitCompile": True}, refused="jitCompile"),
]  # fmt: skip
