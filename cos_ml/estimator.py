"""DeepNetEstimator: a Keras network trained by Horovod on Spark's barrier tasks (driver side)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Estimator
from pyspark.sql import DataFrame, SparkSession

from cos_ml import feeds, heads, networks, progress, ranks
from cos_ml.columns import Column
from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.model import DeepNetModel, check_layers, check_outputs, input_columns
from cos_ml.networks import Network
from cos_ml.params import EstimatorParams
from cos_ml.quiet import import_keras
from cos_ml.spec import TrainSpec
from cos_ml.summary import TrainingSummary

__all__ = ["DeepNetEstimator"]

keras = import_keras()


class DeepNetEstimator(Estimator[DeepNetModel], EstimatorParams):
    """Trains a Keras network on a DataFrame, with one Horovod rank in each of ``numTrainWorkers`` barrier tasks.

    The number of ranks matters only through the global batch, ``batchSize * numTrainWorkers``: every row
    trains once per epoch, and a step's gradient is the mean over its rows on all ranks, weighted by ``weightCol``.

    Args:
        model: a built ``keras.Model``, compiled or not. Its weights are where training starts.
        featuresCol, inputCols: a column, or one per input of the network (by the inputs' names, else in order):
            Vector (dense or sparse), array of numbers, number, or binary (uint8). Flat rows take the input's shape.
        labelCol, labelCols: a column, or one per output: a number, or a Vector or array for vector-valued targets.
        weightCol: row weights (>= 0), in the loss and in a compiled model's weighted metrics.
        validationIndicatorCol: boolean; true rows validate after every epoch, and do not train.
        loss, metrics, lossWeights, optimizer: Keras identifiers, or objects that serialise.
        learningRate: in place of the optimizer's own; never scaled by the number of ranks.
        batchSize: rows per rank and step.
        epochs, shuffle, seed: passes over the rows, in a new order each time, from the seed.
        numTrainWorkers, useGpu: ranks, and whether each takes the GPU that Spark assigned.
        featureLayers, outputCols: layers whose activations become Vector columns, and the names of those columns.
        predictionCol, probabilityCol, rawPredictionCol: as in Spark ML; "" leaves one out.
        handleInvalid: "error", "skip" or "keep" rows with a null, a NaN or the wrong size.
        predictBatchSize: rows per forward pass in ``transform``.
        progress: show a line per epoch on standard error.

    Raises:
        InvalidInputError: a Param is of the wrong type or out of range.

    Examples:
        >>> est = DeepNetEstimator(model=net, loss="sparse_categorical_crossentropy", epochs=3, numTrainWorkers=2)
        >>> est.fit(train).transform(test).select("prediction")  # doctest: +SKIP
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
        validationIndicatorCol: str | None = None,
        loss: Any = None,
        metrics: Any = None,
        lossWeights: Any = None,
        optimizer: Any = None,
        learningRate: float | None = None,
        batchSize: int = 32,
        epochs: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        numTrainWorkers: int = 1,
        useGpu: bool = False,
        featureLayers: list[str] | None = None,
        outputCols: list[str] | None = None,
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        handleInvalid: str = "error",
        predictBatchSize: int = 1024,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self._set(**self._input_kwargs)  # type: ignore[attr-defined]

    def setParams(self, **kwargs: Any) -> DeepNetEstimator:
        """Set any of the Params by keyword, as the constructor does."""
        return self._set(**kwargs)

    def _fit(self, dataset: DataFrame) -> DeepNetModel:
        feeds.check_not_streaming(dataset)
        network = self._network()
        spec = self._spec(dataset, network)
        workers = self.getNumTrainWorkers()
        if workers > 1:
            _check_horovod()
        with _listening(dataset.sparkSession, self.getProgress()) as address:
            job = ranks.Job("cos_ml.training:train", spec, network.archive, address)
            results = ranks.run(feeds.narrow(dataset, spec), job, workers)
        model = DeepNetModel()._resetUid(self.uid)
        self._copyValues(model)
        model._set(model=network.with_archive(results[0]["network"]))
        model.loss = spec.compile["loss"]
        model._summary = _summary(results)
        return model

    def _network(self) -> Network:
        if not self.isSet(self.model):
            raise InvalidInputError("Param model is not set: give DeepNetEstimator a keras.Model.")
        return self.getOrDefault(self.model)

    def _spec(self, dataset: DataFrame, network: Network) -> TrainSpec:
        """What the ranks shall do, with all that can be checked before a job checked."""
        arguments = self._compile_arguments(network)
        labels = self.getLabelCols()
        if len(labels) != len(network.outputs):
            raise InvalidInputError(
                f"The network has {len(network.outputs)} outputs, {[output.name for output in network.outputs]}, and "
                f"there are {len(labels)} label "
                f"columns, {labels}: expected one each. Set labelCols."
            )
        if len(network.outputs) == 1:
            heads.check_loss(network.outputs[0], arguments["loss"])
        spec = TrainSpec(
            inputs=input_columns(network, self.input_columns()),
            labels=tuple(
                _label(name, index, network.outputs[index], arguments["loss"]) for index, name in enumerate(labels)
            ),
            weight=Column(self.getWeightCol(), "w", low=0.0) if self.isSet(self.weightCol) else None,
            validation=Column(self.getValidationIndicatorCol(), "v", dtype="bool")
            if self.isSet(self.validationIndicatorCol)
            else None,
            compile=arguments,
            modules=tuple({*network.modules, *networks.custom_modules(arguments)}),
            learning_rate=self.getLearningRate() if self.isSet(self.learningRate) else None,
            batch_size=self.getBatchSize(),
            epochs=self.getEpochs(),
            shuffle=self.getShuffle(),
            seed=self.getSeed(),
            handle_invalid=self.getHandleInvalid(),
            use_gpu=self.getUseGpu(),
        )  # fmt: skip
        check_layers(network, self.getFeatureLayers())
        check_outputs(self, dataset.schema, heads.head_of(network.outputs[0], spec.compile["loss"]))
        feeds.narrow(dataset, spec)  # raises for columns that are missing or of no use
        return spec

    def _compile_arguments(self, network: Network) -> dict[str, Any]:
        """Arguments of ``keras.Model.compile``: the Params that are set, else the compiled model's own."""
        arguments = {"optimizer": self.getOptimizer()}
        own = network.compiled or {}
        arguments |= {
            name: own[name]
            for name in ("optimizer", "loss", "metrics", "loss_weights", "weighted_metrics")
            if own.get(name)
        }
        chosen = {
            "optimizer": self.optimizer,
            "loss": self.loss,
            "metrics": self.metrics,
            "loss_weights": self.lossWeights,
        }
        arguments |= {name: self.getOrDefault(param) for name, param in chosen.items() if self.isSet(param)}
        if not arguments.get("loss"):
            raise InvalidInputError(
                'Param loss is not set, and the model is not compiled with one: set it, for example to "mse".'
            )
        _check_identifiers(arguments)
        return arguments


def _check_identifiers(arguments: dict[str, Any]) -> None:
    """Raises InvalidInputError for a name that Keras does not know."""
    for name, getter in (
        ("optimizer", keras.optimizers.get),
        ("loss", keras.losses.get),
        ("metrics", keras.metrics.get),
    ):
        value = arguments.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item not in ("accuracy", "acc", "crossentropy", "ce"):
                try:
                    getter(item)
                except ValueError as error:
                    raise InvalidInputError(f"Param {name}: Keras {keras.version()} knows no {item!r}.") from error


def _label(name: str, index: int, output: Any, loss: Any) -> Column:
    classes = heads.label_classes(output, loss) if not isinstance(loss, (list, dict)) or "class_name" in loss else None
    sparse = heads.CLASS_LOSSES.get(heads.loss_name(loss)) == "sparse"
    scalar = (output.units == 1 and len(output.shape) <= 1) or sparse
    shape = () if scalar and len(output.shape) <= 1 else output.shape[:-1] if sparse else output.shape
    return Column(name, f"y{index}", shape, classes=classes)


def _check_horovod() -> None:
    import importlib.util

    if importlib.util.find_spec("horovod") is None:
        raise SetupError(
            "Horovod is not installed, and numTrainWorkers is more than 1. Build it with: cos-ml install-horovod "
            "(here and in the executors' "
            "environment). One rank, numTrainWorkers=1, needs none."
        )


@contextlib.contextmanager
def _listening(spark: SparkSession, wanted: bool) -> Any:
    """Where ranks report progress, for the length of a ``with`` block; None where it is off or nobody can call here."""
    host = spark.conf.get("spark.driver.host", None)
    if not wanted or not host:
        yield None
        return
    try:
        listener = progress.Listener(host, progress.show_epoch)
    except OSError:
        yield None  # progress is never a reason to fail
        return
    with listener:
        yield listener.address


def _summary(results: list[dict[str, bytes]]) -> TrainingSummary:
    told = [json.loads(result["summary"]) for result in results]
    return TrainingSummary(
        history=told[0]["history"],
        rows=told[0]["rows"],
        validationRows=told[0]["validation_rows"],
        steps=told[0]["steps"],
        ranks=[one["place"] for one in told],
        seconds=[one["seconds"] for one in told],
        epochSeconds=told[0]["epoch_seconds"],
        logs=[result["log"].decode(errors="replace") for result in results],
    )
