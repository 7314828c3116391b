"""DeepNetModel: a Keras network as a Transformer (driver side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark import keyword_only
from pyspark.ml import Model
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import spark_internals
from cos_ml.data.columns import Column, expression
from cos_ml.errors import InvalidInputError
from cos_ml.network.archive import Network, custom_modules, find_layer
from cos_ml.network.outputs import is_classifier, losses_by_output, output_kind
from cos_ml.network.signature import input_columns, label_columns
from cos_ml.params import ModelParams
from cos_ml.persistence import NetworkStage
from cos_ml.scoring import evaluate, predict
from cos_ml.spec import TrainSpec
from cos_ml.summary import TrainingSummary

__all__ = ["DeepNetModel"]

COMPILED = ("loss", "metrics", "loss_weights", "weighted_metrics")  # of keras.Model.compile: what evaluate needs
PREDICTIONS = {"prediction": "predictionCol", "probability": "probabilityCol", "rawPrediction": "rawPredictionCol"}


class DeepNetModel(Model, ModelParams, NetworkStage):
    """A Keras network as a Transformer: predictions and layer activations as columns, a row for every row.

    What ``DeepNetEstimator.fit`` returns; or, made from a pretrained network, a Transformer without training.

    Args:
        model: a built ``keras.Model``, or the path of a ``.keras`` file.
        featuresCol, inputCols: a column, or one per input of the network.
        labelCol, labelCols, weightCol: for ``evaluate``.
        featureLayers, outputCols: layers whose activations become Vector columns (flattened to one axis), and the names
            of those columns; without outputCols they are named as the layers.
        predictionCol, probabilityCol, rawPredictionCol: as in Spark ML; "" leaves one out. A softmax or sigmoid
            output, or one trained with a cross-entropy, is a classifier's: the class index as double, probabilities and
            logits or log-probabilities as Vectors. One linear unit is a regressor's: a double. Anything else: a Vector.
            A network's second and further outputs have columns of these names, with "_" and the output's name added.
        handleInvalid: "error", "skip" or "keep" rows with a null, a NaN or the wrong size.
        predictBatchSize: rows per forward pass.
        handleMismatch: "warn", "error" or "ignore", when a loaded model computes something else on this machine.

    Raises:
        InvalidInputError: a Param is wrong, or the network has no layer of a name in featureLayers.
    """

    @keyword_only
    def __init__(
        self,
        *,
        model: Any = None,
        featuresCol: str = "features",
        inputCols: list[str] | None = None,
        labelCol: str = "label",
        labelCols: list[str] | None = None,
        weightCol: str | None = None,
        featureLayers: list[str] | None = None,
        outputCols: list[str] | None = None,
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        handleInvalid: str = "error",
        predictBatchSize: int = 1024,
        handleMismatch: str = "warn",
    ) -> None:
        super().__init__()
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

    def copy(self, extra: Any = None) -> DeepNetModel:
        """A copy with ``extra`` Params; a trained model's network is not among them.

        Spark's validators pass the grid's Params on to the models, est.model too: that is what training began with.
        """
        if self.compiled is not None and extra:
            extra = {param: value for param, value in extra.items() if param.name != "model"}
        return super().copy(extra)

    def evaluate(self, dataset: DataFrame) -> dict[str, float]:
        """The loss and the metrics over all rows, computed on the cluster.

        Rows weigh as they do in training: by ``weightCol`` in the loss and in weighted metrics. Each partition sums up
        the state of the metrics, as sums and counts; only these reach the driver.

        Returns:
            dict[str, float]: "loss", and a value per metric, as ``summary.history`` names them; NaN for no rows.

        Raises:
            InvalidInputError: a column or a row can't be used, or nothing says which loss to compute.
        """
        network = self._network()
        compiled = self.compiled or network.compiled
        if not compiled or not compiled.get("loss"):
            raise InvalidInputError(
                "evaluate() needs a loss, and this network was neither trained by an estimator nor compiled: "
                "compile it before it is given to DeepNetModel."
            )
        spec = TrainSpec(
            inputs=input_columns(network, self.input_columns()),
            labels=label_columns(network, self.getLabelCols(), compiled["loss"]),
            weight=Column(self.getWeightCol(), "w", low=0.0) if self.isSet(self.weightCol) else None,
            compile={"optimizer": "sgd"} | {name: compiled[name] for name in COMPILED if compiled.get(name)},
            modules=tuple(sorted({*network.modules, *custom_modules(compiled)})),
            batch_size=self.getPredictBatchSize(),
            handle_invalid=self.getHandleInvalid(),
        )
        return evaluate.evaluate(dataset, network, spec)

    def _network(self) -> Network:
        if not self.isSet(self.model):
            raise InvalidInputError("Param model is not set: give DeepNetModel a keras.Model.")
        return self.getOrDefault(self.model)

    def _stored_network(self) -> Network | None:
        return self.getOrDefault(self.model) if self.isSet(self.model) else None

    def _heads(self, network: Network) -> tuple[str, ...]:
        losses = losses_by_output((self.compiled or {}).get("loss"), network.outputs)
        return tuple(output_kind(output, loss) for output, loss in zip(network.outputs, losses, strict=True))

    def toKeras(self) -> Any:
        """The network as a ``keras.Model`` of the caller's own."""
        return self.getModel()

    def _transform(self, dataset: DataFrame) -> DataFrame:
        network = self._network()
        kinds = self._heads(network)
        columns = check_outputs(self, dataset.schema, network, kinds)
        inputs = input_columns(network, self.input_columns())
        if not columns:
            return dataset
        spark_internals.check_message_size(dataset.sparkSession, [network.archive])
        scorer = predict.Scorer(
            archive=network.archive,
            digest=network.digest,
            modules=network.modules,
            inputs=inputs,
            layers=tuple(find_layer(network.layers, name) for name in self.getFeatureLayers()),
            heads=kinds,
            wanted=tuple(key for key in columns if isinstance(key, tuple)),
            batch_size=self.getPredictBatchSize(),
            handle_invalid=self.getHandleInvalid(),
        )
        scored, taken = f"{self.uid}_scored", f"{self.uid}_inputs"
        out, given = dataset, [expression(dataset.schema, column) for column in inputs]
        if _has_user_type(dataset.schema):
            # Spark 4.3 runs a pandas UDF right on a scan of Parquet, and fails there where any column is a Vector. What
            # explode makes, always one row of one, lies between, and lets filters and unused columns through.
            row = F.struct(*(value.alias(column.field) for value, column in zip(given, inputs, strict=True)))
            out = dataset.select("*", F.explode(F.array(row)).alias(taken))
            given = [F.col(taken)[column.field] for column in inputs]
        out = out.withColumn(scored, _udf(scorer)(*given))
        if scorer.handle_invalid == "skip":
            out = out.filter(F.col(scored)[scorer.fields[0]].isNotNull())
        for field, type_, name in zip(scorer.fields, _types(scorer), columns.values(), strict=True):
            value = F.col(scored)[field]
            out = out.withColumn(name, value if type_ == T.DoubleType() else array_to_vector(value))
        return out.drop(scored, taken)


