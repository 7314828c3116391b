"""Errors that name a layer of Caffe's (driver side)."""

from __future__ import annotations

from typing import Any

from cos_ml.errors import InvalidInputError

__all__ = ["problem"]


def problem(layer: Any, text: str) -> InvalidInputError:
    """The error for a layer: ``text`` says what is wrong, and what to do."""
    return InvalidInputError(f"Caffe layer {layer.name!r} ({layer.type}): {text}.")
