"""Tokenizers of keras-hub within a network (driver side; in ranks when they save a network).

keras-hub leaves what a tokenizer was built with out of its configuration, and saves it as files of the archive. Keras
opens those after it has called all layers once, so it loads no functional model with a tokenizer in it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from cos_ml.network.keras_internals import all_layers

__all__ = ["with_vocabularies"]

# What the constructors of WordPieceTokenizer, BytePairTokenizer and SentencePieceTokenizer take, and their attributes.
ARGUMENTS = ("vocabulary", "merges", "proto")


@contextmanager
def with_vocabularies(model: Any) -> Iterator[None]:
    """Within the block Keras saves the tokenizers of ``model`` with their vocabulary in their configuration."""
    with ExitStack() as restored:
        for layer in all_layers(model):
            kept = _kept(layer) if getattr(layer, "file_assets", None) else {}
            if kept:
                layer.get_config = partial(_completed, layer.get_config, kept)
                restored.callback(delattr, layer, "get_config")
        yield


def _kept(tokenizer: Any) -> dict[str, Any]:
    """The arguments of a tokenizer, as JSON has them; bytes as the base64 that keras-hub takes for them."""
    found = {name: getattr(tokenizer, name, None) for name in ARGUMENTS}
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in found.items()
        if value is not None
    }


def _completed(get_config: Callable[[], dict[str, Any]], kept: dict[str, Any]) -> dict[str, Any]:
    return get_config() | kept
