"""Keras optimizers with coupled decay, and learning rate schedules that Keras does not have (every side).

Decay is coupled where it is part of the gradient, as an L2 or L1 penalty is: it passes through momentum and through
the adaptive rates. Keras's own ``weight_decay`` is decoupled: it shrinks the weights beside the update. Clipping comes
before the decay, which is therefore not clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

__all__ = [
    "CoupledAdadelta",
    "CoupledAdagrad",
    "CoupledAdam",
    "CoupledRMSprop",
    "CoupledSGD",
    "InverseDecay",
    "SigmoidDecay",
    "UpdateSchedule",
]

registered = keras.saving.register_keras_serializable(package="cos_ml")


class Coupled(keras.optimizers.Optimizer):
    """Adds decay to the gradients of the optimizer that it is mixed into.

    Args:
        l2: what is added to the gradient, times the weight.
        l1: what is added to the gradient, times the sign of the weight.
        decay_multipliers: a factor of both for the weights of a layer ("conv1") or one weight of it ("conv1/bias");
            the longest name that matches a weight applies; a weight that none matches has the factor 1.
        arguments, options: the arguments of Keras's optimizer.
    """

    def __init__(
        self,
        *arguments: Any,
        l2: float = 0.0,
        l1: float = 0.0,
        decay_multipliers: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.l2, self.l1 = float(l2), float(l1)
        self.decay_multipliers = {str(name): float(factor) for name, factor in (decay_multipliers or {}).items()}

    def build(self, variables: Sequence[Any]) -> None:
        """Make the optimizer's variables, and find each weight's decay."""
        super().build(variables)
        factors = [(_key(one), _multiplier(getattr(one, "path", ""), self.decay_multipliers)) for one in variables]
        self.factors = dict(factors)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Add the decay of ``variable`` to its gradient, and update it by Keras's rule."""
        factor = self.factors[_key(variable)]
        gradient = ops.cast(gradient, variable.dtype)
        if self.l2 and factor:
            gradient = ops.add(gradient, ops.multiply(variable, self.l2 * factor))
        if self.l1 and factor:
            gradient = ops.add(gradient, ops.multiply(ops.sign(variable), self.l1 * factor))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such an optimizer."""
        own = {"l2": self.l2, "l1": self.l1, "decay_multipliers": dict(self.decay_multipliers)}
        return dict(super().get_config()) | own


def _key(variable: Any) -> int:
    """What identifies a weight: Keras hands an optimizer its variables, or what is within them."""
    return id(variable.value if isinstance(variable, keras.Variable) else variable)


def _multiplier(path: str, multipliers: Mapping[str, float]) -> float:
    """The factor of the longest name that matches a weight's path."""
    above, _, own = f"/{path}".rpartition("/")
    found = {}
    for name, factor in multipliers.items():
        layer, _, weight = name.rpartition("/")
        if f"/{name}/" in f"{above}/" or (layer and weight == own and f"/{layer}/" in f"{above}/"):
            found[name] = factor
    return found[max(found, key=len)] if found else 1.0


@registered
class CoupledSGD(Coupled, keras.optimizers.SGD):
    """Keras's SGD, with momentum and Nesterov's, and coupled decay."""


@registered
class CoupledAdam(Coupled, keras.optimizers.Adam):
    """Keras's Adam with coupled decay."""


@registered
class CoupledAdadelta(Coupled, keras.optimizers.Adadelta):
    """Keras's Adadelta with coupled decay."""


