"""DeepNetEstimator: a Keras network trained by Horovod on Spark's barrier tasks (driver side)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Estimator
from pyspark.sql import DataFrame, SparkSession

from cos_ml.data import frames, parquet
from cos_ml.data.columns import Column
from cos_ml.errors import CosMLError, InvalidInputError
from cos_ml.job import explain, horovod_env
from cos_ml.job.fit import Candidate, FitOptions, Trained, check_horovod, fit
from cos_ml.model import COMPILED, DeepNetModel, check_layers, check_outputs
from cos_ml.network.archive import Network, custom_modules, find_layer
from cos_ml.network.keras_import import import_keras
from cos_ml.network.outputs import check_loss, losses_by_output, output_kind
from cos_ml.network.signature import input_columns, label_columns
from cos_ml.params import EstimatorParams
from cos_ml.persistence import NetworkStage
from cos_ml.spec import ANY_RUN, CheckpointConfig, TrainSpec

__all__ = ["DeepNetEstimator"]

keras = import_keras()

STEPS = 16  # in one call of TensorFlow, where stepsPerExecution does not say
FIT = (  # beside network, columns and what Keras compiles: the Params that decide what a fit computes
    "learningRate",
    "batchSize",
    "epochs",
    "shuffle",
    "seed",
    "handleInvalid",
    "callbacks",
    "patience",
    "restoreBestWeights",
    "numTrainWorkers",
    "feed",
    "checkpointSteps",
    "gradientCompression",
    "gradientAccumulationSteps",
    "dtypePolicy",
    "stepsPerExecution",
)


class DeepNetEstimator(Estimator[DeepNetModel], EstimatorParams, NetworkStage):
    """Trains a Keras network on a DataFrame, with one Horovod rank in each of ``numTrainWorkers`` barrier tasks.

    The number of ranks matters only through the global batch, ``batchSize * numTrainWorkers``: every row
    trains once per epoch, and a step's gradient is the mean over its rows on all ranks, weighted by ``weightCol``.

    Args:
        model: a built ``keras.Model``, compiled or not, the path of a ``.keras`` file, or a DeepNetModel. Its weights
            are where training starts.
        featuresCol, inputCols: a column, or one per input of the network (by the inputs' names, else in order):
            Vector (dense or sparse), array of numbers, number, or binary (uint8). Flat rows take the input's shape.
        labelCol, labelCols: a column, or one per output: a number, or a Vector or array for vector-valued targets.
        weightCol: row weights (>= 0), in the loss and in a compiled model's weighted metrics.
        validationIndicatorCol: boolean; true rows validate after every epoch, and do not train.
        loss, metrics, lossWeights, optimizer: Keras identifiers, or objects that serialise.
        learningRate: in place of the optimizer's own; never scaled by the number of ranks.
        batchSize: rows per rank and step.
        epochs, shuffle, seed: passes over the rows, in a new order each time, from the seed.
        patience, restoreBestWeights: stop after so many epochs without a better validation loss (or loss); end with the
            weights of the best epoch.
        callbacks: Keras callbacks, each made with ``cos_ml.callback``.
        frozenLayers: layers that this training leaves as they are.
        feed, cacheDir, keepCache: "arrow" brings rows to the ranks' local disks; "petastorm" writes them as Parquet
            under cacheDir, which ranks read again in every epoch, and removes that afterwards unless keepCache.
        checkpointDir, checkpointInterval, checkpointSteps, resume: keep the state of the training every so many epochs,
            and steps within them, at a URL that all executors reach. The same fit, started again, goes on from there.
        handleNonFiniteLoss: "error" or "keep" a loss that is NaN or infinite.
        stallTimeout: seconds after which a rank that does not get on is given up.
        numTrainWorkers, useGpu: ranks, and whether each takes the GPU that Spark assigned.
        gradientCompression, gradientAccumulationSteps, dtypePolicy, jitCompile, stepsPerExecution: for speed, at the
            price of digits, memory or time to compile.
        horovodOptions: Horovod's and NCCL's settings for every rank, the network interface too.
        featureLayers, outputCols: layers whose activations become Vector columns, and the names of those columns.
        predictionCol, probabilityCol, rawPredictionCol: as in Spark ML; "" leaves one out.
        handleInvalid: "error", "skip" or "keep" rows with a null, a NaN or the wrong size.
        predictBatchSize: rows per forward pass in ``transform``.
        handleMismatch: of the model, when it is saved and loaded again.
        progress: show on standard error how the fit goes.

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
        patience: int | None = None,
        restoreBestWeights: bool = False,
        callbacks: Any = None,
        frozenLayers: list[str] | None = None,
        feed: str = "arrow",
        cacheDir: str | None = None,
        keepCache: bool = False,
        checkpointDir: str | None = None,
        checkpointInterval: int = 1,
        checkpointSteps: int | None = None,
        resume: str = "auto",
        handleNonFiniteLoss: str = "error",
        stallTimeout: float = 1800.0,
        numTrainWorkers: int = 1,
        useGpu: bool = False,
        gradientCompression: str = "none",
        gradientAccumulationSteps: int = 1,
        dtypePolicy: str | None = None,
        jitCompile: bool = False,
        stepsPerExecution: int | None = None,
        horovodOptions: dict[str, Any] | None = None,
        featureLayers: list[str] | None = None,
        outputCols: list[str] | None = None,
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        handleInvalid: str = "error",
        predictBatchSize: int = 1024,
        handleMismatch: str = "warn",
        progress: bool = True,
    ) -> None:
        super().__init__()
        self._set(**self._input_kwargs)  # type: ignore[attr-defined]

    def setParams(self, **kwargs: Any) -> DeepNetEstimator:
        """Set any of the Params by keyword, as the constructor does."""
        return self._set(**kwargs)

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[dict[Any, Any]]
    ) -> Iterator[tuple[int, DeepNetModel]]:
        """Fit a whole grid of Params in one barrier job: ranks start once, and read the data once.

        Candidates train one after the other. Those that read other columns, or need another number of ranks, have a
        job of their own.

        Returns:
            Iterator[tuple[int, DeepNetModel]]: the index of a map and the model of it; safe to share between threads.
        """
        return _Grid(dataset, [self.copy(extra) for extra in paramMaps], [_described(extra) for extra in paramMaps])

    def explain(self, dataset: DataFrame) -> str:
        """Whether a fit to ``dataset`` would work here, and what it would take, as lines to print.

        All that a fit checks before its ranks train: columns and the first rows against the network, GPUs, slots,
        versions on the driver and the executors, disk and memory. It counts the rows, and starts a task for each rank;
        nothing is trained.

        Returns:
            str: a line for each check, "ok" or "PROBLEM" with the remedy.
        """
        try:
            candidate = _candidate(self, dataset, "")
            if self.getNumTrainWorkers() > 1:
                check_horovod()
        except CosMLError as error:
            return f"{'PROBLEM':<19}{error}\nThis is to mend before a fit."
        return explain.explain(
            dataset, candidate.candidate.spec, candidate.candidate.network, self.getNumTrainWorkers()
        )

    def fitParquet(self, url: str, params: dict[Any, Any] | None = None) -> DeepNetModel:
        """Fit to a Parquet dataset without any pass of Spark's over its rows: ranks read it through petastorm.

        Row group i is read by rank i modulo numTrainWorkers: a dataset needs as many row groups as there are ranks,
        for all of them to have work.

        Args:
            url: of a folder of Parquet files or of one file, which Spark, fsspec and all ranks can open. Its columns
                are numbers, flat arrays of numbers, strings or bytes, under the names that the Params have.
            params: in place of this estimator's own, as in ``fit``.

        Raises:
            InvalidInputError: a column is missing or of no use, a row can't be used, or ``handleInvalid`` is "skip".
            SetupError: petastorm can't be imported.
        """
        estimator = self.copy(params) if params else self
        if estimator.getHandleInvalid() == "skip":
            raise InvalidInputError(
                'Param handleInvalid: fitParquet knows from the files how many rows there are, and "skip" would change '
                'that: expected "error" or "keep". Give the DataFrame to fit() instead.'
            )
        dataset = SparkSession.active().read.parquet(url)
        candidate = _candidate(estimator, dataset, "")
        parquet.check_petastorm()
        parquet.check_readable(dataset.schema, candidate.candidate.spec)
        return _train(dataset, [candidate], url)[0]

    def _fit(self, dataset: DataFrame) -> DeepNetModel:
        return _train(dataset, [_candidate(self, dataset, "")])[0]

    def _network(self) -> Network:
        if not self.isSet(self.model):
            raise InvalidInputError("Param model is not set: give DeepNetEstimator a keras.Model.")
        return self.getOrDefault(self.model)._network()

    def _stored_network(self) -> Network | None:
        return self._network() if self.isSet(self.model) else None

    def _spec(self, dataset: DataFrame, network: Network) -> TrainSpec:
        """What the ranks shall do, with all that can be checked before a job checked."""
        arguments = self._compile_arguments(network)
        if self.isSet(self.checkpointSteps) and not self.getShuffle() and self.getFeed() == "arrow":
            raise InvalidInputError(
                "Param checkpointSteps: with shuffle=False rows train in the order in which they come, which is "
                "another one when Spark reads a shuffle again, so the rest of an epoch can't be gone on with. Leave "
                "it out (checkpointInterval counts epochs), or set shuffle=True."
            )
        losses = losses_by_output(arguments["loss"], network.outputs)
        labels = label_columns(network, self.getLabelCols(), arguments["loss"])
        for output, loss in zip(network.outputs, losses, strict=True):
            check_loss(output, loss)
        plain = self.getCallbacks()
        modules = {*network.modules, *custom_modules(arguments), *custom_modules(plain)}
        spec = TrainSpec(
            inputs=input_columns(network, self.input_columns()),
            labels=labels,
            weight=Column(self.getWeightCol(), "w", low=0.0) if self.isSet(self.weightCol) else None,
            validation=Column(self.getValidationIndicatorCol(), "v", dtype="bool")
            if self.isSet(self.validationIndicatorCol)
            else None,
            compile=arguments,
            modules=tuple(sorted(modules)),
            learning_rate=self.getLearningRate() if self.isSet(self.learningRate) else None,
            batch_size=self.getBatchSize(),
            epochs=self.getEpochs(),
            shuffle=self.getShuffle(),
            seed=self.getSeed(),
            handle_invalid=self.getHandleInvalid(),
            use_gpu=self.getUseGpu(),
            frozen=tuple(find_layer(network.layers, name, "frozenLayers") for name in self.getFrozenLayers()),
            callbacks=tuple(plain),
            patience=self.getPatience() if self.isSet(self.patience) else None,
            restore_best=self.getRestoreBestWeights(),
            stop_at_non_finite=self.getHandleNonFiniteLoss() == "error",
            stall_timeout=self.getStallTimeout(),
            compression=self.getGradientCompression(),
            accumulation=self.getGradientAccumulationSteps(),
            dtype_policy=self.getDtypePolicy() if self.isSet(self.dtypePolicy) else None,
            jit_compile=self.getJitCompile(),
            steps_per_execution=self.getStepsPerExecution() if self.isSet(self.stepsPerExecution) else STEPS,
            variables=horovod_env.variables(self.getHorovodOptions()),
        )  # fmt: skip
        check_layers(network, self.getFeatureLayers())
        kinds = tuple(output_kind(output, loss) for output, loss in zip(network.outputs, losses, strict=True))
        check_outputs(self, dataset.schema, network, kinds)
        frames.select_columns(dataset, spec)  # raises for columns that are missing or of no use
        return spec

    def _compile_arguments(self, network: Network) -> dict[str, Any]:
        """Arguments of ``keras.Model.compile``: the Params that are set, else the compiled model's own."""
        arguments = {"optimizer": self.getOptimizer()}
        own = network.compiled or {}
        arguments |= {name: own[name] for name in ("optimizer", *COMPILED) if own.get(name)}
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


