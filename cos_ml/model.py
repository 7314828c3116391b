"""DeepNetModel: a Keras network as a Transformer, its writer and its reader (driver side)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
from pyspark import keyword_only
from pyspark.ml import Model
from pyspark.ml.functions import array_to_vector
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import artifacts, heads, predicting
from cos_ml.columns import Column, expression, spark_dtype
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.networks import Network, find_layer
from cos_ml.params import ModelParams
from cos_ml.summary import TrainingSummary

__all__ = ["DeepNetModel"]

FORMAT = 1  # of saved models; docs/saved-models.md describes it
PREDICTIONS = {"prediction": "predictionCol", "probability": "probabilityCol", "rawPrediction": "rawPredictionCol"}


class DeepNetModel(Model, ModelParams, MLReadable["DeepNetModel"], MLWritable):
    """A Keras network as a Transformer: predictions and layer activations as columns, a row for every row.

    What ``DeepNetEstimator.fit`` returns; or, made from a pretrained network, a Transformer without training.

    Args:
        model: a built ``keras.Model``.
        featuresCol, inputCols: a column, or one per input of the network.
        featureLayers, outputCols: layers whose activations become Vector columns (flattened to one axis), and the names
            of those columns; without outputCols they are named as the layers.
        predictionCol, probabilityCol, rawPredictionCol: as in Spark ML; "" leaves one out. A softmax or sigmoid
            output, or one trained with a cross-entropy, is a classifier's: the class index as double, probabilities and
            logits or log-probabilities as Vectors. One linear unit is a regressor's: a double. Anything else: a Vector.
        handleInvalid: "error", "skip" or "keep" rows with a null, a NaN or the wrong size.
        predictBatchSize: rows per forward pass.

    Raises:
        InvalidInputError: a Param is wrong, or the network has no layer of a name in featureLayers.

    Attributes:
        loss: what the network was trained with, in Keras's serialised form; None for a pretrained one.
    """

    @keyword_only
    def __init__(
        self,
        *,
        model: Any = None,
        featuresCol: str = "features",
        inputCols: list[str] | None = None,
        featureLayers: list[str] | None = None,
        outputCols: list[str] | None = None,
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        handleInvalid: str = "error",
        predictBatchSize: int = 1024,
    ) -> None:
        super().__init__()
        self.loss: Any = None
        self._summary: TrainingSummary | None = None
        self._set(**self._input_kwargs)  # type: ignore[attr-defined]
        if self.isSet(self.model):
            check_layers(self.getOrDefault(self.model), self.getFeatureLayers())

    def setParams(self, **kwargs: Any) -> DeepNetModel:
        """Set any of the Params by keyword, as the constructor does."""
        return self._set(**kwargs)

    @property
    def summary(self) -> TrainingSummary:
        """The course of the fit that made this model.

        Raises:
            RuntimeError: this model comes from a file or from a pretrained network.
        """
        if self._summary is None:
            raise RuntimeError(
                "No training summary available for this DeepNetModel: it was not made by fit() in this process."
            )
        return self._summary

    @property
    def hasSummary(self) -> bool:
        """Whether there is a summary."""
        return self._summary is not None

    def toKeras(self) -> Any:
        """The network as a ``keras.Model`` of the caller's own."""
        return self.getModel()

    def _transform(self, dataset: DataFrame) -> DataFrame:
        network: Network = self.getOrDefault(self.model)
        head = heads.head_of(network.outputs[0], self.loss)
        columns = check_outputs(self, dataset.schema, head)
        inputs = input_columns(network, self.input_columns())
        if not columns:
            return dataset
        scorer = predicting.Scorer(
            archive=network.archive,
            digest=network.digest,
            modules=network.modules,
            inputs=inputs,
            layers=tuple(find_layer(network.layers, name) for name in self.getFeatureLayers()),
            head=head,
            wanted=tuple(field for field in columns if field in PREDICTIONS),
            batch_size=self.getPredictBatchSize(),
            handle_invalid=self.getHandleInvalid(),
        )
        score = _udf(scorer)(*(expression(dataset.schema, column) for column in inputs))
        skip = scorer.handle_invalid == "skip"
        scored = f"{self.uid}_scored"
        out = dataset.withColumn(scored, score)
        if skip:
            out = out.filter(F.col(scored)[scorer.fields[0]].isNotNull())
        for field, name in columns.items():
            value = F.col(scored)[field]
            out = out.withColumn(name, value if _type(field, head) == T.DoubleType() else array_to_vector(value))
        return out.drop(scored)

    def write(self) -> MLWriter:
        """A writer that saves this model through Spark's own file systems."""
        return DeepNetModelWriter(self)

    @classmethod
    def read(cls) -> MLReader[DeepNetModel]:
        """A reader of saved models."""
        return DeepNetModelReader(cls)


