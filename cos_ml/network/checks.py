"""Refuses by name, before any job, what a network, its losses and its callbacks can't do together (driver side)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, layers_by_name, load_model
from cos_ml.network.forward import pack_inputs
from cos_ml.network.keras_import import import_keras
from cos_ml.network.losses import each_loss, loss_name, needs_sum, without_reduction
from cos_ml.network.structure import input_tensors
from cos_ml.network.traits import Traits, find_traits
from cos_ml.network.untrusted import serialized_objects

__all__ = [
    "check_by_output",
    "check_call",
    "check_compile_arguments",
    "check_learning_rate",
    "check_losses",
    "check_network",
    "check_trainable",
    "check_xla",
    "compiled_by_class",
    "compiled_settings",
    "loss_of",
    "needs_no_loss",
    "takes_labels",
    "traits_of",
]

RATE_SETTERS = ("ReduceLROnPlateau", "LearningRateScheduler")
PARAMS = {"optimizer": "optimizer", "loss": "loss", "metrics": "metrics", "loss_weights": "lossWeights"}
OWN_COMPILE = "override get_compile_config and compile_from_config, and compile the model before passing it"


def traits_of(network: Network) -> Traits:
    """The traits of a network, looked up in the network itself where an older version of cos_ml saved it."""
    if network.traits is not None:
        return network.traits
    model = load_model(network.archive, network.modules)
    return find_traits(model, model, layers_by_name(model))


def compiled_by_class(network: Network, chosen: Sequence[str]) -> dict[str, Any] | None:
    """How the network's own class compiles it; None where ``keras.Model.compile`` gets arguments as always.

    Args:
        network: the network.
        chosen: the arguments of ``compile`` that Params set.

    Returns:
        dict[str, Any] | None: {"compile_config": configuration} for a class with ``compile_from_config``, or
        {"self_compiled": True} for one that compiles itself when it is made.

    Raises:
        InvalidInputError: the class compiles its networks itself, and Params are set that would change that.
    """
    traits = traits_of(network)
    if "compile_from_config" in traits.overrides and network.compiled:
        if chosen:
            raise InvalidInputError(
                f"Param {PARAMS[chosen[0]]}: the network's class compiles it by its own compile_from_config. Unset the "
                f"Param, and pass the {chosen[0]} to the network's compile."
            )
        try:
            json.dumps(network.compiled)
        except TypeError as error:
            raise InvalidInputError(
                f"Param model: its get_compile_config returns what is not plain data ({error}). Serialize it there "
                "with keras.saving.serialize_keras_object."
            ) from error
        return {"compile_config": network.compiled}
    if traits.self_compiled and not chosen:
        return {"self_compiled": True}
    return None


def check_compile_arguments(network: Network, arguments: dict[str, Any], given: bool) -> None:
    """Raises InvalidInputError for arguments that the ``compile`` of the network's class does not take.

    Args:
        network: the network.
        arguments: the arguments that it will get.
        given: whether some of them are those with which the user compiled the network.
    """
    traits = traits_of(network)
    if "compile" not in traits.overrides:
        return
    lost = traits.own_arguments if given and network.compiled else traits.needed_arguments
    if lost:
        raise InvalidInputError(
            f"Param model: compile of the network's class has arguments of its own ({', '.join(lost)}), which Keras "
            f"does not save: {OWN_COMPILE}."
        )
    refused = [name for name in arguments if name in traits.refused_arguments]
    if refused:
        raise InvalidInputError(
            f"Param {PARAMS.get(refused[0], refused[0])}: compile of the network's class takes no {refused[0]}: "
            f"{OWN_COMPILE}, or let its compile take **kwargs."
        )


def check_by_output(network: Network, arguments: dict[str, Any]) -> None:
    """Raises InvalidInputError for losses, metrics or weights by output that are not those of the network's outputs."""
    traits, count = traits_of(network), len(network.outputs)
    if not count or traits.own_step or {"compile", "compute_metrics"} & set(traits.overrides):
        return  # the class may take other keys than Keras
    names = [output.key or output.name for output in network.outputs]
    has = f"the network has {count} output{'s' if count > 1 else ''} ({', '.join(names)})"
    for argument in ("loss", "metrics", "weighted_metrics", "loss_weights"):
        value, param = arguments.get(argument), PARAMS.get(argument, argument)
        if isinstance(value, (list, tuple)):
            wrong = {"loss": len(value) > count, "loss_weights": len(value) != count}
            if wrong.get(argument, 1 < count != len(value) > 0):
                raise InvalidInputError(
                    f"Param {param}: {has}, expected a list with an entry for each, received {len(value)}: {value}."
                )
        elif isinstance(value, dict) and "class_name" not in value and (count > 1 or "metrics" not in argument):
            known = {*names, *(output.name for output in network.outputs)}
            if unknown := [name for name in value if name not in known]:
                raise InvalidInputError(f"Param {param}: there is no output {unknown[0]!r}; {has}.")


