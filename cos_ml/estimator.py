"""DeepNetEstimator: a Keras network trained by Horovod on Spark's barrier tasks (driver side)."""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Predictor
from pyspark.sql import DataFrame, SparkSession

from cos_ml import listeners
from cos_ml.callbacks import with_qualified_path
from cos_ml.cancellation import cancellable
from cos_ml.data import frames
from cos_ml.data.columns import Column
from cos_ml.data.names import resolve
from cos_ml.data.parquet_plan import stored_frame
from cos_ml.errors import CosMLError, InvalidInputError
from cos_ml.estimator_params import EstimatorParams
from cos_ml.initial_weights import digest, with_initial_weights
from cos_ml.job import horovod_env, preflight
from cos_ml.job.fit import Candidate, FitOptions, Trained, cache_folder, check_horovod, fit
from cos_ml.job.halving import check_candidates
from cos_ml.job.progress import Display
from cos_ml.model import COMPILED, DeepNetModel, check_layers, check_outputs
from cos_ml.network import checks
from cos_ml.network.archive import Network, find_layer
from cos_ml.network.class_weights import with_class_weights
from cos_ml.network.keras_import import import_keras
from cos_ml.network.losses import losses_by_output, with_output_keys
from cos_ml.network.outputs import check_loss, output_kinds
from cos_ml.network.rates import checked_rates
from cos_ml.network.registered import custom_modules
from cos_ml.network.signature import input_columns
from cos_ml.paths import qualified
from cos_ml.persistence import NetworkStage
from cos_ml.prediction import class_labels
from cos_ml.spec import ANY_RUN, CheckpointConfig, TrainSpec

__all__ = ["DeepNetEstimator"]

keras = import_keras()

ABBREVIATIONS = ("accuracy", "acc", "crossentropy", "ce")  # metrics that Keras resolves once it knows the outputs


