"""Every Param once: those that estimator and model share, and those of the estimator alone (driver side)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasBatchSize,
    HasCheckpointInterval,
    HasFeaturesCol,
    HasHandleInvalid,
    HasInputCols,
    HasLabelCol,
    HasLearningRate,
    HasNumTrainWorkers,
    HasOutputCols,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from cos_ml.callbacks import plain_callback
from cos_ml.errors import InvalidInputError
from cos_ml.job import horovod_env
from cos_ml.network.archive import Network, load_model, network_from_file
from cos_ml.network.keras_import import import_keras
from cos_ml.network.keras_internals import loss_arguments

__all__ = ["EstimatorParams", "ModelParams"]


def _param(name: str, doc: str, converter: Callable[[Any], Any]) -> Any:
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def _whole(name: str, low: int) -> Callable[[Any], int]:
    """Converter to a whole number of ``low`` or more."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not TypeConverters._is_integer(value) or value < low:
            raise InvalidInputError(f"Param {name}: expected a whole number of {low} or more, received {value!r}.")
        return int(value)

    return convert


def _switch(name: str) -> Callable[[Any], bool]:
    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            raise InvalidInputError(f"Param {name}: expected True or False, received {value!r}.")
        return value

    return convert


def _names(name: str) -> Callable[[Any], list[str]]:
    """Converter to a list of different names."""

    def convert(value: Any) -> list[str]:
        if isinstance(value, str) or not TypeConverters._can_convert_to_list(value):
            raise InvalidInputError(f"Param {name}: expected a list of names, received {value!r}.")
        names = TypeConverters.toList(value)
        if not all(isinstance(one, str) and one for one in names) or len(set(names)) < len(names):
            raise InvalidInputError(f"Param {name}: expected a list of names, each once, received {names!r}.")
        return [str(one) for one in names]

    return convert


def _text(name: str) -> Callable[[Any], str]:
    """A text that is not empty."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise InvalidInputError(f"Param {name}: expected a text, received {value!r}.")
        return value

    return convert


def _positive(name: str) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not TypeConverters._is_numeric(value) or not 0 < float(value) < float("inf"):
            raise InvalidInputError(f"Param {name}: expected a number greater than 0, received {value!r}.")
        return float(value)

    return convert


def _one_of(name: str, *choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InvalidInputError(
                f"Param {name}: expected one of {', '.join(map(repr, choices))}, received {value!r}."
            )
        return str(value)

    return convert


def _setters(cls: type) -> type:
    """Class decorator: every Param gets its setter, ``setX(value)``, which returns self."""
    for name in dir(cls):
        param = getattr(cls, name)
        setter = f"set{name[0].upper()}{name[1:]}"
        if isinstance(param, Param) and not hasattr(cls, setter):
            setattr(cls, setter, _setter(name, setter))
    return cls


def _setter(name: str, setter: str) -> Callable[[Any, Any], Any]:
    def set_param(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    set_param.__name__ = setter
    set_param.__doc__ = f"Sets the value of {name}."
    return set_param


def _network(value: Any) -> Network:
    """Converter to a network: of one, a ``keras.Model``, the path of a ``.keras`` file, or a DeepNetModel."""
    if isinstance(value, ModelParams):
        value = value.getOrDefault(value.model)
    if isinstance(value, str):
        return network_from_file(value)
    return value if isinstance(value, Network) else Network.of(value)


def _pretrained(value: Any) -> Any:
    """Converter to a DeepNetModel of the estimator's own: a Transformer is what Spark saves in grids of Params."""
    from cos_ml.model import DeepNetModel

    return DeepNetModel(model=value)


def _callbacks(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)):
        raise InvalidInputError(f"Param callbacks: expected a list, received {value!r}.")
    return [plain_callback(item) for item in value]


