"""Versions of what a fit depends on, read from the installed packages without importing them (every side)."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["recorded_versions", "shared_versions", "version_of"]

TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-macos", "tensorflow-rocm", "tf-nightly")


def version_of(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; None where none is."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def shared_versions() -> dict[str, str | None]:
    """What must be the same on the driver and on all executors; None for what is not installed."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "TensorFlow": version_of(*TENSORFLOW),
        "Keras": version_of("keras"),
        "cos_ml": version_of("cos-ml"),
        "Horovod": version_of("horovod"),
    }


def recorded_versions() -> dict[str, str | None]:
    """What a network's outputs may depend on, as saved models record it."""
    return {
        "cos_ml": version_of("cos-ml"),
        "python": platform.python_version(),
        "tensorflow": version_of(*TENSORFLOW),
        "keras": version_of("keras"),
        "numpy": version_of("numpy"),
        "pyspark": version_of("pyspark", "pyspark-client", "pyspark-connect"),
    }
