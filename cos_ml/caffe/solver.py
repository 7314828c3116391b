"""Caffe's solvers as the keywords of DeepNetEstimator (driver side)."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from cos_ml import optimizers
from cos_ml.caffe import prototxt as text
from cos_ml.caffe.convert import blob_names
from cos_ml.caffe.networks import layer_names, read_layers
from cos_ml.errors import InvalidInputError

__all__ = ["read_solver"]

logger = logging.getLogger(__name__)

TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")  # by the number of the old `solver_type`
POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")
NETWORKS = ("net", "net_param", "train_net", "train_net_param")  # where Caffe looks for the network that trains
# Fields that change no result here, and why.
PASSED_OVER = {
    "test_iter": "validation reads all validation rows",
    "test_initialization": "no validation comes before the first step",
    "test_net": "the network that trains also validates",
    "test_net_param": "the network that trains also validates",
    "test_state": "the network that trains also validates",
    "display": "the progress bar shows the loss, and the history its mean of each epoch",
    "average_loss": "losses are means of the epoch so far",
    "solver_mode": "useGpu says whether ranks train on GPUs",
    "device_id": "Spark assigns GPUs",
    "snapshot_format": "checkpoints have a format of their own",
    "snapshot_diff": "checkpoints hold no gradients",
    "snapshot_after_train": "fit returns the trained network",
    "debug_info": "blobs are not logged",
    "test_compute_loss": "the loss of the validation rows is always computed",
}


def read_solver(
    prototxt: Any, network: Any = None, weights: Any = None, stages: Sequence[str] = (), inputs: Any = None,
    data_format: str = "channels_last",
) -> dict[str, Any]:  # fmt: skip
    """Read a solver: what it says, as keywords of ``DeepNetEstimator``, the network included.

    The network does what ``transform_param`` says, for images as they are stored. ``batchSize`` is that of its data
    layer and holds for each rank, as it held for each device of CaffeOnSpark's. Iterations are
    counted in steps, ``iter_size`` of which are one iteration.

    Args:
        prototxt: the path of a solver file, or its text.
        network: a network in place of the one that the solver names: a path or a text.
        weights: a caffemodel with the weights at the start, in place of the one that the solver names.
        stages: stages of the network, beside those of ``train_state``.
        inputs: the shapes of inputs that the network does not declare, as ``read`` takes them.
        data_format: "channels_first" for images in Caffe's order, as ``read`` takes it.

    Raises:
        InvalidInputError: a field is missing, or has a value that Caffe or cos_ml does not know.
    """
    solver = text.solver(prototxt)
    _check_numbers(solver)
    keywords = _steps(solver)
    net = _network(solver, prototxt) if network is None else network
    state = [*solver.train_state.stage, *stages]
    source = weights if weights is not None else _weights(solver, prototxt)
    with _seeded(solver.random_seed):
        model, layers = read_layers(
            net, source, "TRAIN", inputs, state, solver.train_state.level, data_format, transform=True
        )
    rates, decays = _multipliers(layers, model)
    keywords |= {"model": model, "optimizer": _optimizer(solver, decays)}
    if rates:
        keywords["layerLearningRates"] = rates
    keywords |= _data(layers)
    _note(solver, keywords)
    return keywords


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """In the block, the seeds of new initializers and Dropouts follow from ``seed``, if that is not negative."""
    before = random.getstate()
    if seed >= 0:
        random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


# ── the optimizer ─────────────────────────────────────────────────────────────────────────────────────────────────────


def solver_type(solver: Any) -> str:
    """The solver's type, by its name or by the number of old files."""
    found = str(solver.type) if solver.HasField("type") else TYPES[solver.solver_type]
    if solver.HasField("type") and solver.HasField("solver_type"):
        raise InvalidInputError("Caffe's solver: expected type or the old solver_type, received both. Leave out one.")
    if found not in TYPES:
        raise InvalidInputError(f"Caffe's solver: there is no type {found!r}. Expected one of {', '.join(TYPES)}.")
    if solver.momentum and found in ("AdaGrad", "RMSProp"):
        raise InvalidInputError(
            f"Caffe's solver: {found} has no momentum, received momentum: {solver.momentum:g}. Leave it out."
        )
    return found