class DeepNetEstimator(EstimatorParams, NetworkStage, Predictor[DeepNetModel]):
    """Trains a Keras network on a DataFrame, with one Horovod rank in each of ``numTrainWorkers`` barrier tasks.

    Every row trains once per epoch, and the gradient of a step is the mean over its rows on all ranks, weighted by
    ``weightCol``. So the number of ranks matters only through the global batch, ``batchSize * numTrainWorkers``.

    Every Param is a keyword; ``explainParams()`` and ``docs/params.md`` describe them all.

    Args:
        model: a built ``keras.Model``, compiled or not, the path of a ``.keras`` file, or a DeepNetModel.
        initialWeights: another network, or a file of weights, for layers of the same names to start from.
        featuresCol, inputCols: a column, or one per input of the network: Vector (dense or sparse), array of numbers,
            number, binary (uint8) or string. Flat rows take the shape of the input.
        labelCol, labelCols: a column, or one per output of the network: a number, a Vector or an array.
        weightCol, validationIndicatorCol: columns of row weights (>= 0) and of a boolean that marks validation rows.
        validationFraction: the fraction of rows to validate with, in place of validationIndicatorCol.
        validationSteps: the number of steps between validations within epochs.
        classWeights: weights of classes in the loss of the training rows, or "balanced".
        loss, metrics, lossWeights, optimizer: Keras identifiers, or Keras objects that are serializable.
        batchSize, epochs, maxSteps, shuffle, seed, learningRate, patience, restoreBestWeights: how a network trains.
        layerLearningRates: factors of the learning rate by layer or weight.
        halvingFactor, halvingMinEpochs: successive halving of a grid: only the best 1 / halvingFactor of its candidates
            train on after halvingMinEpochs epochs, after halvingFactor times as many, and so on.
        callbacks: Keras callbacks, each made with ``cos_ml.callback``.
        checkpointDir, checkpointInterval, checkpointSteps, resume: where and how often checkpoints are written.
        numTrainWorkers, useGpu: the number of ranks, and whether each trains on the GPU that Spark assigned.
        useBarrier: whether they are tasks of a barrier stage, which Spark does not run with dynamic allocation.
        featureLayers, outputCols: layers whose activations become Vector columns, and the names of those columns.

    Raises:
        InvalidInputError: a Param has the wrong type or is out of range.

    Examples:
        >>> est = DeepNetEstimator(model=net, loss="sparse_categorical_crossentropy", epochs=3, numTrainWorkers=2)
        >>> est.fit(train).transform(test).select("prediction")  # doctest: +SKIP
    """

    @keyword_only
    def __init__(
        self,
        *,
        model: Any = None,
        initialWeights: Any = None,
        featuresCol: str = "features",
        inputCols: list[str] | None = None,
        labelCol: str = "label",
        labelCols: list[str] | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        validationFraction: float | None = None,
        validationSteps: int | None = None,
        loss: Any = None,
        metrics: Any = None,
        lossWeights: Any = None,
        optimizer: Any = "adam",
        classWeights: dict[int, float] | str | None = None,
        learningRate: float | None = None,
        layerLearningRates: dict[str, float] | None = None,
        batchSize: int = 32,
        epochs: int = 1,
        maxSteps: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        patience: int | None = None,
        restoreBestWeights: bool = False,
        halvingFactor: int | None = None,
        halvingMinEpochs: int = 1,
        callbacks: list[Any] | None = None,
        frozenLayers: list[str] | None = None,
        feed: str = "arrow",
        cacheDir: str | PathLike[str] | None = None,
        keepCache: bool = False,
        cacheRows: str = "none",
        checkpointDir: str | PathLike[str] | None = None,
        checkpointInterval: int = 1,
        checkpointSteps: int | None = None,
        resume: str = "auto",
        handleNonFiniteLoss: str = "error",
        stallTimeout: float = 1800.0,
        numTrainWorkers: int = 1,
        useBarrier: bool = True,
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
        vectorType: str = "vector",
        predictedLabelCol: str | None = None,
        labels: list[str] | None = None,
        thresholds: list[float] | None = None,
        handleInvalid: str = "error",
        paddingValue: float = 0.0,
        predictBatchSize: int = 1024,
        handleMismatch: str = "warn",
        progress: bool = True,
    ) -> None:
        super().__init__()
        self._set(**vars(self).pop("_input_kwargs"))

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[dict[Any, Any]]
    ) -> Iterator[tuple[int, DeepNetModel]]:
        """Fit a grid of Params in one barrier job: ranks start once and read the data once.

        Candidates that read other columns or need another number of ranks run in a job of their own. With
        ``halvingFactor`` they train in turns, and the worse ones are dropped; ``summary.droppedAt`` tells which.

        Returns:
            Iterator[tuple[int, DeepNetModel]]: the index of each map and its model; safe to share between threads.

        Raises:
            InvalidInputError: a candidate is invalid, or ``halvingFactor`` is set and can't compare or drop them.
        """
        estimators = [self.copy(extra) for extra in paramMaps]
        candidates = []
        for index, (estimator, extra) in enumerate(zip(estimators, paramMaps, strict=True)):
            params = ", ".join(f"{param.name}={value!r}" for param, value in extra.items()) or "unchanged Params"
            name = f"candidate {index + 1} of {len(estimators)} ({params})"
            try:
                candidates.append(estimator._candidate(dataset, name))
            except InvalidInputError as error:
                raise InvalidInputError(f"In {name}: {error}") from error
        models = _Models(dataset, estimators, candidates)
        check_candidates([candidate.spec for candidate in candidates], models.jobs)
        return models

    def explain(self, dataset: DataFrame) -> str:
        """Check whether a fit to ``dataset`` would work here, and estimate what it would take; train nothing.

        Checked are columns and the first rows against the network, GPUs, slots, versions on the driver and the
        executors, disk and memory. This counts the rows, and starts a task for each rank.

        Returns:
            str: a line for each check: "ok", or "PROBLEM" with what to do.
        """
        try:
            candidate = self._candidate(dataset)
            if self.getNumTrainWorkers() > 1:
                check_horovod(dataset.sparkSession)
            if self.getFeed() != "arrow":
                cache_folder(dataset.sparkSession, self._options())
        except CosMLError as error:
            return f"{'PROBLEM':<19}{error}\n1 problem to fix before fitting."
        ranks, use_barrier = self.getNumTrainWorkers(), self.getUseBarrier()
        return preflight.explain(dataset, candidate.spec, candidate.network, ranks, use_barrier)

    def fitParquet(
        self, url: str | PathLike[str] | Sequence[str | PathLike[str]], params: dict[Any, Any] | None = None
    ) -> DeepNetModel:
        """Fit to a Parquet dataset that the ranks read themselves; Spark reads no rows.

        Rank i reads the row groups i, i + numTrainWorkers, and so on. For every rank to have work, a dataset needs at
        least as many row groups as there are ranks.

        Args:
            url: a folder of Parquet files, one file, or a list of them: URLs that fsspec opens, on all ranks. Its
                columns have the names that the Params give; the values in folders' names (``label=1``) are columns,
                too. With ``feed="petastorm"``, petastorm reads the files, only on local or mounted disks.
            params: Params that replace this estimator's own, as in ``fit``.

        Raises:
            InvalidInputError: a column is missing or has the wrong type, a row is invalid, or ``handleInvalid`` is
                "skip"; or the folder is one of Delta, Iceberg or Hudi.
            SetupError: petastorm cannot be imported, or no package is installed that opens such URLs.
        """
        estimator = self.copy(params or {})
        if estimator.getHandleInvalid() == "skip":
            raise InvalidInputError(
                "Param handleInvalid: fitParquet takes the number of rows from the files, so it cannot skip rows: "
                'expected "error" or "keep", received "skip". Pass the DataFrame to fit() instead.'
            )
        if estimator.getFeed() == "arrow":
            estimator = estimator.copy({estimator.feed: "parquet"})
        spark = SparkSession.active()
        urls = [qualified(spark, one) for one in ([url] if isinstance(url, (str, PathLike)) else url)]
        dataset = stored_frame(spark, urls)
        return _train(dataset, [estimator], [estimator._candidate(dataset)], urls)[0]

    def _fit(self, dataset: DataFrame) -> DeepNetModel:
        return _train(dataset, [self], [self._candidate(dataset)])[0]

    def _network(self) -> Network:
        if not self.isSet(self.model):
            raise InvalidInputError("Param model is not set: pass a keras.Model to DeepNetEstimator.")
        return self.getOrDefault(self.model)._network()

    def _candidate(self, dataset: DataFrame, name: str = "") -> Candidate:
        """This estimator's training, after all checks that need no job; ``name`` tells it from others of a grid."""
        frames.check_not_streaming(dataset)
        network, report = self._network(), None
        if self.isSet(self.initialWeights):
            network, report = with_initial_weights(network, self.getOrDefault(self.initialWeights)._network())
        spec = replace(self._spec(dataset, network), name=name)
        rows = frames.select_columns(dataset, spec)  # raises for columns that are missing or of the wrong type
        checkpoint = self._checkpoint(dataset.sparkSession, spec, network)
        return Candidate(replace(spec, checkpoint=checkpoint), network, rows, report)

    def _options(self) -> FitOptions:
        return FitOptions(
            ranks=self.getNumTrainWorkers(),
            use_barrier=self.getUseBarrier(),
            feed=self.getFeed(),
            cache_dir=self.value_or_none(self.cacheDir),
            keep_cache=self.getKeepCache(),
            copied=self.getCacheRows() == "disk",
            progress=self.getProgress(),
        )

    def _spec(self, dataset: DataFrame, network: Network) -> TrainSpec:
        """What the ranks do, after checking Params, columns and network against each other."""
        if self.isSet(self.checkpointSteps) and not self.getShuffle() and self.getFeed() == "arrow":
            raise InvalidInputError(
                "Param checkpointSteps: with shuffle=False rows train in the order in which they arrive, which changes "
                "when Spark reads a shuffle again, so training cannot resume mid-epoch. Unset checkpointSteps "
                "(checkpointInterval counts epochs), or set shuffle=True."
            )
        arguments, callbacks = self._compile_arguments(network), self.getCallbacks()
        loss = checks.loss_of(network, arguments)
        frozen = tuple(find_layer(network.layers, name, "frozenLayers") for name in self.getFrozenLayers())
        fields = self.spec_fields(unset=checks.compiled_settings(network))
        self._check_training(network, arguments, frozen, fields)
        modules = {*network.modules, *custom_modules(arguments), *custom_modules(callbacks)}
        weight, validation = self.value_or_none(self.weightCol), self.value_or_none(self.validationIndicatorCol)
        rates, qualify = self.value_or_none(self.layerLearningRates), partial(qualified, dataset.sparkSession)
        labels = self.label_columns(dataset, network, loss)
        labels, classes = with_class_weights(self.value_or_none(self.classWeights), network, labels, loss)
        spec = TrainSpec(
            inputs=input_columns(network, self.input_columns(), self.getPaddingValue()),
            labels=labels,
            weight=None if weight is None else Column(weight, "w", low=0.0),
            validation=None if validation is None else Column(validation, "v", dtype="bool"),
            class_weights=classes,
            compile=arguments,
            modules=tuple(sorted(modules)),
            frozen=frozen,
            layer_rates=checked_rates(network, rates or {}, frozen, arguments),
            callbacks=tuple(with_qualified_path(one, qualify) for one in callbacks),
            stop_at_non_finite=self.getHandleNonFiniteLoss() == "error",
            variables=horovod_env.variables(self.getHorovodOptions()),
            **fields,
        )
        check_layers(network, self.getFeatureLayers())
        check_outputs(self, dataset, network, output_kinds(network.outputs, loss))
        self._labels(dataset, network, spec)
        return spec

    def _labels(self, dataset: DataFrame, network: Network, spec: TrainSpec) -> list[str] | None:
        """The names of the classes: the Param labels, else those in the metadata of the first output's label column."""
        if not network.outputs:
            return None
        kind = output_kinds(network.outputs, checks.loss_of(network, spec.compile))[0]
        column = next((column.name for column in spec.labels if column.field == "y0"), None)
        metadata = {} if column is None else resolve(dataset, column).metadata
        return class_labels(self, network.outputs[0], kind, metadata)

    def _check_training(
        self, network: Network, arguments: dict[str, Any], frozen: tuple[str, ...], fields: dict[str, Any]
    ) -> None:
        """Raises InvalidInputError for Params that do not fit each other or the network."""
        loss = checks.loss_of(network, arguments)
        for output, one in zip(network.outputs, losses_by_output(loss, network.outputs), strict=True):
            check_loss(output, one)
        checks.check_losses(loss)
        checks.check_learning_rate(
            arguments.get("optimizer") or arguments.get("compile_config"),
            self.value_or_none(self.learningRate),
            self.getCallbacks(),
        )
        checks.check_call(network, "training without a train_step of its own", "train_step")
        if self.isSet(self.validationFraction) and self.isSet(self.validationIndicatorCol):
            raise InvalidInputError(
                "Params validationFraction and validationIndicatorCol: both select the validation rows. Expected one, "
                f"received {self.getValidationFraction()} and {self.getValidationIndicatorCol()!r}. Unset one."
            )
        if self.isSet(self.validationIndicatorCol) or self.isSet(self.validationFraction):
            checks.check_call(network, "validation", "test_step")
        if self.getFeatureLayers():
            checks.check_call(network, "featureLayers")
        checks.check_trainable(network, frozen)
        checks.check_network(network, self.getBatchSize(), self.getNumTrainWorkers())
        if fields.get("jit_compile"):
            checks.check_xla(network, loss, self.getNumTrainWorkers())

    def _compile_arguments(self, network: Network) -> dict[str, Any]:
        """Arguments of ``keras.Model.compile``: the Params that are set, else the compiled model's own."""
        compiled = network.compiled or {}
        arguments = {"optimizer": self.getOptimizer()}
        arguments |= {name: compiled[name] for name in ("optimizer", *COMPILED) if compiled.get(name)}
        names = ("optimizer", "loss", "metrics", "loss_weights")
        params = (self.optimizer, self.loss, self.metrics, self.lossWeights)
        chosen = [(name, param) for name, param in zip(names, params, strict=True) if self.isSet(param)]
        if own := checks.compiled_by_class(network, [name for name, _ in chosen]):
            return own
        arguments |= {name: self.getOrDefault(param) for name, param in chosen}
        if not arguments.get("loss"):
            if not checks.needs_no_loss(network):
                raise InvalidInputError(
                    'Param loss is not set, and the model is not compiled with one: set it, for example to "mse".'
                )
            arguments.pop("loss", None)
        checks.check_by_output(network, arguments)
        arguments = {name: with_output_keys(value, network.outputs) for name, value in arguments.items()}
        _check_identifiers(arguments)
        checks.check_compile_arguments(network, arguments, given=not chosen)
        return arguments

    def _checkpoint(self, spark: SparkSession, spec: TrainSpec, network: Network) -> CheckpointConfig | None:
        """Where the training keeps its checkpoints, and what identifies it."""
        if not self.isSet(self.checkpointDir):
            return None
        identity = {
            "model": network.architecture,
            **spec.compile,
            "optimizer": _without_name(spec.compile.get("optimizer")),
            "frozenLayers": [network.layers.index(name) for name in spec.frozen],
            **self.identity(),
        }
        if self.isSet(self.initialWeights):
            identity["initialWeights"] = digest(self.getOrDefault(self.initialWeights)._network())
        return CheckpointConfig(
            qualified(spark, self.getCheckpointDir()).rstrip("/"),
            epochs=self.getCheckpointInterval(),
            steps=self.value_or_none(self.checkpointSteps),
            fit=identity,
            run=ANY_RUN if self.getResume() == "auto" else uuid.uuid4().hex[:12],
        )

    def _trained_model(self, dataset: DataFrame, candidate: Candidate, trained: Trained) -> DeepNetModel:
        model = DeepNetModel()._resetUid(self.uid)
        self._copyValues(model)
        model._set(model=candidate.network.with_archive(trained.archive))
        model._set(labels=self._labels(dataset, candidate.network, candidate.spec))
        model.compiled = {name: value for name, value in candidate.spec.compile.items() if name != "optimizer"}
        model.training_summary = trained.summary
        return model