def _keras_objects(name: str) -> Callable[[Any], Any]:
    """Converter of Keras identifiers and objects to what JSON holds: strings, and Keras's own serialised form."""

    def convert(value: Any) -> Any:
        if value is None or isinstance(value, (str, int, float)):
            return value
        if isinstance(value, (list, tuple)):
            return [convert(item) for item in value]
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        keras = import_keras()
        try:
            plain = keras.saving.serialize_keras_object(value)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InvalidInputError(f"Param {name}: Keras can't serialise {value!r}: {error}") from error
        if isinstance(plain, dict) and plain.get("class_name") == "function" and ">" in plain["config"]:
            # Keras leaves out where a registered function is from.
            plain |= {"registered_name": plain["config"], "module": value.__module__}
        if not isinstance(plain, dict) or "class_name" not in plain or _unregistered(plain):
            raise InvalidInputError(
                f"Param {name}: expected a Keras identifier, or a Keras object that serialises, received {value!r}. "
                "Register a function or class of your own with @keras.saving.register_keras_serializable(), in a "
                "module that the executors import."
            )
        if isinstance(plain["config"], dict):  # Keras 3.15 leaves arguments of some losses out, Huber's delta say
            plain["config"] = loss_arguments(value) | plain["config"]
        return plain

    return convert


def _unregistered(plain: dict[str, Any]) -> bool:
    """Whether this is Python code that Keras can't find again by a name."""
    is_function = plain["class_name"] in ("function", "__lambda__")
    return is_function and ">" not in (plain.get("registered_name") or "")


