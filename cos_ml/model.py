"""DeepNetModel: a Keras network as a Transformer (driver side)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import and_
from os import PathLike
from typing import TYPE_CHECKING, Any

from pyspark import keyword_only
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import broadcasts
from cos_ml.attribution_params import ATTRIBUTIONS, AttributionParams
from cos_ml.data.columns import Column
from cos_ml.data.expressions import expression
from cos_ml.data.frames import check_not_streaming
from cos_ml.data.names import fold, is_case_sensitive, resolve, taken
from cos_ml.data.validity import is_valid, lengths_match
from cos_ml.errors import InvalidInputError
from cos_ml.means import means
from cos_ml.metadata import column_metadata, input_metadata
from cos_ml.network import checks
from cos_ml.network.archive import Network, default_names, find_layer
from cos_ml.network.keras_import import import_keras
from cos_ml.network.losses import with_output_keys
from cos_ml.network.outputs import OutputKind, is_classifier, names_of
from cos_ml.network.registered import custom_modules
from cos_ml.network.signature import input_columns
from cos_ml.params import ModelParams
from cos_ml.persistence import NetworkStage
from cos_ml.prediction import RowPredictor, class_labels, kinds_of
from cos_ml.scoring import evaluate, predict
from cos_ml.scoring.udf_arguments import arrow_udf, with_udf
from cos_ml.spec import TrainSpec
from cos_ml.summary import EvaluationSummary, TrainingSummary

if TYPE_CHECKING:
    from cos_ml.exporting import ExportedModel
    from cos_ml.images import ImageAssembler

__all__ = ["DeepNetModel"]

import_keras()  # quietly, before the program imports it

COMPILED = ("loss", "metrics", "loss_weights", "weighted_metrics")  # arguments of keras.Model.compile for evaluate
# In the order in which Spark's classifiers append them.
PREDICTIONS = {"rawPrediction": "rawPredictionCol", "probability": "probabilityCol", "prediction": "predictionCol"}

PREDICTED_LABEL = (0, "predictedLabel")  # the name of the class that (0, "prediction") is the index of


class DeepNetModel(AttributionParams, NetworkStage, RowPredictor):
    """A Keras network as a Transformer that adds columns of predictions and layer activations to each row.

    ``DeepNetEstimator.fit`` returns one, which has the Params of its training too: ``getEpochs()`` and so on tell what
    a grid chose. Made from a pretrained network, it needs no training.

    Every Param is a keyword; ``explainParams()`` and ``docs/params.md`` describe them all.

    Args:
        model: a built ``keras.Model``, or the path of a ``.keras`` file.
        featuresCol, inputCols: the input column, or one per input of the network.
        labelCol, labelCols, weightCol: columns of labels and row weights for ``evaluate``.
        featureLayers, outputCols: layers whose activations become Vector columns, and the names of those columns.
        predictionCol, probabilityCol, rawPredictionCol: output columns as in Spark ML; "" omits one. An output with
            softmax or sigmoid, or trained with a cross-entropy, is a classifier's: its prediction is the class index as
            double, and probabilities and logits or log-probabilities are Vectors. One linear unit is a regressor's: a
            double. Any other output is a Vector. The columns of the network's second and further outputs have the
            output's name appended after "_".
        attributionsCol: output column of integrated gradients, what each value of the input contributes to the
            prediction, a Vector; of several inputs a column each, with the input's name appended after "_".
        attributionTarget, attributionBaseline, attributionSteps: the class (default: the predicted one), the input that
            rows are compared with (0), and the number of points between the two (50).

    Raises:
        InvalidInputError: a Param is invalid, or the network has no layer of a name in featureLayers.
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
        vectorType: str = "vector",
        predictedLabelCol: str | None = None,
        labels: list[str] | None = None,
        thresholds: list[float] | None = None,
        handleInvalid: str = "error",
        paddingValue: float = 0.0,
        predictBatchSize: int = 1024,
        handleMismatch: str = "warn",
        attributionsCol: str | None = None,
        attributionTarget: int | str | None = None,
        attributionBaseline: float | list[float] | dict[str, float | list[float]] = 0.0,
        attributionSteps: int = 50,
    ) -> None:
        super().__init__()
        self.training_summary: TrainingSummary | None = None
        self._set(**vars(self).pop("_input_kwargs"))
        if self.isSet(self.model):
            check_layers(self.getOrDefault(self.model), self.getFeatureLayers())

    @property
    def summary(self) -> TrainingSummary:
        """The summary of the fit that trained this model.

        Raises:
            RuntimeError: this model was loaded from a file or made from a pretrained network.
        """
        if self.training_summary is None:
            raise RuntimeError(
                "No training summary available for this DeepNetModel: it was not trained in this process."
            )
        return self.training_summary

    @property
    def hasSummary(self) -> bool:
        """Whether this model has a summary."""
        return self.training_summary is not None

    def copy(self, extra: Any = None) -> DeepNetModel:
        """A copy with ``extra`` Params; a trained model keeps its network.

        Spark's validators copy the estimator's grid to the models, and its Param model is the untrained network.
        """
        if self.compiled is not None and isinstance(extra, dict):
            extra = {param: value for param, value in extra.items() if param != self.model}
        return super().copy(extra)

    def evaluate(self, dataset: DataFrame) -> EvaluationSummary:
        """Compute the loss and the metrics over all rows, on the cluster.

        Rows are weighted as in training: by ``weightCol`` in the loss and in weighted metrics. Each partition computes
        the state of the metrics (sums and counts), and only these states are sent to the driver.

        Returns:
            EvaluationSummary: a dict of "loss" and the metrics, by their names in ``summary.history``; NaN without
            rows. Its attributes are those of Spark's own summaries: ``predictions``, ``accuracy`` and so on.

        Raises:
            InvalidInputError: a column or a row is invalid, or the network has no loss.
        """
        check_not_streaming(dataset, "evaluate")
        network = self._network()
        checks.check_call(network, "evaluate", "test_step")
        for output, kind in zip(network.outputs[:1], kinds_of(self, network), strict=False):
            class_labels(self, output, kind)
        compiled = self.compiled or network.compiled
        if not compiled or not (checks.loss_of(network, compiled) or checks.needs_no_loss(network)):
            raise InvalidInputError(
                "evaluate() needs a loss, but this network was neither trained by an estimator nor compiled: compile "
                "the keras.Model before passing it to DeepNetModel."
            )
        arguments = self.compiled or checks.compiled_by_class(network, []) or compiled
        if not arguments.keys() & {"compile_config", "self_compiled"}:
            given = {name: compiled[name] for name in COMPILED if compiled.get(name)}
            given = {name: with_output_keys(value, network.outputs) for name, value in given.items()}
            arguments = {"optimizer": "sgd"} | given
        spec = TrainSpec(
            inputs=input_columns(network, self.input_columns(), self.getPaddingValue()),
            labels=self.label_columns(dataset, network, checks.loss_of(network, arguments)),
            weight=Column(self.getWeightCol(), "w", low=0.0) if self.isSet(self.weightCol) else None,
            compile=arguments,
            modules=tuple(sorted({*network.modules, *custom_modules(compiled)})),
            batch_size=self.getPredictBatchSize(),
            handle_invalid=self.getHandleInvalid(),
            seed=self.getSeed(),
        )
        scored = self._with_vectors()
        scored.clear(scored.attributionsCol)  # which no metric needs
        return EvaluationSummary(evaluate.evaluate(dataset, network, spec), scored, dataset)

    def mean(self, dataset: DataFrame) -> DataFrame:
        """Compute the mean of each output column over all rows, on the cluster.

        Output columns are those that ``transform`` adds, those of ``featureLayers`` included, without names of classes.
        ``weightCol`` weights the rows, if it is set.

        Returns:
            DataFrame: one row with a Vector for each column of Vectors, and a double for each column of numbers; NaN
            without rows, or null in place of a Vector whose size only rows can tell.

        Raises:
            InvalidInputError: a column or a row is invalid, or all output columns are omitted.
        """
        check_not_streaming(dataset, "mean")
        network = self._network()
        columns = [*self._output_columns(dataset, network, kinds_of(self, network)).values()]
        if not columns:
            raise InvalidInputError("mean() needs an output column, but all are omitted: set predictionCol.")
        skip = self.getHandleInvalid() == "skip"
        return means(self._with_vectors().transform(dataset), columns, self.value_or_none(self.weightCol), skip)

    def _with_vectors(self) -> DeepNetModel:
        """A copy that returns Vectors, as evaluators and summaries need them."""
        return self.copy({self.vectorType: "vector"})

    def registerFunction(self, spark: SparkSession, name: str) -> Any:
        """Make the model a SQL function of a session: ``SELECT score(features) FROM t``, from SQL, Scala or Java.

        The function takes one argument for each of ``inputCols``, in their order, or one for ``featuresCol``. It
        returns a struct with a field for each output column of ``transform``, with arrays in place of Vectors. With
        ``handleInvalid="skip"``, the fields of an invalid row are null.

        Args:
            spark: the session, which may be one of Spark Connect.
            name: the function's name, of letters, digits and "_". A function that has it already is replaced.

        Returns:
            The function, which also takes columns of DataFrames.

        Raises:
            InvalidInputError: the name has other characters, or the model has no output columns.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise InvalidInputError(f"registerFunction: expected a name of letters, digits and '_', received {name!r}.")
        network = self._network()
        checks.check_call(network, "transform")
        kinds = kinds_of(self, network)
        columns = self._output_columns(spark.range(1).select(), network, kinds)
        if not columns:
            raise InvalidInputError("registerFunction needs an output column, but all are omitted: set predictionCol.")
        labels = class_labels(self, network.outputs[0], kinds[0])
        scorer = self._scorer(spark, network, kinds, list(columns), self.getHandleInvalid())
        of_keys = self._fields(scorer)
        outputs = {output: of_keys[_computed(key)] for key, output in columns.items()}
        named = tuple(output for key, output in columns.items() if key == PREDICTED_LABEL)
        fields = [T.StructField(one, T.StringType() if one in named else kind) for one, (_, kind) in outputs.items()]
        names = {output: field for output, (field, _) in outputs.items()}
        scored = partial(
            predict.score_arguments, scorer, tuple(self.input_columns()), names, named, tuple(labels or ())
        )
        return spark.udf.register(name, arrow_udf(spark, T.StructType(fields), scored))

    def export(
        self,
        path: str | PathLike[str],
        format: str = "saved_model",
        *,
        images: Sequence[ImageAssembler] | ImageAssembler = (),
        pixels: bool = False,
        rows: DataFrame | None = None,
        overwrite: bool = False,
    ) -> ExportedModel:
        """Write the model in a format that is served without Spark; see ``cos_ml.export``, which takes pipelines too.

        Args:
            path: a folder (SavedModel) or a file to create, anywhere that Spark can write.
            format: "saved_model", "onnx" or "litert".
            images: what decodes the files of input columns: one ImageAssembler, or several.
            pixels: whether the file takes their pixels instead; only a SavedModel decodes image files.
            rows: rows to check the exported file with; without them, rows are generated.
            overwrite: whether to replace what a former export has written there.

        Raises:
            ExportError: the format can't hold a layer or a column, or computes something else than ``transform``.
            SavedModelError: something already exists at ``path``.
            SetupError: the format's packages are not installed.
        """
        from pyspark.ml import PipelineModel

        from cos_ml.exporting import export

        stages = list(images) if isinstance(images, Sequence) else [images]
        return export(PipelineModel([*stages, self]), path, format, pixels=pixels, rows=rows, overwrite=overwrite)

    def _network(self) -> Network:
        if not self.isSet(self.model):
            raise InvalidInputError("Param model is not set: pass a keras.Model to DeepNetModel.")
        return self.getOrDefault(self.model)

    def toKeras(self) -> Any:
        """The network as a new ``keras.Model``."""
        return self.getModel()

    def _repr_html_(self) -> str:
        from cos_ml.display import model_html

        return model_html(self)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        network = self._network()
        checks.check_call(network, "transform")
        kinds = kinds_of(self, network)
        columns = self._output_columns(dataset, network, kinds)
        labels = class_labels(self, network.outputs[0], kinds[0])
        if not columns:
            return dataset
        handling = "keep" if self.getHandleInvalid() == "keep" else "error"  # no bad row comes with "skip"
        scorer = self._scorer(dataset.sparkSession, network, kinds, list(columns), handling)
        inputs = scorer.inputs
        values = {column.field: expression(dataset, column) for column in inputs}
        if scorer.handle_invalid == "keep":
            values = {column.field: _with_nulls(values[column.field], column, dataset) for column in inputs}
        scored = f"{self.uid}_scored"
        is_good = partial(_is_good, inputs) if self.getHandleInvalid() == "skip" else None
        fields = self._fields(scorer)
        schema = T.StructType([T.StructField(*field) for field in fields.values()])
        udf = arrow_udf(dataset.sparkSession, schema, partial(predict.score, scorer))
        out = with_udf(dataset, values, scored, udf, is_good)
        metadata = column_metadata(network, kinds, columns, labels)
        metadata |= {key: input_metadata(dataset, inputs[key[0]]) or metadata[key] for key in columns if _explains(key)}
        added = {}
        for key, name in columns.items():
            field, type_ = fields[_computed(key)]
            value = F.col(scored)[field]
            if key == PREDICTED_LABEL:
                value = F.when(~F.isnan(value), F.get(F.lit(labels), value.try_cast("int")))
            value = value if type_ == T.DoubleType() or scorer.single else array_to_vector(value)
            added[name] = value.alias(name, metadata=metadata[key])
        return out.withColumns(added).drop(scored)  # at once: Spark analyzes the plan for each call

    def _scorer(
        self, spark: SparkSession, network: Network, kinds: tuple[OutputKind, ...], keys: list[Any], handling: str
    ) -> predict.Scorer:
        """What scoring tasks need to compute the output columns of these keys, with this handling of invalid rows."""
        inputs = input_columns(network, self.input_columns(), self.getPaddingValue())
        labels = class_labels(self, network.outputs[0], kinds[0])
        return predict.Scorer(
            archive=broadcasts.shared(spark, network),
            digest=network.digest,
            modules=network.modules,
            inputs=inputs,
            layers=tuple(find_layer(network.layers, name) for name in self.getFeatureLayers()),
            kinds=kinds,
            wanted=tuple(dict.fromkeys(_computed(key) for key in keys if isinstance(key, tuple))),
            batch_size=self.getPredictBatchSize(),
            handle_invalid=handling,
            thresholds=tuple(self.getThresholds() if self.isSet(self.thresholds) else ()),
            seed=self.getSeed(),
            single=self.getVectorType() == "array",
            attribution=self.attribution(network, inputs, kinds[0], labels),
        )

    def _output_columns(self, dataset: DataFrame, network: Network, kinds: tuple[OutputKind, ...]) -> dict[Any, str]:
        """The names of the output columns by key: those of ``check_outputs``, then attributions."""
        columns = input_columns(network, self.input_columns(), self.getPaddingValue())
        return check_outputs(self, dataset, network, kinds, self.attribution_columns(network, columns))

    def _fields(self, scorer: predict.Scorer) -> dict[Any, tuple[str, T.DataType]]:
        """By key of an output that the network computes: its field in the scored struct, and the field's type.

        Types are doubles, or arrays that become Vectors.
        """
        array = T.ArrayType(T.FloatType() if scorer.single else T.DoubleType())
        numbers = [key == "prediction" and scorer.kinds[index] != "vector" for index, key in scorer.wanted]
        types = [array] * len(scorer.layers) + [T.DoubleType() if number else array for number in numbers]
        keys = [*self.getFeatureLayers(), *scorer.wanted]
        return dict(zip(keys, zip(scorer.fields, types, strict=True), strict=True))


def _computed(key: Any) -> Any:
    """The key of the column that a network computes for this output column."""
    return (0, "prediction") if key == PREDICTED_LABEL else key


def _explains(key: Any) -> bool:
    """Whether this is the key of a column of attributions."""
    return isinstance(key, tuple) and key[1] == ATTRIBUTIONS


def check_layers(network: Network, layers: list[str]) -> None:
    """Raises InvalidInputError if the network lacks one of these layers."""
    for name in layers:
        find_layer(network.layers, name)


def check_outputs(
    params: ModelParams, dataset: DataFrame, network: Network, kinds: tuple[str, ...],
    more: Mapping[Any, str] | None = None,
) -> dict[str | tuple[int, str], str]:  # fmt: skip
    """The names of the output columns, in order, by a layer's name or by an output's index and key in PREDICTIONS.

    ``more`` are further ones, by key.

    Raises:
        InvalidInputError: outputCols does not match featureLayers, or two columns would have the same name.
    """
    layers = params.getFeatureLayers()
    names = params.getOutputCols() if params.isSet(params.outputCols) else default_names(network.layers, layers)
    if len(names) != len(layers):
        raise InvalidInputError(
            f"Param outputCols: expected one name for each of the featureLayers {layers}, received {names}."
        )
    columns: dict[str | tuple[int, str], str] = dict(zip(layers, names, strict=True))
    for index, (output, kind) in enumerate(zip(names_of(network.outputs), kinds, strict=True)):
        for key, param in PREDICTIONS.items():
            name = params.getOrDefault(param)
            if name and (key == "prediction" or is_classifier(kind)):
                columns[index, key] = f"{name}_{output}" if index else name
    if name := params.value_or_none(params.predictedLabelCol):
        columns[PREDICTED_LABEL] = name
    columns |= more or {}
    _check_names(dataset, list(columns.values()))
    return columns


def _check_names(dataset: DataFrame, names: list[str]) -> None:
    """Raises InvalidInputError for new columns that Spark could not tell from others, or from each other."""
    keys = [fold(name) for name in names]
    if len(set(keys)) < len(keys) and is_case_sensitive(dataset):
        keys = names
    existing = [name for name in names if taken(dataset, name)]
    repeated = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
    if existing or repeated:
        same = "" if len(set(repeated)) < 2 else f", because upper and lower case are the same to Spark: {repeated}"
        reason = "is in the DataFrame already" if existing else f"would be added twice{same}"
        raise InvalidInputError(
            f"Output column {(existing or repeated)[0]!r} {reason}. Drop or rename it, or set another name (outputCols "
            'for those of featureLayers); "" omits predictionCol, probabilityCol or rawPredictionCol.'
        )


def _is_good(inputs: Sequence[Column], values: dict[str, SparkColumn], types: dict[str, T.DataType]) -> SparkColumn:
    """Whether all inputs of a row can be used."""
    valid = [is_valid(values[one.field], types[one.field], one) for one in inputs]
    return reduce(and_, valid + [lengths_match(values, types, one) for one in inputs if one.paired])


def _with_nulls(value: SparkColumn, column: Column, dataset: DataFrame) -> SparkColumn:
    """A column whose nulls cost no digits: pandas makes doubles of integers, but not of arrays, where some are null."""
    wide = column.dtype in ("int64", "uint64") and not column.parts  # which make an array
    wide = wide and isinstance(resolve(dataset, column.name).data_type, T.NumericType)
    return F.when(value.isNotNull(), F.array(value)) if wide else value
