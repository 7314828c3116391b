"""Caffe's networks, weights and solvers read into Keras (driver side; the layers and losses: every side)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cos_ml.caffe.networks import layer_of_blob, read
    from cos_ml.caffe.solver import read_solver
    from cos_ml.caffe.weights import assign

__all__ = ["assign", "layer_of_blob", "read", "read_solver"]

MODULES = {"assign": "weights", "layer_of_blob": "networks", "read": "networks", "read_solver": "solver"}


def __getattr__(name: str) -> Any:
    """Import a name's module, and protobuf with it, on first use."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
