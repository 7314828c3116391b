"""Versions of the packages that a fit and a saved model depend on (every side)."""

from __future__ import annotations

import importlib.metadata
import platform

import cos_ml
from cos_ml.network.keras_import import import_keras, import_tensorflow

__all__ = ["TENSORFLOW", "recorded_versions", "shared_versions", "version_of"]

TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-macos", "tensorflow-rocm", "tf-nightly")


def shared_versions() -> dict[str, str | None]:
    """Versions that driver and executors must share, read without importing the packages; None if not installed."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "TensorFlow": version_of(*TENSORFLOW),
        "Keras": version_of("keras"),
        "cos_ml": version_of("cos-ml"),
        "Horovod": version_of("horovod"),
    }


def recorded_versions() -> dict[str, str]:
    """Versions that a network's outputs may depend on, as saved models record them (driver side)."""
    import numpy
    import pyspark

    return {
        "cos_ml": cos_ml.__version__,
        "python": platform.python_version(),
        "tensorflow": import_tensorflow().__version__,
        "keras": import_keras().version(),
        "numpy": numpy.__version__,
        "pyspark": pyspark.__version__,
    }


def version_of(*names: str) -> str | None:
    """The version of the first of these distributions that is installed; None if none is."""
    return next((found.version for name in names for found in importlib.metadata.distributions(name=name)), None)