class Squares(keras.optimizers.Optimizer):
    """Divides gradients by the root of their squares' history, plus ``epsilon``: outside of the root, unlike Keras."""

    def __init__(self, learning_rate: Any = 0.01, *, epsilon: float = 1e-8, **options: Any) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self.epsilon = float(epsilon)

    def build(self, variables: Sequence[Any]) -> None:
        """Make the histories."""
        super().build(variables)
        self.accumulators = self.add_optimizer_variables(variables, "accumulator")
        self.histories = {_key(one): history for one, history in zip(variables, self.accumulators, strict=True)}

    def update_history(self, history: Any, squares: Any) -> None:
        """Take the squares of a step into the history."""
        self.assign_add(history, squares)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update the history and the weight."""
        history = self.histories[_key(variable)]
        gradient = ops.add(gradient, ops.zeros_like(variable))  # that of an Embedding may have a row more than once
        self.update_history(history, ops.square(gradient))
        rate = ops.cast(learning_rate, variable.dtype)
        scaled = ops.divide(gradient, ops.add(ops.sqrt(history), self.epsilon))
        self.assign_sub(variable, ops.multiply(scaled, rate))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such an optimizer."""
        return dict(super().get_config()) | {"epsilon": self.epsilon}


@registered
class CoupledAdagrad(Coupled, Squares):
    """AdaGrad with coupled decay: the sum of the squares begins at 0, and ``epsilon`` is outside of the root.

    Args:
        options: ``learning_rate``, ``epsilon``, and the arguments of ``keras.optimizers.Optimizer``.
    """


class MovingSquares(Squares):
    """Squares of which a moving mean is kept."""

    def __init__(self, learning_rate: Any = 0.01, *, rho: float = 0.99, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.rho = float(rho)

    def update_history(self, history: Any, squares: Any) -> None:
        """Take the squares of a step into the mean."""
        self.assign(history, ops.add(ops.multiply(history, self.rho), ops.multiply(squares, 1.0 - self.rho)))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such an optimizer."""
        return dict(super().get_config()) | {"rho": self.rho}


@registered
class CoupledRMSprop(Coupled, MovingSquares):
    """RMSprop with coupled decay, and ``epsilon`` outside of the root.

    Args:
        options: ``learning_rate``, ``rho``, ``epsilon``, and the arguments of ``keras.optimizers.Optimizer``.
    """


@registered
class InverseDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The rate ``initial_learning_rate * (1 + gamma * step) ** -power``."""

    def __init__(self, initial_learning_rate: float, gamma: float, power: float = 1.0) -> None:
        super().__init__()
        self.initial_learning_rate, self.gamma, self.power = initial_learning_rate, gamma, power

    def __call__(self, step: Any) -> Any:
        """The rate of a step, from 0."""
        base = ops.add(ops.multiply(ops.cast(step, "float32"), self.gamma), 1.0)
        return ops.multiply(ops.power(base, -self.power), self.initial_learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such a schedule."""
        return {"initial_learning_rate": self.initial_learning_rate, "gamma": self.gamma, "power": self.power}


@registered
class SigmoidDecay(keras.optimizers.schedules.LearningRateSchedule):
    """The rate ``initial_learning_rate / (1 + exp(-gamma * (step - middle)))``, which falls where gamma is negative."""

    def __init__(self, initial_learning_rate: float, gamma: float, middle: float) -> None:
        super().__init__()
        self.initial_learning_rate, self.gamma, self.middle = initial_learning_rate, gamma, middle

    def __call__(self, step: Any) -> Any:
        """The rate of a step, from 0."""
        distance = ops.subtract(ops.cast(step, "float32"), self.middle)
        return ops.multiply(ops.sigmoid(ops.multiply(distance, self.gamma)), self.initial_learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such a schedule."""
        return {"initial_learning_rate": self.initial_learning_rate, "gamma": self.gamma, "middle": self.middle}


@registered
class UpdateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that counts updates of the weights, each of which takes several steps; Keras counts the steps.

    Args:
        schedule: the schedule.
        steps: the steps of an update, as in ``gradient_accumulation_steps``.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        super().__init__()
        is_plain = isinstance(schedule, dict)
        self.schedule = keras.saving.deserialize_keras_object(schedule) if is_plain else schedule
        self.steps = int(steps)

    def __call__(self, step: Any) -> Any:
        """The rate of a step, from 0."""
        return self.schedule(ops.floor_divide(step, self.steps))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such a schedule."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}
