"""The settings that a network has only while it trains: a dtype policy, and layers that are frozen (rank side)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cos_ml.network.archive import find_layer, layers_by_name
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import all_layers
from cos_ml.network.rates import weight_rates

__all__ = ["layers_under_policy", "training_settings"]

USUAL = ("float32", "mixed_bfloat16", "mixed_float16")  # a layer with any other policy was given it by name


@contextmanager
def training_settings(
    network: Any, policy: str | None, frozen: tuple[str, ...], rates: Mapping[str, float] | None = None
) -> Iterator[None]:
    """Within the block, layers compute under the dtype policy ``policy`` and the layers ``frozen`` are not trainable.

    Args:
        network: a Keras model.
        policy: the name of a Keras dtype policy for ``layers_under_policy``; None leaves each layer its own.
        frozen: names of layers.
        rates: factors of the learning rate by layer or weight: weights with the factor 0 are not trainable.
    """
    policies = [(layer, layer.dtype_policy) for layer in layers_under_policy(network)] if policy else []
    # A layer's setting changes those of its layers and variables, so they come after it: LoRA freezes single variables.
    parts = [*all_layers(network), *network.variables] if frozen or rates else []
    trainable = [(part, part.trainable) for part in parts]
    for layer, _ in policies:
        layer.dtype_policy = policy
    layers = layers_by_name(network)
    for name in frozen:
        layers[find_layer(layers, name, "frozenLayers")].trainable = False
    for weight, factor in weight_rates(network, rates or {}):
        if not factor:  # no gradient, so its gradient is no part of a clipped norm
            weight.trainable = False
    try:
        yield
    finally:
        for part, before in trainable:
            part.trainable = before
        for layer, policy_before in policies:
            layer.dtype_policy = policy_before


def layers_under_policy(network: Any) -> list[Any]:
    """The layers that take the dtype policy of a training, those within layers too, such as an LSTM's cell.

    Left out is what has a type of its own: preprocessing layers, layers of whole numbers or strings, and layers whose
    policy is not the network's usual one, because they were quantised or given it by name.
    """
    keras = import_keras()
    kinds = vars(keras.layers).values()
    fixed = tuple(kind for kind in kinds if isinstance(kind, type) and ".preprocessing." in kind.__module__)
    layers = [one for one in all_layers(network) if not isinstance(one, (*fixed, keras.layers.InputLayer))]
    layers = [one for one in layers if "float" in one.compute_dtype]
    usual = _usual_policy(network, [one for one in layers if not isinstance(one, keras.Model)])
    return [one for one in layers if one.dtype_policy.name == usual]


def _usual_policy(network: Any, layers: list[Any]) -> str:
    """The name of the policy that most layers have. A loaded network's own may be another: archives don't keep it."""
    own = network.dtype_policy.name
    counts = Counter(one.dtype_policy.name for one in layers)
    usual = {name: count for name, count in counts.items() if name in USUAL} or counts
    return max(usual, key=lambda name: (usual[name], name == own), default=own)