def _optimizer(solver: Any, decays: dict[str, float]) -> Any:
    """The optimizer that computes what the solver does."""
    kind, schedule = solver_type(solver), _schedule(solver)
    options: dict[str, Any] = {"learning_rate": schedule}
    norm = str(solver.regularization_type)
    if norm not in ("L1", "L2"):
        raise InvalidInputError(f'Caffe\'s solver: regularization_type: expected "L2" or "L1", received {norm!r}.')
    if solver.weight_decay:
        options |= {norm.lower(): _exact(solver.weight_decay), "decay_multipliers": decays}
    if solver.clip_gradients > 0:  # Caffe clips the sum of iter_size gradients, Keras their mean
        options["global_clipnorm"] = _exact(solver.clip_gradients) / solver.iter_size
    if kind in ("SGD", "Nesterov"):
        return optimizers.CoupledSGD(momentum=_exact(solver.momentum), nesterov=kind == "Nesterov", **options)
    options["epsilon"] = _exact(solver.delta)
    if kind == "AdaGrad":
        return optimizers.CoupledAdagrad(**options)
    if kind == "RMSProp":
        return optimizers.CoupledRMSprop(rho=_exact(solver.rms_decay), **options)
    if kind == "AdaDelta":
        return optimizers.CoupledAdadelta(rho=_exact(solver.momentum), **options)
    return optimizers.CoupledAdam(beta_1=_exact(solver.momentum), beta_2=_exact(solver.momentum2), **options)


def _exact(value: float) -> float:
    """A float32 of protobuf's as the decimal number that was written."""
    return float(str(np.float32(value)))


def _schedule(solver: Any) -> Any:
    """The learning rate: a number, or a schedule by iterations."""
    policy, base, steps = _policy(solver), _exact(solver.base_lr), solver.iter_size
    gamma, power = _exact(solver.gamma), _exact(solver.power)
    schedules = keras.optimizers.schedules
    if policy == "fixed":
        return base
    if policy in ("step", "exp"):
        found = schedules.ExponentialDecay(base, solver.stepsize if policy == "step" else 1, gamma, policy == "step")
    elif policy == "multistep":
        values = list(solver.stepvalue)
        rates = [base * gamma**index for index in range(len(values) + 1)]
        found = schedules.PiecewiseConstantDecay([value - 1 for value in values], rates) if values else base
    elif policy == "poly":
        found = schedules.PolynomialDecay(base, solver.max_iter, 0.0, power)
    elif policy == "inv":
        found = optimizers.InverseDecay(base, gamma, power)
    else:
        found = optimizers.SigmoidDecay(base, gamma, solver.stepsize)
    return optimizers.UpdateSchedule(found, steps) if steps > 1 and found is not base else found


def _policy(solver: Any) -> str:
    """The policy of the learning rate, whose fields are checked."""
    policy = str(solver.lr_policy)
    if not solver.HasField("lr_policy"):
        raise InvalidInputError(f"Caffe's solver: lr_policy is missing. Expected one of {', '.join(POLICIES)}.")
    if policy not in POLICIES:
        raise InvalidInputError(
            f"Caffe's solver: there is no lr_policy {policy!r}. Expected one of {', '.join(POLICIES)}."
        )
    needed = {
        "step": ("gamma", "stepsize"), "exp": ("gamma",), "inv": ("gamma", "power"), "poly": ("power", "max_iter"),
        "multistep": ("gamma",), "sigmoid": ("gamma", "stepsize"),
    }.get(policy, ())  # fmt: skip
    for name in needed:
        if not solver.HasField(name):
            raise InvalidInputError(f"Caffe's solver: lr_policy {policy!r} needs {name}, which is missing.")
    if solver.gamma < 0:
        raise InvalidInputError(f"Caffe's solver: gamma: expected a number >= 0, received {solver.gamma:g}.")
    if policy == "step" and solver.stepsize < 1:
        raise InvalidInputError(f"Caffe's solver: stepsize: expected an integer >= 1, received {solver.stepsize}.")
    if list(solver.stepvalue) != sorted(solver.stepvalue):
        raise InvalidInputError(
            f"Caffe's solver: stepvalue: expected ascending numbers, received {list(solver.stepvalue)}."
        )
    return policy