def _check_identifiers(arguments: dict[str, Any]) -> None:
    """Raises InvalidInputError for a name that Keras does not know."""
    for name in ("optimizer", "loss", "metrics"):
        value = arguments.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item not in ABBREVIATIONS:
                try:
                    _make(name, item)
                except ValueError as error:
                    raise InvalidInputError(f"Param {name}: Keras {keras.version()} knows no {item!r}.") from error


@functools.lru_cache  # making an optimizer takes 20 ms, and creates variables
def _make(name: str, identifier: str) -> None:
    """Make the optimizer, loss or metric that an identifier names; raises ValueError if there is none."""
    {"optimizer": keras.optimizers.get, "loss": keras.losses.get, "metrics": keras.metrics.get}[name](identifier)


def _without_name(optimizer: Any) -> Any:
    """A serialized optimizer without its name: Keras numbers them, and a process's second SGD is "sgd_1"."""
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("config"), dict):
        return optimizer
    return optimizer | {"config": {name: value for name, value in optimizer["config"].items() if name != "name"}}


def _train(
    dataset: DataFrame, estimators: Sequence[DeepNetEstimator], candidates: Sequence[Candidate],
    urls: Sequence[str] | None = None, positions: Sequence[int] | None = None,
) -> list[DeepNetModel]:  # fmt: skip
    """Train the candidates, each of its estimator, in one barrier job; on the Parquet dataset at ``urls``, if given.

    Those of a grid have ``positions`` in it.
    """
    options = estimators[0]._options()

    def train(take: Callable[[dict[str, Any]], None] | None) -> list[DeepNetModel]:
        work = functools.partial(fit, dataset, candidates, options, urls, take)
        trained = cancellable(dataset.sparkSession, work)
        jobs = zip(estimators, candidates, trained, strict=True)
        return [estimator._trained_model(dataset, candidate, result) for estimator, candidate, result in jobs]

    known = listeners.Fit(tuple(estimators), None if positions is None else tuple(positions), dataset)
    return listeners.during(known, [Display()] if options.progress else [], train)


