"""Deep nets as Spark ML stages: train Keras networks with Horovod on barrier tasks, and use them as Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["DeepNetEstimator", "DeepNetModel", "__version__", "callback"]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cos_ml.callbacks import callback
    from cos_ml.estimator import DeepNetEstimator
    from cos_ml.model import DeepNetModel

_HOMES = {
    "DeepNetEstimator": "cos_ml.estimator",
    "DeepNetModel": "cos_ml.model",
    "callback": "cos_ml.callbacks",
}


def __getattr__(name: str) -> Any:
    # Ranks import this package too, and start sooner without Spark.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