def _multipliers(layers: Sequence[Any], model: Any) -> tuple[dict[str, float], dict[str, float]]:
    """The factors of rate and of decay, by weight, where they are not 1."""
    rates, decays = dict[str, float](), dict[str, float]()
    found = {layer.name: layer for layer in model.layers}
    for layer, own in zip(layers, layer_names(layers), strict=True):
        made = found.get(own)
        if made is None or not layer.param:
            continue
        trainable = {weight.name for weight in made.trainable_weights}
        for name, param in zip(blob_names(made), layer.param, strict=False):
            if name not in trainable:  # the statistics of a BatchNorm, which no gradient moves
                continue
            if param.lr_mult < 0 or param.decay_mult < 0:
                raise InvalidInputError(
                    f"Caffe layer {layer.name!r}: expected lr_mult and decay_mult >= 0, received {param.lr_mult:g} and "
                    f"{param.decay_mult:g}."
                )
            if param.lr_mult != 1:
                rates[f"{made.name}/{name}"] = _exact(param.lr_mult)
            if param.decay_mult != 1:
                decays[f"{made.name}/{name}"] = _exact(param.decay_mult)
    return rates, decays


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_numbers(solver: Any) -> None:
    if not solver.HasField("base_lr") or not solver.base_lr > 0:
        raise InvalidInputError(
            f"Caffe's solver: base_lr: expected a number > 0, received {solver.base_lr:g}."
            if solver.HasField("base_lr")
            else "Caffe's solver: base_lr is missing: expected a number > 0."
        )
    for name, low in (("iter_size", 1), ("max_iter", 1), ("test_interval", 0), ("snapshot", 0), ("weight_decay", 0)):
        if solver.HasField(name) and not getattr(solver, name) >= low:  # or NaN
            raise InvalidInputError(
                f"Caffe's solver: {name}: expected a number >= {low}, received {getattr(solver, name):g}."
            )
    for name in ("momentum", "momentum2", "rms_decay"):
        if not 0 <= getattr(solver, name) < 1:
            raise InvalidInputError(
                f"Caffe's solver: {name}: expected a number >= 0 and < 1, received {getattr(solver, name):g}."
            )


def _steps(solver: Any) -> dict[str, Any]:
    """The seed, and the keywords that count steps: when training ends, validates and writes checkpoints."""
    size, found = solver.iter_size, dict[str, Any]()
    if size > 1:
        found["gradientAccumulationSteps"] = size
    if solver.max_iter:
        found["maxSteps"] = solver.max_iter * size
    if solver.test_interval:
        found["validationSteps"] = solver.test_interval * size
    if solver.random_seed >= 0:
        found["seed"] = solver.random_seed
    if solver.snapshot and solver.snapshot_prefix:
        found |= {"checkpointDir": str(solver.snapshot_prefix), "checkpointSteps": solver.snapshot * size}
    return found


def _network(solver: Any, prototxt: Any) -> Any:
    """The network that trains: its path, or a NetParameter."""
    named = [name for name in NETWORKS if solver.HasField(name)]
    if len(named) != 1:
        raise InvalidInputError(
            f"Caffe's solver: expected one of {', '.join(NETWORKS)}, received {', '.join(named) or 'none'}. Or pass "
            "network=, the path of a prototxt."
        )
    value = getattr(solver, named[0])
    return text.resolve(value, prototxt) if isinstance(value, str) else value


def _weights(solver: Any, prototxt: Any) -> str | None:
    """The weights at the start that the solver names."""
    names = [part.strip() for value in solver.weights for part in value.split(",") if part.strip()]
    if len(names) > 1:
        raise InvalidInputError(f"Caffe's solver: expected one file of weights, received {names}. Pass weights=.")
    return text.resolve(names[0], prototxt) if names else None


def _data(layers: Sequence[Any]) -> dict[str, Any]:
    """The keyword that the data layer gives: the size of a batch."""
    for layer in layers:
        for name, _ in layer.ListFields():
            size = getattr(getattr(layer, name.name, None), "batch_size", 0)
            if size:
                return {"batchSize": size}
    return {}


def _note(solver: Any, keywords: dict[str, Any]) -> None:
    """Log in one line which fields are passed over, and why."""
    set_fields = {field.name for field, _ in solver.ListFields()}
    passed = [f"{name} ({why})" for name, why in PASSED_OVER.items() if name in set_fields]
    if {"snapshot", "snapshot_prefix"} & set_fields and "checkpointDir" not in keywords:
        passed.append("snapshot (checkpoints need both snapshot and snapshot_prefix)")
    if passed:
        logger.warning("Caffe's solver: passed over %s.", "; ".join(passed))