def needs_no_loss(network: Network) -> bool:
    """Whether a network trains without a compiled loss: by a step of its own, or by losses that its layers add."""
    return traits_of(network).own_step or _adds_losses(load_model(network.archive, network.modules))


def _adds_losses(model: Any) -> bool:
    """Whether layers of ``model`` add losses of their own, beside penalties on weights."""
    types = {"string": str, "bfloat16": np.float32}
    shapes = [
        ([side or 1 for side in tensor.shape], types.get(tensor.dtype, tensor.dtype)) for tensor in input_tensors(model)
    ]
    try:
        model(pack_inputs(model, [np.zeros(shape, dtype) for shape, dtype in shapes]))
    except Exception:  # of layers that do not work on rows of zeros
        return False
    penalties = [weight for weight in model.trainable_weights if weight.regularizer is not None]
    return len(model.losses) > len(penalties)


def takes_labels(network: Network) -> bool:
    """Whether a network without a compiled loss may look at labels."""
    traits = traits_of(network)
    own = ("test_step", "compute_metrics", "compile_from_config")
    return traits.own_step or any(name in traits.overrides for name in own)


def loss_of(network: Network, arguments: dict[str, Any]) -> Any:
    """The argument ``loss`` with which ``keras.Model.compile`` ends up; None for none, or if only the class knows.

    Args:
        network: the network.
        arguments: those of ``compile``, or how the network's class compiles it, as ``compiled_by_class`` tells.
    """
    if "compile_config" in arguments or "self_compiled" in arguments:
        loss = (network.compiled or {}).get("loss")
        return loss if isinstance(loss, (str, dict, list)) else None
    return arguments.get("loss") or None


def compiled_settings(network: Network) -> dict[str, Any]:
    """The fields of a TrainSpec that a compiled model has set: how its steps run."""
    compiled, found = network.compiled or {}, dict[str, Any]()
    if compiled.get("run_eagerly") is True:
        found["run_eagerly"] = True
    steps = compiled.get("steps_per_execution")
    if isinstance(steps, int) and steps > 1:
        found["steps_per_execution"] = steps
    # Where there is a GPU, Keras compiles with XLA without being asked.
    if compiled.get("jit_compile") is True and not import_keras().distribution.list_devices("gpu"):
        found["jit_compile"] = True
    return found


def check_losses(loss: Any) -> None:
    """Raises InvalidInputError for a loss that is not one number per step."""
    name = without_reduction(loss)
    if name is not None:
        raise InvalidInputError(
            f"Param loss: {name} has the reduction None, so a step has no single loss, and ranks can't add up their "
            "gradients. Use 'sum_over_batch_size' (the mean), 'sum' or 'mean_with_sample_weight'."
        )


def check_learning_rate(optimizer: Any, learning_rate: float | None, callbacks: Sequence[dict[str, Any]]) -> None:
    """Raises InvalidInputError for a second one who sets the rate of an optimizer that has a schedule."""
    schedule = _schedule(optimizer)
    if schedule is None:
        return
    if learning_rate is not None:
        raise InvalidInputError(
            f"Param learningRate: the optimizer has the schedule {schedule}, which sets the rate in each step. Unset "
            "learningRate, or give the optimizer no schedule."
        )
    for plain in callbacks:
        name = plain["class"].partition(":")[2]
        if plain["class"].startswith("keras.") and name in RATE_SETTERS:
            raise InvalidInputError(
                f"Param callbacks: {name} sets the learning rate, but the optimizer has the schedule {schedule}, which "
                "sets it in each step. Remove one of the two."
            )


