"""Fits in MLflow: Params, the metrics of each epoch while it trains, facts, logs and the model (driver side)."""

from __future__ import annotations

try:
    import mlflow as _mlflow  # noqa: F401
except ImportError as error:
    from cos_ml.errors import SetupError

    raise SetupError('cos_ml.mlflow needs MLflow 3: pip install "cos-ml[mlflow]"') from error

from cos_ml.mlflow.autologging import autolog
from cos_ml.mlflow.models import log_model, pip_requirements

__all__ = ["autolog", "log_model", "pip_requirements"]