@_setters
class ModelParams(
    HasFeaturesCol,
    HasInputCols,
    HasOutputCols,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasHandleInvalid,
    HasLabelCol,
    HasWeightCol,
):
    """The Params that DeepNetEstimator and DeepNetModel share."""

    model = _param("model", "the network: a keras.Model, the path of a .keras file, or another DeepNetModel", _network)
    inputCols = _param(
        "inputCols",
        "input columns, one per input of the network: matched by the inputs' names, else in their order",
        _names("inputCols"),
    )
    outputCols = _param(
        "outputCols", "names of the columns of featureLayers, one each. Unset: the layers' names", _names("outputCols")
    )
    labelCols = _param("labelCols", "label columns, one per output of the network, in its order", _names("labelCols"))
    featureLayers = _param(
        "featureLayers",
        "names of layers whose activations become Vector columns, in one forward pass with the predictions. A layer "
        "inside a "
        "nested model is named 'outer/inner', or 'inner' where only one is named so. Their columns: outputCols, else "
        "the names",
        _names("featureLayers"),
    )
    handleInvalid = _param(
        "handleInvalid",
        "what to do with rows that have a null, a NaN or the wrong size: 'error' (name row and column), 'skip' "
        "(leave them "
        "out) or 'keep' (NaN in, NaN out)",
        _one_of("handleInvalid", "error", "skip", "keep"),
    )
    predictBatchSize = _param(
        "predictBatchSize", "rows per forward pass in transform (>= 1)", _whole("predictBatchSize", 1)
    )
    handleMismatch = _param(
        "handleMismatch",
        "what to do when a loaded model does not compute, on this machine, what it computed where it was saved: "
        "'warn', 'error' or 'ignore' (do not look)",
        _one_of("handleMismatch", "warn", "error", "ignore"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(
            featureLayers=[], handleInvalid="error", predictBatchSize=1024, handleMismatch="warn",
            featuresCol="features", labelCol="label", predictionCol="prediction", probabilityCol="probability",
            rawPredictionCol="rawPrediction",
        )  # fmt: skip

    def _set(self, **kwargs: Any) -> Any:
        """Set Params by keyword; None, as in the constructors' signatures, is the same as not set."""
        for name, value in kwargs.items():
            if value is None:
                self.clear(self.getParam(name))
                continue
            try:
                super()._set(**{name: value})
            except InvalidInputError:
                raise
            except (TypeError, ValueError, OverflowError) as error:  # of Spark's own converters
                raise InvalidInputError(f"Param {name}: {error} Received {value!r}.") from error
        return self

    def set(self, param: Param, value: Any) -> None:
        """Sets a Param of this stage."""
        self._shouldOwn(param)
        self._set(**{param.name: value})

    def getModel(self) -> Any:
        """The network, as a ``keras.Model`` of the caller's own."""
        return load_model(self.getOrDefault(self.model).archive)

    def getHandleMismatch(self) -> str:
        """Gets the value of handleMismatch or its default value."""
        return self.getOrDefault(self.handleMismatch)

    def getLabelCols(self) -> list[str]:
        """The label columns: labelCols where it is set, else labelCol alone."""
        return list(self.getOrDefault(self.labelCols)) if self.isSet(self.labelCols) else [self.getLabelCol()]

    def getFeatureLayers(self) -> list[str]:
        """Gets the value of featureLayers or its default value."""
        return list(self.getOrDefault(self.featureLayers))

    def getPredictBatchSize(self) -> int:
        """Gets the value of predictBatchSize or its default value."""
        return self.getOrDefault(self.predictBatchSize)

    def input_columns(self) -> list[str]:
        """The user's input columns: inputCols where it is set, else featuresCol."""
        return self.getInputCols() if self.isSet(self.inputCols) else [self.getFeaturesCol()]


@_setters
class EstimatorParams(
    ModelParams,
    HasValidationIndicatorCol,
    HasLearningRate,
    HasBatchSize,
    HasSeed,
    HasNumTrainWorkers,
    HasCheckpointInterval,
):
    """The Params of DeepNetEstimator."""

    model = _param(
        "model",
        "where training starts, its weights are kept: a keras.Model, the path of a .keras file, or a DeepNetModel",
        _pretrained,
    )
    loss = _param(
        "loss",
        "loss: a Keras identifier, or a Keras object that serialises. Unset: a compiled model's own",
        _keras_objects("loss"),
    )
    metrics = _param(
        "metrics",
        "metrics: Keras identifiers, or Keras objects that serialise. Unset: a compiled model's own",
        _keras_objects("metrics"),
    )
    lossWeights = _param(
        "lossWeights", "weight of each output's loss. Unset: a compiled model's own", _keras_objects("lossWeights")
    )
    optimizer = _param(
        "optimizer",
        "optimizer: a Keras identifier, or a Keras object that serialises. Unset: a compiled model's own, else 'adam'",
        _keras_objects("optimizer"),
    )
    learningRate = _param(
        "learningRate",
        "learning rate in place of the optimizer's own (> 0). Never scaled by the number of ranks",
        _positive("learningRate"),
    )
    batchSize = _param(
        "batchSize",
        "rows per rank and step (>= 1); the global batch is batchSize * numTrainWorkers",
        _whole("batchSize", 1),
    )
    epochs = _param("epochs", "passes over the training rows (>= 1)", _whole("epochs", 1))
    shuffle = _param("shuffle", "a new order of each rank's rows in every epoch, from the seed", _switch("shuffle"))
    seed = _param("seed", "of the order of rows and of Dropout (a whole number)", _whole("seed", -(2**63)))
    patience = _param(
        "patience",
        "stop when the validation loss (without validation rows: the loss) has not become better for so many epochs "
        "(>= 0). Unset: train all epochs",
        _whole("patience", 0),
    )
    restoreBestWeights = _param(
        "restoreBestWeights",
        "in the end take the weights of the epoch with the least such loss, not the last ones",
        _switch("restoreBestWeights"),
    )
    callbacks = _param(
        "callbacks",
        "callbacks of Keras, each made with cos_ml.callback(class, arguments); they run in the ranks",
        _callbacks,
    )
    frozenLayers = _param(
        "frozenLayers",
        "names of layers, or of models in the model, that this training leaves as they are",
        _names("frozenLayers"),
    )
    numTrainWorkers = _param("numTrainWorkers", "ranks, one barrier task each (>= 1)", _whole("numTrainWorkers", 1))
    useGpu = _param("useGpu", "train on the GPUs that Spark assigned, one per rank", _switch("useGpu"))
    gradientCompression = _param(
        "gradientCompression",
        "what gradients travel as between ranks: 'none' (as they are) or 'fp16' (half the bytes, three digits)",
        _one_of("gradientCompression", "none", "fp16"),
    )
    gradientAccumulationSteps = _param(
        "gradientAccumulationSteps",
        "steps (>= 1) whose gradients are averaged before the weights change: a batch of so many times batchSize",
        _whole("gradientAccumulationSteps", 1),
    )
    dtypePolicy = _param(
        "dtypePolicy",
        "Keras's policy while training: 'mixed_float16' (with loss scaling) or 'mixed_bfloat16' compute in half "
        "precision and keep float32 weights. Unset: each layer's own; the trained network has that again",
        _one_of("dtypePolicy", "float32", "mixed_float16", "mixed_bfloat16"),
    )
    jitCompile = _param(
        "jitCompile", "compile loss and gradients with XLA; worth its time on GPUs, mostly", _switch("jitCompile")
    )
    stepsPerExecution = _param(
        "stepsPerExecution",
        "steps in one call of TensorFlow (>= 1); callbacks, progress and checkpoints come in between. Unset: 16",
        _whole("stepsPerExecution", 1),
    )
    horovodOptions = _param(
        "horovodOptions",
        "dict of Horovod's settings for every rank: fusionThreshold (bytes), cycleTime (ms), timeline (a file on rank "
        "0's host), autotune (bool), networkInterface (a name, as eth0), and any HOROVOD_... or NCCL_... variable",
        horovod_env.converted,
    )
    feed = _param(
        "feed",
        "how rows reach the ranks: 'arrow' (from Spark to each rank's local disk) or 'petastorm' (written once as "
        "Parquet under cacheDir, which ranks read again in every epoch)",
        _one_of("feed", "arrow", "petastorm"),
    )
    cacheDir = _param(
        "cacheDir",
        "where the petastorm feed writes: a URL that Spark and fsspec can open, and all ranks too",
        _text("cacheDir"),
    )
    keepCache = _param(
        "keepCache", "leave what the petastorm feed has written, when the fit is over", _switch("keepCache")
    )
    checkpointDir = _param(
        "checkpointDir",
        "where the state of the training is kept, to go on from after a failure: a folder of this fit's own, at a URL "
        "that fsspec can write and all executors reach. Unset: nowhere",
        _text("checkpointDir"),
    )
    checkpointInterval = _param(
        "checkpointInterval", "epochs between two checkpoints (>= 1)", _whole("checkpointInterval", 1)
    )
    checkpointSteps = _param(
        "checkpointSteps",
        "within an epoch, steps between two checkpoints (>= 1; taken at the next full 16 steps). Unset: at the ends of "
        "epochs alone",
        _whole("checkpointSteps", 1),
    )
    resume = _param(
        "resume",
        "'auto' goes on from what the same fit left in checkpointDir; 'never' drops that and starts afresh",
        _one_of("resume", "auto", "never"),
    )
    handleNonFiniteLoss = _param(
        "handleNonFiniteLoss",
        "when the loss becomes NaN or infinite: 'error' ends the fit, 'keep' trains on",
        _one_of("handleNonFiniteLoss", "error", "keep"),
    )
    stallTimeout = _param(
        "stallTimeout",
        "seconds (> 0) after which a rank that does not get on is given up, and Spark starts the ranks again. The "
        "first 16 steps, validation of 16 steps, a callback or a checkpoint have to take less",
        _positive("stallTimeout"),
    )
    progress = _param("progress", "show at the driver how the fit goes, while it runs", _switch("progress"))

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(
            metrics=[], optimizer="adam", batchSize=32, epochs=1, shuffle=True, numTrainWorkers=1, useGpu=False,
            progress=True, seed=0, restoreBestWeights=False, callbacks=[], frozenLayers=[], feed="arrow",
            keepCache=False, checkpointInterval=1, resume="auto", handleNonFiniteLoss="error", stallTimeout=1800.0,
            gradientCompression="none", gradientAccumulationSteps=1, jitCompile=False, horovodOptions={},
        )  # fmt: skip

    def getModel(self) -> Any:
        """The network that training starts from, as a ``keras.Model`` of the caller's own."""
        return self.getOrDefault(self.model).getModel()

    def getPatience(self) -> int:
        """Gets the value of patience."""
        return self.getOrDefault(self.patience)

    def getRestoreBestWeights(self) -> bool:
        """Gets the value of restoreBestWeights or its default value."""
        return self.getOrDefault(self.restoreBestWeights)

    def getCallbacks(self) -> list[dict[str, Any]]:
        """Gets the value of callbacks, as plain data, or its default value."""
        return copy.deepcopy(self.getOrDefault(self.callbacks))

    def getFrozenLayers(self) -> list[str]:
        """Gets the value of frozenLayers or its default value."""
        return list(self.getOrDefault(self.frozenLayers))

    def getLoss(self) -> Any:
        """Gets the value of loss: an identifier, or the serialised form of a Keras object."""
        return copy.deepcopy(self.getOrDefault(self.loss))

    def getMetrics(self) -> Any:
        """Gets the value of metrics or its default value."""
        return copy.deepcopy(self.getOrDefault(self.metrics))

    def getLossWeights(self) -> Any:
        """Gets the value of lossWeights."""
        return copy.deepcopy(self.getOrDefault(self.lossWeights))

    def getOptimizer(self) -> Any:
        """Gets the value of optimizer or its default value."""
        return copy.deepcopy(self.getOrDefault(self.optimizer))

    def getEpochs(self) -> int:
        """Gets the value of epochs or its default value."""
        return self.getOrDefault(self.epochs)

    def getShuffle(self) -> bool:
        """Gets the value of shuffle or its default value."""
        return self.getOrDefault(self.shuffle)

    def getUseGpu(self) -> bool:
        """Gets the value of useGpu or its default value."""
        return self.getOrDefault(self.useGpu)

    def getGradientCompression(self) -> str:
        """Gets the value of gradientCompression or its default value."""
        return self.getOrDefault(self.gradientCompression)

    def getGradientAccumulationSteps(self) -> int:
        """Gets the value of gradientAccumulationSteps or its default value."""
        return self.getOrDefault(self.gradientAccumulationSteps)

    def getDtypePolicy(self) -> str:
        """Gets the value of dtypePolicy."""
        return self.getOrDefault(self.dtypePolicy)

    def getJitCompile(self) -> bool:
        """Gets the value of jitCompile or its default value."""
        return self.getOrDefault(self.jitCompile)

    def getStepsPerExecution(self) -> int:
        """Gets the value of stepsPerExecution."""
        return self.getOrDefault(self.stepsPerExecution)

    def getHorovodOptions(self) -> dict[str, Any]:
        """Gets the value of horovodOptions or its default value."""
        return dict(self.getOrDefault(self.horovodOptions))

    def getFeed(self) -> str:
        """Gets the value of feed or its default value."""
        return self.getOrDefault(self.feed)

    def getCacheDir(self) -> str:
        """Gets the value of cacheDir."""
        return self.getOrDefault(self.cacheDir)

    def getKeepCache(self) -> bool:
        """Gets the value of keepCache or its default value."""
        return self.getOrDefault(self.keepCache)

    def getCheckpointDir(self) -> str:
        """Gets the value of checkpointDir."""
        return self.getOrDefault(self.checkpointDir)

    def getCheckpointSteps(self) -> int:
        """Gets the value of checkpointSteps."""
        return self.getOrDefault(self.checkpointSteps)

    def getResume(self) -> str:
        """Gets the value of resume or its default value."""
        return self.getOrDefault(self.resume)

    def getHandleNonFiniteLoss(self) -> str:
        """Gets the value of handleNonFiniteLoss or its default value."""
        return self.getOrDefault(self.handleNonFiniteLoss)

    def getStallTimeout(self) -> float:
        """Gets the value of stallTimeout or its default value."""
        return self.getOrDefault(self.stallTimeout)

    def getProgress(self) -> bool:
        """Gets the value of progress or its default value."""
        return self.getOrDefault(self.progress)
