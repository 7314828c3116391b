"""Caffe's solvers written out in NumPy, as optimizers of the reference's loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class CaffeSolver:
    """What Caffe does with the gradients of a step.

    Args:
        kind: the solver's type, as Caffe spells it.
        rate: the learning rate of an iteration, from 0.
        lr_mults, decay_mults: by the trainable variables' order; 1 for those beyond.
        options: fields of the solver, with Caffe's defaults.
    """

    def __init__(
        self, kind: str, rate: Callable[[int], float], lr_mults: Sequence[float] = (),
        decay_mults: Sequence[float] = (), **options: Any,
    ) -> None:  # fmt: skip
        defaults = {"momentum": 0.0, "momentum2": 0.999, "delta": 1e-8, "rms_decay": 0.99, "weight_decay": 0.0,
                    "norm": "L2", "clip": 0.0, "iter_size": 1}  # fmt: skip
        assert options.keys() <= defaults.keys()
        self.kind, self.rate, self.options = kind, rate, defaults | options
        self.lr_mults, self.decay_mults = lr_mults, decay_mults
        self.sums: list[np.ndarray] = []
        self.histories: dict[str, np.ndarray] = {}
        self.steps = 0

    def apply(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        """Take the gradients of a step, and update the variables after each iteration."""
        arrays = [np.asarray(one, np.float64) for one in gradients]
        self.sums = [sum(pair) for pair in zip(self.sums, arrays, strict=True)] if self.sums else arrays
        self.steps += 1
        size = self.options["iter_size"]
        if self.steps % size == 0:
            values = [np.asarray(one.numpy(), np.float64) for one in variables]
            for variable, value in zip(variables, self.updated(self.sums, values, self.steps // size - 1), strict=True):
                variable.assign(value)
            self.sums = []

    def updated(self, sums: Sequence[Any], values: Sequence[Any], iteration: int) -> list[Any]:
        """The values after an iteration whose gradients have these sums."""
        o, new = self.options, []
        factors = [self.lr_mults[i] if i < len(self.lr_mults) else 1.0 for i in range(len(values))]
        norm = np.sqrt(sum(np.sum(g * g) for g, factor in zip(sums, factors, strict=True) if factor))
        shrink = o["clip"] / norm if 0 < o["clip"] < norm else 1.0
        for index, (gradient, w, factor) in enumerate(zip(sums, values, factors, strict=True)):
            if not factor:
                new.append(w)
                continue
            decay = o["weight_decay"] * (self.decay_mults[index] if index < len(self.decay_mults) else 1.0)
            g = gradient * shrink / o["iter_size"] + decay * (w if o["norm"] == "L2" else np.sign(w))
            new.append(w - self.update(index, g, self.rate(iteration) * factor, iteration))
        return new

    def update(self, index: int, g: Any, lr: float, iteration: int) -> Any:
        """What is taken from a weight."""
        o, delta, m = self.options, self.options["delta"], self.options["momentum"]
        h, h2 = (self.histories.get(f"{index}{name}", np.zeros_like(g)) for name in ("", "second"))
        before = h
        if self.kind in ("SGD", "Nesterov"):
            h = m * h + lr * g
            step = h if self.kind == "SGD" else (1 + m) * h - m * before
        elif self.kind == "AdaGrad":
            h = h + g * g
            step = lr * g / (np.sqrt(h) + delta)
        elif self.kind == "RMSProp":
            h = o["rms_decay"] * h + (1 - o["rms_decay"]) * g * g
            step = lr * g / (np.sqrt(h) + delta)
        elif self.kind == "AdaDelta":
            h = m * h + (1 - m) * g * g
            step = g * np.sqrt((delta + h2) / (delta + h))
            h2 = m * h2 + (1 - m) * step * step
            step = lr * step
        else:
            m2, t = o["momentum2"], iteration + 1
            h = m * h + (1 - m) * g
            h2 = m2 * h2 + (1 - m2) * g * g
            step = lr * np.sqrt(1 - m2**t) / (1 - m**t) * h / (np.sqrt(h2) + delta)
        self.histories |= {str(index): h, f"{index}second": h2}
        return step
