"""Learning rates of single layers and weights, as factors of the optimizer's rate (driver and rank side)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, find_layer, layers_by_name, load_model
from cos_ml.network.compiled import optimizer_from
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import scale_decay

__all__ = ["checked_rates", "scale_rates", "weight_rates"]

PARAM = "layerLearningRates"


def checked_rates(
    network: Network, rates: Mapping[str, float], frozen: Iterable[str], arguments: Mapping[str, Any]
) -> dict[str, float]:
    """The factors of the learning rate by the full names of layers and weights.

    Args:
        network: the network.
        rates: the Param layerLearningRates.
        frozen: the full names of the frozen layers.
        arguments: those of ``compile``.

    Raises:
        InvalidInputError: a name matches no trainable layer or weight, nothing is left to train, the optimizer does not
            update weights one by one, or its decay_multipliers name what the network does not have.
    """
    plain = arguments.get("optimizer")
    config = plain.get("config") if isinstance(plain, dict) else None
    decays = config.get("decay_multipliers") if isinstance(config, dict) else None
    if not rates and not decays:
        return {}
    model = load_model(network.archive, network.modules)
    for name in decays or ():
        weights_of(model, name, "optimizer (decay_multipliers)")
    found = full_names(model, rates)
    _check_trained(model, found, frozen)
    if found and plain is not None:
        optimizer = optimizer_from(plain, model)
        check_optimizer(getattr(optimizer, "inner_optimizer", optimizer))
    return found


def weights_of(model: Any, name: str, param: str = PARAM) -> tuple[str, list[Any]]:
    """The weights that a name stands for: a layer's or model's, or those of one name ("layer/kernel") in a layer.

    Returns:
        tuple[str, list[Any]]: the full name, and the weights.

    Raises:
        InvalidInputError: there is no such layer or weight, or there are several such layers.
    """
    layers = layers_by_name(model)
    above, _, own = name.rpartition("/")
    is_weight = name not in layers and above in layers and own in {one.name for one in layers[above].weights}
    try:
        if not is_weight:  # in Caffe's spelling, "head/bias" is also the layer "head_bias"
            full = find_layer(layers, name, param)
            return full, layers[full].weights
    except InvalidInputError:
        if not above:
            raise
    full = find_layer(layers, above, param)
    found = [one for one in layers[full].weights if one.name == own]
    if not found:
        names = sorted({one.name for one in layers[full].weights})
        raise InvalidInputError(f"Param {param}: layer {full!r} has no weight {own!r}. It has {names or 'no weights'}.")
    return f"{full}/{own}", found


def full_names(model: Any, rates: Mapping[str, float], param: str = PARAM) -> dict[str, float]:
    """The factors by the full names of layers and weights, outer ones first.

    Raises:
        InvalidInputError: a name matches nothing trainable, or two names stand for the same layer.
    """
    found: dict[str, tuple[int, float]] = {}
    layers = layers_by_name(model)
    for name, factor in rates.items():
        full, weights = weights_of(model, name, param)
        if full in found:
            raise InvalidInputError(f"Param {param}: {name!r} and another name stand for {full!r}. Leave out one.")
        if not any(one.trainable for one in weights):
            raise InvalidInputError(
                f"Param {param}: {full!r} has no trainable weights, so it has no learning rate. Leave it out, or make "
                "it trainable."
            )
        found[full] = full.count("/") + (1000 if full not in layers else 0), factor
    return {name: found[name][1] for name in sorted(found, key=lambda one: found[one][0])}


def weight_rates(model: Any, rates: Mapping[str, float]) -> list[tuple[Any, float]]:
    """Each weight that a factor is given for, with the factor of the innermost name that contains it."""
    found: dict[int, tuple[Any, float]] = {}
    for name, factor in rates.items():  # outer ones come first
        found |= {id(weight): (weight, factor) for weight in weights_of(model, name)[1]}
    return list(found.values())


def _check_trained(model: Any, rates: Mapping[str, float], frozen: Iterable[str]) -> None:
    """Raises InvalidInputError for rates that contradict ``frozen``, or that leave nothing to train."""
    for name in frozen:
        if rates.get(name):
            raise InvalidInputError(
                f"Param {PARAM}: layer {name!r} has the factor {rates[name]}, but frozenLayers freezes it. Remove it "
                "from one of the two."
            )
    layers = layers_by_name(model)
    still = {id(weight) for name in frozen for weight in layers[name].weights}
    still |= {id(weight) for weight, factor in weight_rates(model, rates) if not factor}
    if model.trainable_weights and all(id(weight) in still for weight in model.trainable_weights):
        raise InvalidInputError(
            f"Param {PARAM}: every trainable weight has the factor 0 or is frozen, so there is nothing to train. Give "
            "one of them a factor > 0."
        )


def check_optimizer(optimizer: Any) -> None:
    """Raises InvalidInputError for an optimizer that does not update weights one by one."""
    kind, base = type(optimizer), import_keras().optimizers.Optimizer
    reason = None
    if kind.update_step is base.update_step:
        reason = "does not update the weights one by one, in update_step"
    owner = next(one for one in kind.__mro__ if "apply" in vars(one))
    if not owner.__module__.startswith("keras."):
        reason = "has an apply of its own"
    if reason:
        raise InvalidInputError(
            f"Param {PARAM}: the optimizer {kind.__name__} {reason}, so single layers can't have learning rates of "
            f"their own. Use another optimizer, or unset {PARAM}."
        )


def scale_rates(optimizers: Iterable[Any], model: Any, rates: Mapping[str, float]) -> None:
    """Let each optimizer update each weight with the factor of the learning rate that ``rates`` gives it."""
    weights = weight_rates(model, rates)
    factors = {key: factor for weight, factor in weights for key in _keys(weight)}
    for optimizer in optimizers if factors else ():
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        check_optimizer(inner)
        inner.update_step = _scaled(inner.update_step, factors)
        scale_decay(inner, factors, _keys)


def _keys(variable: Any) -> tuple[int, ...]:
    """What identifies a weight: Keras hands an optimizer its variables, or what is within them."""
    return (id(variable), id(variable.value)) if isinstance(variable, import_keras().Variable) else (id(variable),)


def _scaled(update_step: Callable[..., None], factors: Mapping[int, float]) -> Callable[..., None]:
    def scaled(gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = next((factors[key] for key in _keys(variable) if key in factors), 1.0)
        update_step(gradient, variable, learning_rate if factor == 1 else learning_rate * factor)

    return scaled