@dataclass(frozen=True)
class _Candidate:
    """One training: the estimator with its Params, and what the fit needs of it."""

    estimator: DeepNetEstimator
    candidate: Candidate

    @property
    def options(self) -> FitOptions:
        """How its rows reach its ranks."""
        estimator = self.estimator
        return FitOptions(
            ranks=estimator.getNumTrainWorkers(),
            feed=estimator.getFeed(),
            cache_dir=estimator.getCacheDir() if estimator.isSet(estimator.cacheDir) else None,
            keep_cache=estimator.getKeepCache(),
            progress=estimator.getProgress(),
        )


def _candidate(estimator: DeepNetEstimator, dataset: DataFrame, name: str) -> _Candidate:
    """A candidate, after all checks that need no job."""
    frames.check_not_streaming(dataset)
    try:
        network = estimator._network()
        spec = replace(estimator._spec(dataset, network), name=name)
        return _Candidate(
            estimator, Candidate(replace(spec, checkpoint=_checkpoint(estimator, spec, network)), network)
        )
    except InvalidInputError as error:
        if not name:
            raise
        raise InvalidInputError(f"In {name}: {error}") from error


def _train(dataset: DataFrame, candidates: Sequence[_Candidate], url: str | None = None) -> list[DeepNetModel]:
    """Train candidates of one layout and number of ranks, in one barrier job; on what is at ``url``, if given."""
    trained = fit(dataset, [one.candidate for one in candidates], candidates[0].options, url)
    return [_model(one, result) for one, result in zip(candidates, trained, strict=True)]