def input_columns(network: Network, names: list[str]) -> tuple[Column, ...]:
    """The columns of the network's inputs, in its order: by the inputs' names where they match, else by order.

    Raises:
        InvalidInputError: there are more or fewer columns than inputs.
    """
    inputs = network.inputs
    if len(names) != len(inputs):
        raise InvalidInputError(
            f"The network has {len(inputs)} inputs, {[tensor.name for tensor in inputs]}, and there are {len(names)} "
            f"input columns, {names}: "
            "expected one each. Set inputCols."
        )
    if set(names) == {tensor.name for tensor in inputs}:
        names = [tensor.name for tensor in inputs]
    return tuple(
        Column(name, f"x{index}", tensor.shape, spark_dtype(tensor.dtype))
        for index, (name, tensor) in enumerate(zip(names, inputs, strict=True))
    )


def check_layers(network: Network, layers: list[str]) -> None:
    """Raises InvalidInputError for a layer that the network does not have."""
    for name in layers:
        find_layer(network.layers, name)


def check_outputs(params: ModelParams, schema: T.StructType, head: str) -> dict[str, str]:
    """The output columns, field -> name.

    Raises:
        InvalidInputError: outputCols does not fit featureLayers, or a name is taken.
    """
    layers = params.getFeatureLayers()
    names = params.getOutputCols() if params.isSet(params.outputCols) else [name.rsplit("/", 1)[-1] for name in layers]
    if len(names) != len(layers):
        raise InvalidInputError(
            f"Param outputCols: expected a name for each of the featureLayers {layers}, received {names}."
        )
    columns = {f"f{index}": name for index, name in enumerate(names)}
    for field, param in PREDICTIONS.items():
        name = params.getOrDefault(param)
        if name and (field == "prediction" or heads.is_classifier(head)):
            columns[field] = name
    taken = [name for name in columns.values() if name in schema.fieldNames()]
    twice = sorted({name for name in columns.values() if list(columns.values()).count(name) > 1})
    if taken or twice:
        raise InvalidInputError(
            f"Output column {(taken or twice)[0]!r} "
            f"{'is in the DataFrame already' if taken else 'would be there twice'}. Drop or rename it, or set another "
            'name; "" for predictionCol, probabilityCol or rawPredictionCol leaves that one out.'
        )
    return columns


def _type(field: str, head: str) -> T.DataType:
    """What a field of the scored struct is: a number, or an array that becomes a Vector."""
    return T.DoubleType() if field == "prediction" and head != "vector" else T.ArrayType(T.DoubleType())


def _udf(scorer: predicting.Scorer) -> Any:
    fields = [T.StructField(field, _type(field, scorer.head)) for field in scorer.fields]

    @F.pandas_udf(T.StructType(fields))  # type: ignore[attr-defined]
    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        return predicting.score(scorer, batches)

    # Spark would push the filter that skips bad rows below this UDF, and run it twice.
    return score.asNondeterministic() if scorer.handle_invalid == "skip" else score


class DeepNetModelWriter(MLWriter):
    """Writes a DeepNetModel: Spark ML's metadata, and the network as Parquet rows of 8 MiB."""

    def __init__(self, instance: DeepNetModel) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        """Raises SavedModelError where something is at ``path`` already, and overwrite was not asked for."""
        instance = self.instance
        network: Network = instance.getOrDefault(instance.model)
        plain = {param.name: value for param, value in instance._paramMap.items() if param.name != "model"}
        extra = {"format": FORMAT, "network": json.loads(network.facts()), "loss": instance.loss}
        try:
            DefaultParamsWriter.saveMetadata(instance, path, self.sparkSession, extra, plain)
        except Exception as error:
            if "already exists" in str(error).lower() or "PATH_ALREADY_EXISTS" in str(error):
                raise SavedModelError(
                    f"There is something at {path} already. To replace it: model.write().overwrite().save({path!r})"
                ) from None
            raise
        # A few pieces at a time: a driver's JVM of ordinary size can't hold a network of several hundred MB.
        for batches in artifacts.grouped(artifacts.record_batches({"network": network.archive})):
            part = self.sparkSession.createDataFrame(pa.Table.from_batches(batches)).coalesce(1)
            part.write.mode("append").parquet(f"{path.rstrip('/')}/data")


class DeepNetModelReader(MLReader["DeepNetModel"]):
    """Reads what DeepNetModelWriter wrote."""

    def __init__(self, cls: type[DeepNetModel]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> DeepNetModel:
        """Raises SavedModelError for a place that holds no DeepNetModel, one of a later format, or a damaged one."""
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        if metadata.get("format") != FORMAT:
            raise SavedModelError(
                f"{path} has format {metadata.get('format')}, and this cos_ml reads format {FORMAT}: load it with "
                "the version that wrote it."
            )
        rows = self.sparkSession.read.parquet(f"{path.rstrip('/')}/data").toLocalIterator()
        archive = artifacts.join((row["name"], row["part"], row["data"]) for row in rows)["network"]
        model = self.cls()._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        network = Network.from_facts(json.dumps(metadata["network"]), archive)
        _check_imported(network.modules)
        model._set(model=network)
        model.loss = metadata["loss"]
        return model


def _check_imported(modules: tuple[str, ...]) -> None:
    """A saved file names no module to import by itself: what it needs, this program has imported."""
    missing = [module for module in modules if module not in sys.modules]
    if missing:
        raise SavedModelError(f"The network has custom layers: import {', '.join(missing)} before it is loaded.")
