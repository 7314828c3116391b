"""Models in MLflow: their signature, an input example, and the packages that they need (driver side)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import mlflow
from mlflow.models import ModelSignature, infer_signature
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql import types as T

import cos_ml
from cos_ml.versions import TENSORFLOW, version_of

__all__ = ["log_model", "pip_requirements"]

EXAMPLE = 5  # rows
PREDICTION = "prediction"  # the column that MLflow's Python function returns
LABELS = ("labelCol", "labelCols", "weightCol", "validationIndicatorCol")  # Params with columns that only fits read


def pip_requirements() -> list[str]:
    """The packages that a model needs where it is loaded, with the versions that are installed here.

    MLflow would find them by loading the model in another process, which takes long and does not know cos_ml's name.
    """
    versions = {"mlflow": mlflow.__version__, "cos-ml": cos_ml.__version__}
    tensorflow = next((name for name in TENSORFLOW if version_of(name)), "tensorflow")
    versions |= {name: version_of(name) for name in ("pyspark", tensorflow, "keras", "numpy", "pandas", "pyarrow")}
    return [f"{name}=={version}" for name, version in versions.items() if version]


def log_model(model: Any, artifact_path: str = "model", dataset: DataFrame | None = None, **options: Any) -> Any:
    """Log a DeepNetModel, or a PipelineModel with one, to the active run, as ``mlflow.spark.log_model`` does.

    Args:
        model: the model.
        artifact_path: its name in the run.
        dataset: rows as ``transform`` takes them; signature and input example are made from them, unless ``options``
            have ``signature`` or ``input_example``. Columns that the model does not read are left out.
        **options: further arguments of ``mlflow.spark.log_model``. ``pip_requirements``: those of this environment, if
            they are not given.

    Returns:
        mlflow.models.model.ModelInfo: what MLflow returns.
    """
    if dataset is not None:
        rows = dataset.select(*columns_read(model, dataset))
        options.setdefault("signature", signature_of(model, rows))
        options.setdefault("input_example", example_of(rows))
    if options.get("pip_requirements") is None and options.get("conda_env") is None:
        options["pip_requirements"] = pip_requirements()
    return mlflow.spark.log_model(model, artifact_path, **options)


def columns_read(model: Any, dataset: DataFrame) -> list[str]:
    """The columns of ``dataset`` that ``transform`` reads, as far as Params name them; all, where those do not do."""
    named: set[str] = set()
    for stage in getattr(model, "stages", [model]):
        for param in stage.params:
            if stage.isDefined(param) and param.name.endswith(("Col", "Cols")) and param.name not in LABELS:
                value = stage.getOrDefault(param)
                named |= set(value if isinstance(value, list) else [value])
    found = [name for name in dataset.columns if name in named]
    with suppress(Exception):
        model.transform(dataset.select(*found))  # analyzed, not run
        return found
    return dataset.columns


def signature_of(model: Any, rows: DataFrame) -> ModelSignature | None:
    """The signature of MLflow's Python function, which returns the column "prediction"; None where there is none.

    Its numbers are long or double: those of a request in JSON are, and MLflow narrows none.
    """
    fields = [field for field in rows.schema.fields if not isinstance(field.dataType, VectorUDT)]
    rows = rows.withColumns({one.name: rows[f"`{one.name}`"].cast(_widened(one.dataType)) for one in fields})
    scored = model.transform(rows)
    return infer_signature(rows, scored.select(PREDICTION)) if PREDICTION in scored.columns else None


def example_of(rows: DataFrame) -> Any:
    """The first rows, with Vectors as arrays."""
    arrays = {name: vector_to_array(rows[f"`{name}`"]) for name in _vectors(rows)}
    return rows.withColumns(arrays).limit(EXAMPLE).toPandas()


def _vectors(rows: DataFrame) -> list[str]:
    return [field.name for field in rows.schema.fields if isinstance(field.dataType, VectorUDT)]


def _widened(kind: T.DataType) -> T.DataType:
    """The type of the same numbers, as wide as they are in JSON."""
    if isinstance(kind, T.ArrayType):
        return T.ArrayType(_widened(kind.elementType), kind.containsNull)
    if isinstance(kind, (T.ByteType, T.ShortType, T.IntegerType)):
        return T.LongType()
    return T.DoubleType() if isinstance(kind, T.FloatType) else kind