def check_trainable(network: Network, frozen: Sequence[str]) -> None:
    """Raises InvalidInputError if no weight would change; ``frozen`` are the full names of the frozen layers."""
    traits = traits_of(network)
    if "train_step" in traits.overrides:
        return

    def is_frozen(name: str) -> bool:
        return any(name == one or name.startswith(f"{one}/") for one in frozen)

    if not traits.trainable:
        raise InvalidInputError(
            "Param model: the network has no trainable weights, so there is nothing to train. Set trainable=True on a "
            "layer; to score with it as it is, use DeepNetModel."
        )
    if all(is_frozen(name) for name in traits.trainable):
        raise InvalidInputError(
            f"Param frozenLayers: {list(frozen)} are all layers with trainable weights, so there is nothing to train. "
            f"Leave out one of {list(traits.trainable)}."
        )


def check_call(network: Network, what: str, without: str = "") -> None:
    """Raises InvalidInputError where a network that computes no outputs is asked for them.

    Args:
        network: the network.
        what: what needs them.
        without: the method of the network's class that would do without them, if any.
    """
    if not network.outputs and without not in traits_of(network).overrides:
        instead = f"call() or {without}()" if without else "call()"
        raise InvalidInputError(
            f"Param model: the network's class has no call(), so it can be trained, but {what} is not possible. Define "
            f"{instead}, or take a model out of it: DeepNetModel(model=trained.toKeras().<attribute>)."
        )


def check_network(network: Network, batch_size: int, ranks: int) -> None:
    """Raises InvalidInputError for layers that could not do what they promise."""
    traits = traits_of(network)
    if traits.batch_size is not None and traits.batch_size != batch_size:
        why = f", and its layer {traits.stateful[0]!r} is stateful" if traits.stateful else ""
        raise InvalidInputError(
            f"Param batchSize: the network takes batches of {traits.batch_size} rows{why}, received {batch_size}. Set "
            f"batchSize={traits.batch_size}, with as many rows on each rank as these batches divide."
        )
    if traits.masked_synchronized and ranks > 1:
        raise InvalidInputError(
            f"Param model: {traits.masked_synchronized[0]!r} is a BatchNormalization with synchronized=True that "
            "receives a mask; Keras then ignores synchronized. Use LayerNormalization, remove the mask, or set "
            "synchronized=False."
        )


def check_xla(network: Network, loss: Any, ranks: int) -> None:
    """Raises InvalidInputError for what XLA can't compile; for jitCompile=True only."""
    strings = [tensor.name for tensor in network.inputs if tensor.dtype == "string"]
    if strings:
        raise InvalidInputError(
            f"Param jitCompile: XLA has no strings, which input {strings[0]!r} takes. Set jitCompile=False, or look up "
            "the strings before, for example with StringIndexer."
        )
    if ranks == 1:
        return
    traits = traits_of(network)
    reasons = {
        "the network has a train_step of its own": "train_step" in traits.overrides,
        "an output of the network has a mask": traits.masked_outputs,
        f"layer {(*traits.synchronized, '')[0]!r} is synchronized": bool(traits.synchronized),
    }
    reasons |= {
        f"{loss_name(one)} ignores a class or divides by the weights of the whole step": True
        for one in each_loss(loss)
        if needs_sum(one)
    }
    for reason, holds in reasons.items():
        if holds:
            raise InvalidInputError(
                f"Param jitCompile: {reason}, which needs a sum over all ranks within the step, and XLA has none. Set "
                "jitCompile=False, or numTrainWorkers=1."
            )


def _schedule(optimizer: Any) -> str | None:
    """The name of the learning rate schedule in a serialized optimizer; None if its rate is a number."""
    for one in serialized_objects(optimizer):
        config = one.get("config")
        rate = config.get("learning_rate") if isinstance(config, dict) else None
        if isinstance(rate, dict):
            return str(rate.get("class_name"))
    return None