class _Models:
    """The iterator of ``fitMultiple``: trains all candidates of a job when the first of their models is requested."""

    def __init__(self, dataset: DataFrame, estimators: list[DeepNetEstimator], candidates: list[Candidate]) -> None:
        self.dataset, self.estimators, self.candidates = dataset, estimators, candidates
        options = [replace(estimator._options(), progress=False) for estimator in estimators]
        self.jobs = [(candidate.spec.layout, option) for candidate, option in zip(candidates, options, strict=True)]
        self.lock, self.indices = threading.Lock(), iter(range(len(candidates)))
        self.results: dict[int, DeepNetModel | Exception] = {}

    def __iter__(self) -> _Models:
        return self

    def __next__(self) -> tuple[int, DeepNetModel]:
        with self.lock:
            index = next(self.indices)
            if index not in self.results:
                self._train_with(index)
            result = self.results.pop(index)
        if isinstance(result, Exception):  # other threads still receive the models of other jobs
            raise result
        return index, result

    def _train_with(self, index: int) -> None:
        """Train the candidates that share a job with this one; a failure is the result of each of them."""
        group = [other for other, job in enumerate(self.jobs) if job == self.jobs[index]]
        estimators, candidates = [self.estimators[one] for one in group], [self.candidates[one] for one in group]
        try:
            self.results |= zip(group, _train(self.dataset, estimators, candidates, positions=group), strict=True)
        except Exception as error:
            self.results |= dict.fromkeys(group, error)