def _checkpoint(estimator: DeepNetEstimator, spec: TrainSpec, network: Network) -> CheckpointConfig | None:
    """Where the training keeps its checkpoints, and the Params that identify it."""
    if not estimator.isSet(estimator.checkpointDir):
        return None
    identity = {
        "model": network.architecture,
        **spec.compile,
        "optimizer": _nameless(spec.compile["optimizer"]),
        "frozenLayers": [network.layers.index(name) for name in spec.frozen],
        **{
            param.name: estimator.getOrDefault(param)
            for param in map(estimator.getParam, FIT)
            if estimator.isDefined(param)
        },
    }
    return CheckpointConfig(
        estimator.getCheckpointDir().rstrip("/"),
        epochs=estimator.getCheckpointInterval(),
        steps=estimator.getCheckpointSteps() if estimator.isSet(estimator.checkpointSteps) else None,
        fit=identity,
        run=ANY_RUN if estimator.getResume() == "auto" else uuid.uuid4().hex[:12],
    )


def _nameless(optimizer: Any) -> Any:
    """A serialised optimizer without its name: Keras numbers them, and a process's second SGD is "sgd_1"."""
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("config"), dict):
        return optimizer
    return optimizer | {"config": {name: value for name, value in optimizer["config"].items() if name != "name"}}


