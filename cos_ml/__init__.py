"""Deep nets as Spark ML stages: Keras networks, trained with Horovod on barrier tasks (every side imports this)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "DeepNetEstimator",
    "DeepNetModel",
    "ImageAssembler",
    "__version__",
    "callback",
    "export",
    "image_classes",
    "preprocessing_layers",
    "read_images",
    "read_sequence_file",
    "write_sequence_file",
]

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cos_ml.callbacks import callback
    from cos_ml.estimator import DeepNetEstimator
    from cos_ml.exporting import export
    from cos_ml.images import ImageAssembler, preprocessing_layers
    from cos_ml.model import DeepNetModel
    from cos_ml.sources.images import image_classes, read_images, read_sequence_file, write_sequence_file

_HOMES = {
    "DeepNetEstimator": "cos_ml.estimator",
    "DeepNetModel": "cos_ml.model",
    "ImageAssembler": "cos_ml.images",
    "callback": "cos_ml.callbacks",
    "export": "cos_ml.exporting",
    "image_classes": "cos_ml.sources.images",
    "preprocessing_layers": "cos_ml.images",
    "read_images": "cos_ml.sources.images",
    "read_sequence_file": "cos_ml.sources.images",
    "write_sequence_file": "cos_ml.sources.images",
}


def __getattr__(name: str) -> Any:
    # Lazy, because ranks import this package too, and start sooner without Spark.
    if name in _HOMES:
        import contextlib
        import importlib

        from cos_ml.network.keras_import import import_keras

        with contextlib.suppress(ImportError):  # which modules that need Keras raise themselves
            import_keras()  # quietly, before the program imports it
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "pyspark":
                raise
            from cos_ml.errors import SetupError

            extras = '"cos-ml[cpu]" or "cos-ml[gpu]", or "cos-ml[client]" for Spark Connect alone'
            raise SetupError(f"PySpark is not installed: pip install {extras}.") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