def check_layers(network: Network, layers: list[str]) -> None:
    """Raises InvalidInputError for a layer that the network does not have."""
    for name in layers:
        find_layer(network.layers, name)


def check_outputs(
    params: ModelParams, schema: T.StructType, network: Network, kinds: tuple[str, ...]
) -> dict[str | tuple[int, str], str]:
    """The names of the output columns, in order: by the layer's name, or by an output's index and what it is.

    Raises:
        InvalidInputError: outputCols does not fit featureLayers, or a name is taken.
    """
    layers = params.getFeatureLayers()
    names = params.getOutputCols() if params.isSet(params.outputCols) else [name.rsplit("/", 1)[-1] for name in layers]
    if len(names) != len(layers):
        raise InvalidInputError(
            f"Param outputCols: expected a name for each of the featureLayers {layers}, received {names}."
        )
    columns: dict[str | tuple[int, str], str] = dict(zip(layers, names, strict=True))
    for index, (output, kind) in enumerate(zip(network.outputs, kinds, strict=True)):
        for what, param in PREDICTIONS.items():
            name = params.getOrDefault(param)
            if name and (what == "prediction" or is_classifier(kind)):
                columns[index, what] = f"{name}_{output.name}" if index else name
    taken = [name for name in columns.values() if name in schema.fieldNames()]
    twice = sorted({name for name in columns.values() if list(columns.values()).count(name) > 1})
    if taken or twice:
        raise InvalidInputError(
            f"Output column {(taken or twice)[0]!r} "
            f"{'is in the DataFrame already' if taken else 'would be there twice'}. Drop or rename it, or set another "
            'name; "" for predictionCol, probabilityCol or rawPredictionCol leaves that one out.'
        )
    return columns


def _types(scorer: predict.Scorer) -> list[T.DataType]:
    """What the fields of the scored struct are: numbers, or arrays that become Vectors."""
    array = T.ArrayType(T.DoubleType())
    numbers = [kind == "prediction" and scorer.heads[index] != "vector" for index, kind in scorer.wanted]
    return [array] * len(scorer.layers) + [T.DoubleType() if number else array for number in numbers]


def _has_user_type(kind: T.DataType) -> bool:
    """Whether values of a user-defined type, as Vectors are, are in it."""
    if isinstance(kind, T.StructType):
        return any(_has_user_type(field.dataType) for field in kind.fields)
    if isinstance(kind, T.MapType):
        return _has_user_type(kind.keyType) or _has_user_type(kind.valueType)
    return _has_user_type(kind.elementType) if isinstance(kind, T.ArrayType) else isinstance(kind, T.UserDefinedType)


def _udf(scorer: predict.Scorer) -> Any:
    fields = [T.StructField(field, type_) for field, type_ in zip(scorer.fields, _types(scorer), strict=True)]

    @F.pandas_udf(T.StructType(fields))  # type: ignore[attr-defined]
    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        return predict.score(scorer, batches)

    # Spark would push the filter that skips bad rows below this UDF, and run it twice.
    return score.asNondeterministic() if scorer.handle_invalid == "skip" else score