def _model(candidate: _Candidate, trained: Trained) -> DeepNetModel:
    model = DeepNetModel()._resetUid(candidate.estimator.uid)
    candidate.estimator._copyValues(model)
    model._set(model=candidate.candidate.network.with_archive(trained.archive))
    compiled = candidate.candidate.spec.compile
    model.compiled = {name: value for name, value in compiled.items() if name != "optimizer"}
    model._summary = trained.summary
    return model


class _Grid:
    """What ``fitMultiple`` returns: trains the group of a candidate when it is asked for, and hands out the models."""

    def __init__(self, dataset: DataFrame, estimators: list[DeepNetEstimator], names: list[str]) -> None:
        self.dataset, self.lock, self.next, self.count = dataset, threading.Lock(), 0, len(estimators)
        self.models: dict[int, DeepNetModel] = {}
        self.failed: dict[int, Exception] = {}  # whoever shares this with other threads may go on asking
        self.groups: dict[Any, list[int]] = {}
        self.candidates = []
        for index, (estimator, name) in enumerate(zip(estimators, names, strict=True)):
            candidate = _candidate(estimator, dataset, f"candidate {index + 1} of {len(names)} ({name})")
            self.candidates.append(candidate)
            key = (candidate.candidate.spec.layout, replace(candidate.options, progress=False))
            self.groups.setdefault(key, []).append(index)

    def __iter__(self) -> _Grid:
        return self

    def __next__(self) -> tuple[int, DeepNetModel]:
        with self.lock:
            index = self.next
            if index >= self.count:
                raise StopIteration
            self.next += 1
            if index in self.failed:
                raise self.failed[index]
            if index not in self.models:
                group = next(group for group in self.groups.values() if index in group)
                try:
                    models = _train(self.dataset, [self.candidates[one] for one in group])
                except Exception as error:
                    self.failed |= dict.fromkeys(group, error)
                    raise
                self.models |= zip(group, models, strict=True)
            return index, self.models.pop(index)


def _described(extra: dict[Any, Any]) -> str:
    """The Params of a candidate, as a person reads them."""
    return ", ".join(f"{param.name}={value!r}" for param, value in extra.items()) or "no Params of its own"
