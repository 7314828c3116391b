"""What the class and the layers of a network ask of a training, as plain facts (driver side)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers, mask_of
from cos_ml.network.structure import fixed_batch_size, is_masked

__all__ = ["OWN_STEPS", "Traits", "find_traits"]

OWN_STEPS = ("train_step", "compute_loss")  # what takes the place of a compiled loss
METHODS = (*OWN_STEPS, "test_step", "compute_metrics", "compile", "compile_from_config")


@dataclass(frozen=True)
class Traits:
    """Facts about a network that its archive does not tell without being loaded.

    Attributes:
        overrides: methods of ``keras.Model`` that the network's class replaces.
        own_arguments: arguments of its ``compile`` that Keras's has not.
        needed_arguments: those of them without a default.
        refused_arguments: arguments of Keras's ``compile`` that it does not take.
        self_compiled: whether it compiles itself when it is made.
        trainable: the names of the layers with trainable weights, none of which contains another one; "" for weights
            that belong to no layer in the list.
        stateful: the names of recurrent layers that carry their state from batch to batch.
        batch_size: the number of rows that each batch must have; None for any.
        masked_outputs: whether an output carries a mask.
        synchronized: the names of layers that normalize over all ranks' rows.
        masked_synchronized: the names of those that receive a mask.
    """

    overrides: tuple[str, ...] = ()
    own_arguments: tuple[str, ...] = ()
    needed_arguments: tuple[str, ...] = ()
    refused_arguments: tuple[str, ...] = ()
    self_compiled: bool = False
    trainable: tuple[str, ...] = ()
    stateful: tuple[str, ...] = ()
    batch_size: int | None = None
    masked_outputs: bool = False
    synchronized: tuple[str, ...] = ()
    masked_synchronized: tuple[str, ...] = ()

    @property
    def own_step(self) -> bool:
        """Whether the network's class says itself how its loss is computed."""
        return any(name in self.overrides for name in OWN_STEPS)


def find_traits(model: Any, loaded: Any, layers: dict[str, Any]) -> Traits:
    """The traits of ``model``.

    Args:
        model: a built ``keras.Model``.
        loaded: the same model, as it is when it is loaded from its archive without being compiled.
        layers: the model's layers by name, as ``archive.layers_by_name`` finds them.
    """
    keras = import_keras()
    inner = all_layers(model)
    synchronized = [
        layer for layer in inner if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized
    ]
    return Traits(
        overrides=tuple(name for name in METHODS if _overrides(model, name)),
        **_compile_arguments(type(model).compile),
        self_compiled=bool(loaded.compiled) and _compiled_alike(model, loaded),
        trainable=_trainable(model, layers),
        stateful=tuple(layer.name for layer in inner if getattr(layer, "stateful", False) is True),
        batch_size=fixed_batch_size(model),
        masked_outputs=is_masked(loaded),
        synchronized=tuple(layer.name for layer in synchronized),
        masked_synchronized=tuple(layer.name for layer in synchronized if _is_masked(layer)),
    )


def _overrides(model: Any, name: str) -> bool:
    """Whether the class of ``model``, or one of its bases outside of Keras, defines a method."""
    owner = next(base for base in type(model).__mro__ if name in vars(base))
    return owner.__module__.split(".")[0] != "keras"


def _compile_arguments(compile_: Any) -> dict[str, tuple[str, ...]]:
    """How the arguments of a ``compile`` differ from those of Keras's."""
    keras = import_keras()
    usual = set(inspect.signature(keras.Model.compile).parameters)
    given = inspect.signature(compile_).parameters
    plain = [one for one in given.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    own = [one for one in plain if one.name not in usual]
    takes_all = any(one.kind == one.VAR_KEYWORD for one in given.values())
    return {
        "own_arguments": tuple(one.name for one in own),
        "needed_arguments": tuple(one.name for one in own if one.default is one.empty),
        "refused_arguments": () if takes_all else tuple(sorted(usual - set(given))),
    }


def _compiled_alike(model: Any, loaded: Any) -> bool:
    """Whether a model that compiles itself has not been compiled differently since."""
    try:
        return bool(_without_names(model.get_compile_config()) == _without_names(loaded.get_compile_config()))
    except Exception:  # of a get_compile_config that needs what only the user's model has
        return False


def _without_names(config: Any) -> Any:
    """A configuration without names, which Keras numbers."""
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key != "name"}
    return [_without_names(value) for value in config] if isinstance(config, (list, tuple)) else config


def _trainable(model: Any, layers: dict[str, Any]) -> tuple[str, ...]:
    leaves = {name: layer for name, layer in layers.items() if not getattr(layer, "layers", None)}
    names = [name for name, layer in leaves.items() if layer.trainable_weights]
    covered = {id(weight) for layer in leaves.values() for weight in layer.weights}
    rest = any(id(weight) not in covered for weight in model.trainable_weights)
    return (*names, "") if rest else tuple(names)


def _is_masked(layer: Any) -> bool:
    try:
        return mask_of(layer.output) is not None  # it passes the mask of its input on
    except (AttributeError, ValueError):  # a layer that is called in several places, or in none that Keras recorded
        return False
