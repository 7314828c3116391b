"""Errors that name a Caffe layer (every side)."""

from __future__ import annotations

from typing import Any

from cos_ml.errors import InvalidInputError

__all__ = ["problem", "unknown_sides"]


def problem(layer: Any, text: str) -> InvalidInputError:
    """The error for a layer: ``text`` says what is wrong, and what to do."""
    return InvalidInputError(f"Caffe layer {layer.name!r} ({layer.type}): {text}.")


def unknown_sides(layer: Any, shape: Any) -> InvalidInputError:
    """The error for a layer whose input has a side that nothing declares."""
    return problem(layer, f"its input has the shape {shape}; give the sides by inputs=")
