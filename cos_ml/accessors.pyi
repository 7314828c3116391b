"""Generated from the declarations of Params by ``make params``: do not edit."""

from os import PathLike
from typing import Any, Self

class ModelAccessors:
    """Getters and setters of the Params that estimator and model share."""
    def setParams(
        self,
        *,
        model: Any = ...,
        featuresCol: str | None = ...,
        inputCols: list[str] | None = ...,
        labelCol: str | None = ...,
        labelCols: list[str] | None = ...,
        weightCol: str | None = ...,
        featureLayers: list[str] | None = ...,
        outputCols: list[str] | None = ...,
        predictionCol: str | None = ...,
        probabilityCol: str | None = ...,
        rawPredictionCol: str | None = ...,
        vectorType: str | None = ...,
        predictedLabelCol: str | None = ...,
        labels: list[str] | None = ...,
        thresholds: list[float] | None = ...,
        handleInvalid: str | None = ...,
        paddingValue: float | None = ...,
        predictBatchSize: int | None = ...,
        handleMismatch: str | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def setModel(self, value: Any) -> Self:
        """Sets model: the network: a built keras.Model, the path of a .keras file, or another DeepNetModel."""
    def getFeaturesCol(self) -> str:
        """Gets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def setFeaturesCol(self, value: str) -> Self:
        """Sets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def getInputCols(self) -> list[str]:
        """Gets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def setInputCols(self, value: list[str]) -> Self:
        """Sets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def getLabelCol(self) -> str:
        """Gets labelCol: label column: a number, a Vector or an array."""
    def setLabelCol(self, value: str) -> Self:
        """Sets labelCol: label column: a number, a Vector or an array."""
    def setLabelCols(self, value: list[str]) -> Self:
        """Sets labelCols: label columns in place of labelCol, one per output of the network, or per output that has a
        loss: matched by the outputs' keys or names, else in their order."""
    def getWeightCol(self) -> str:
        """Gets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def setWeightCol(self, value: str) -> Self:
        """Sets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def getFeatureLayers(self) -> list[str]:
        """Gets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def setFeatureLayers(self, value: list[str]) -> Self:
        """Sets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def getOutputCols(self) -> list[str]:
        """Gets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def setOutputCols(self, value: list[str]) -> Self:
        """Sets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def getPredictionCol(self) -> str:
        """Gets predictionCol: output column of the predictions; '' omits it."""
    def setPredictionCol(self, value: str) -> Self:
        """Sets predictionCol: output column of the predictions; '' omits it."""
    def getProbabilityCol(self) -> str:
        """Gets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def setProbabilityCol(self, value: str) -> Self:
        """Sets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def getRawPredictionCol(self) -> str:
        """Gets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def setRawPredictionCol(self, value: str) -> Self:
        """Sets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def getVectorType(self) -> str:
        """Gets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def setVectorType(self, value: str) -> Self:
        """Sets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def getPredictedLabelCol(self) -> str:
        """Gets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def setPredictedLabelCol(self, value: str) -> Self:
        """Sets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def getLabels(self) -> list[str]:
        """Gets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def setLabels(self, value: list[str]) -> Self:
        """Sets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def getThresholds(self) -> list[float]:
        """Gets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def setThresholds(self, value: list[float]) -> Self:
        """Sets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def getHandleInvalid(self) -> str:
        """Gets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def setHandleInvalid(self, value: str) -> Self:
        """Sets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def getPaddingValue(self) -> float:
        """Gets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def setPaddingValue(self, value: float) -> Self:
        """Sets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def getPredictBatchSize(self) -> int:
        """Gets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def setPredictBatchSize(self, value: int) -> Self:
        """Sets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def getHandleMismatch(self) -> str:
        """Gets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def setHandleMismatch(self, value: str) -> Self:
        """Sets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""

class TrainingAccessors(ModelAccessors):
    """Getters of the Params of a training."""
    def getValidationIndicatorCol(self) -> str:
        """Gets validationIndicatorCol: boolean column: true rows validate every epoch instead of training."""
    def getValidationFraction(self) -> float:
        """Gets validationFraction: fraction of the rows (> 0, < 1) to validate with instead of training on them, in
        place of validationIndicatorCol. A hash of seed and the row's values selects them, so equal rows stay together
        and every attempt selects the same rows."""
    def getValidationSteps(self) -> int:
        """Gets validationSteps: also validate within epochs, after every so many steps (>= 1) of the training; the
        history then has an entry for each validation. Unset: validate at the ends of epochs only."""
    def getLoss(self) -> Any:
        """Gets loss: Keras identifier or serializable object. Unset: a compiled model's."""
    def getMetrics(self) -> Any:
        """Gets metrics: Keras identifiers or serializable objects. Unset: a compiled model's."""
    def getLossWeights(self) -> Any:
        """Gets lossWeights: weight of each output's loss. Unset: a compiled model's."""
    def getOptimizer(self) -> Any:
        """Gets optimizer: Keras identifier or serializable object. A compiled model's own replaces the default."""
    def getClassWeights(self) -> dict[int, float] | str:
        """Gets classWeights: weight (>= 0) of each class in the loss of the training rows, times weightCol's: a dict by
        class (classes that it lacks: 1), or 'balanced': rows / (classes that occur * rows of the class)."""
    def getLearningRate(self) -> float:
        """Gets learningRate: learning rate in place of the optimizer's (> 0); never scaled by the number of ranks."""
    def getLayerLearningRates(self) -> dict[str, float]:
        """Gets layerLearningRates: factors (>= 0) that multiply the learning rate: a dict by the name of a layer, a
        model inside the model, or one weight, such as 'conv1/bias'. The most specific name applies; 0 freezes the
        weights. Unset: 1 for all."""
    def getBatchSize(self) -> int:
        """Gets batchSize: rows per rank and step (>= 1); the global batch is batchSize * numTrainWorkers."""
    def getEpochs(self) -> int:
        """Gets epochs: passes over the training rows (>= 1)."""
    def getMaxSteps(self) -> int:
        """Gets maxSteps: stop after this many steps (>= 1), even within an epoch, or after epochs, whichever comes
        first. If epochs is not set, maxSteps alone decides."""
    def getShuffle(self) -> bool:
        """Gets shuffle: reorder each rank's rows in every epoch."""
    def getSeed(self) -> int:
        """Gets seed: seed of row order and of Dropout."""
    def getPatience(self) -> int:
        """Gets patience: stop after this many epochs (>= 0) without a better val_loss (loss, if there are no validation
        rows). With validationSteps, each validation counts, not only those at the ends of epochs. Unset: never."""
    def getRestoreBestWeights(self) -> bool:
        """Gets restoreBestWeights: end with the weights that had the best val_loss (loss, if there are no validation
        rows) at the end of an epoch or, with validationSteps, at any validation, not with the last weights."""
    def getHalvingFactor(self) -> int:
        """Gets halvingFactor: successive halving in a grid (fitMultiple): after each rung only the best 1 /
        halvingFactor (>= 2) of the candidates by val_loss (loss, if there are no validation rows) train on. Unset: all
        train to their end."""
    def getHalvingMinEpochs(self) -> int:
        """Gets halvingMinEpochs: epochs (>= 1) of the first rung of halvingFactor; each further rung is halvingFactor
        times as many."""
    def getCallbacks(self) -> list[dict[str, Any]]:
        """Gets callbacks: Keras callbacks that run in the ranks, each made with cos_ml.callback(class, arguments)."""
    def getFrozenLayers(self) -> list[str]:
        """Gets frozenLayers: layers, or models inside the model, whose weights do not change."""
    def getFeed(self) -> str:
        """Gets feed: how rows reach the ranks: 'arrow' (from Spark to each rank's local disk), 'parquet' (written once
        as Parquet under cacheDir and read from there in every epoch) or 'petastorm' (the same, read by petastorm)."""
    def getCacheDir(self) -> str:
        """Gets cacheDir: where the feeds 'parquet' and 'petastorm' write their files: a URL that Spark, fsspec and all
        ranks can open."""
    def getKeepCache(self) -> bool:
        """Gets keepCache: keep the files in cacheDir after the fit."""
    def getCacheRows(self) -> str:
        """Gets cacheRows: 'disk': each rank copies the rows that it reads of Parquet files to its local disk and reads
        them there in later epochs, as long as a tenth of that disk stays free; 'none': it reads the files in every
        epoch."""
    def getCheckpointDir(self) -> str:
        """Gets checkpointDir: folder for this fit's checkpoints: a URL that fsspec can write and all executors reach.
        The same fit, started again after a failure, resumes from there. Unset: no checkpoints."""
    def getCheckpointInterval(self) -> int:
        """Gets checkpointInterval: epochs between two checkpoints (>= 1)."""
    def getCheckpointSteps(self) -> int:
        """Gets checkpointSteps: steps between two checkpoints within an epoch (>= 1), rounded up to whole calls of
        stepsPerExecution steps. Unset: checkpoints at the ends of epochs only."""
    def getResume(self) -> str:
        """Gets resume: 'auto' resumes from checkpoints of the same fit in checkpointDir; 'never' discards them and
        starts over."""
    def getHandleNonFiniteLoss(self) -> str:
        """Gets handleNonFiniteLoss: what to do when the loss, the validation loss or a weight becomes NaN or infinite:
        'error' or 'keep' training."""
    def getStallTimeout(self) -> float:
        """Gets stallTimeout: seconds (> 0) after which a rank that makes no progress fails the attempt, and Spark
        starts the ranks again. The first 16 steps, 16 steps of validation and a callback must each take less; a
        checkpoint that takes half of it is given up, with a note."""
    def getNumTrainWorkers(self) -> int:
        """Gets numTrainWorkers: ranks (>= 1): tasks that run at the same time."""
    def getUseBarrier(self) -> bool:
        """Gets useBarrier: run the ranks as the tasks of a barrier stage of Spark; False: as those of an ordinary
        stage, which the driver keeps together. With spark.dynamicAllocation.enabled, only False is possible."""
    def getUseGpu(self) -> bool:
        """Gets useGpu: train each rank on the GPU that Spark assigned to its task."""
    def getGradientCompression(self) -> str:
        """Gets gradientCompression: how gradients travel between ranks: 'none' (unchanged) or 'fp16' (half the bytes,
        three digits)."""
    def getGradientAccumulationSteps(self) -> int:
        """Gets gradientAccumulationSteps: steps (>= 1) whose gradients are averaged into one update: a batch that is so
        many times larger."""
    def getDtypePolicy(self) -> str:
        """Gets dtypePolicy: Keras dtype policy while training: 'mixed_float16' (with loss scaling) and 'mixed_bfloat16'
        compute in half precision on float32 weights; 'float32'. Unset: each layer's own. The trained network has its
        own again."""
    def getJitCompile(self) -> bool:
        """Gets jitCompile: compile loss and gradients with XLA (mostly for GPUs)."""
    def getStepsPerExecution(self) -> int:
        """Gets stepsPerExecution: steps per call of TensorFlow (>= 1); callbacks, progress and checkpoints run between
        calls. Unset: 16."""
    def getHorovodOptions(self) -> dict[str, Any]:
        """Gets horovodOptions: Horovod settings of every rank: fusionThreshold (bytes), cycleTime (ms), timeline (a
        file on rank 0's host), autotune (bool), networkInterface (a name such as eth0), and HOROVOD_... and NCCL_...
        variables."""
    def getProgress(self) -> bool:
        """Gets progress: show a progress bar, and a line per epoch, on standard error."""

class AttributionAccessors(TrainingAccessors):
    """Getters and setters of DeepNetModel's Params."""
    def setParams(
        self,
        *,
        model: Any = ...,
        featuresCol: str | None = ...,
        inputCols: list[str] | None = ...,
        labelCol: str | None = ...,
        labelCols: list[str] | None = ...,
        weightCol: str | None = ...,
        featureLayers: list[str] | None = ...,
        outputCols: list[str] | None = ...,
        predictionCol: str | None = ...,
        probabilityCol: str | None = ...,
        rawPredictionCol: str | None = ...,
        vectorType: str | None = ...,
        predictedLabelCol: str | None = ...,
        labels: list[str] | None = ...,
        thresholds: list[float] | None = ...,
        handleInvalid: str | None = ...,
        paddingValue: float | None = ...,
        predictBatchSize: int | None = ...,
        handleMismatch: str | None = ...,
        attributionsCol: str | None = ...,
        attributionTarget: int | str | None = ...,
        attributionBaseline: float | list[float] | dict[str, float | list[float]] | None = ...,
        attributionSteps: int | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def setModel(self, value: Any) -> Self:
        """Sets model: the network: a built keras.Model, the path of a .keras file, or another DeepNetModel."""
    def getFeaturesCol(self) -> str:
        """Gets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def setFeaturesCol(self, value: str) -> Self:
        """Sets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def getInputCols(self) -> list[str]:
        """Gets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def setInputCols(self, value: list[str]) -> Self:
        """Sets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def getLabelCol(self) -> str:
        """Gets labelCol: label column: a number, a Vector or an array."""
    def setLabelCol(self, value: str) -> Self:
        """Sets labelCol: label column: a number, a Vector or an array."""
    def setLabelCols(self, value: list[str]) -> Self:
        """Sets labelCols: label columns in place of labelCol, one per output of the network, or per output that has a
        loss: matched by the outputs' keys or names, else in their order."""
    def getWeightCol(self) -> str:
        """Gets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def setWeightCol(self, value: str) -> Self:
        """Sets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def getFeatureLayers(self) -> list[str]:
        """Gets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def setFeatureLayers(self, value: list[str]) -> Self:
        """Sets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def getOutputCols(self) -> list[str]:
        """Gets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def setOutputCols(self, value: list[str]) -> Self:
        """Sets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def getPredictionCol(self) -> str:
        """Gets predictionCol: output column of the predictions; '' omits it."""
    def setPredictionCol(self, value: str) -> Self:
        """Sets predictionCol: output column of the predictions; '' omits it."""
    def getProbabilityCol(self) -> str:
        """Gets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def setProbabilityCol(self, value: str) -> Self:
        """Sets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def getRawPredictionCol(self) -> str:
        """Gets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def setRawPredictionCol(self, value: str) -> Self:
        """Sets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def getVectorType(self) -> str:
        """Gets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def setVectorType(self, value: str) -> Self:
        """Sets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def getPredictedLabelCol(self) -> str:
        """Gets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def setPredictedLabelCol(self, value: str) -> Self:
        """Sets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def getLabels(self) -> list[str]:
        """Gets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def setLabels(self, value: list[str]) -> Self:
        """Sets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def getThresholds(self) -> list[float]:
        """Gets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def setThresholds(self, value: list[float]) -> Self:
        """Sets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def getHandleInvalid(self) -> str:
        """Gets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def setHandleInvalid(self, value: str) -> Self:
        """Sets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def getPaddingValue(self) -> float:
        """Gets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def setPaddingValue(self, value: float) -> Self:
        """Sets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def getPredictBatchSize(self) -> int:
        """Gets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def setPredictBatchSize(self, value: int) -> Self:
        """Sets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def getHandleMismatch(self) -> str:
        """Gets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def setHandleMismatch(self, value: str) -> Self:
        """Sets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def getAttributionsCol(self) -> str:
        """Gets attributionsCol: output column of what each value of the input contributes to the prediction (integrated
        gradients), a Vector; of a network with several inputs a column for each, with '_' and the input's name. Unset:
        none."""
    def setAttributionsCol(self, value: str) -> Self:
        """Sets attributionsCol: output column of what each value of the input contributes to the prediction (integrated
        gradients), a Vector; of a network with several inputs a column for each, with '_' and the input's name. Unset:
        none."""
    def getAttributionTarget(self) -> int | str:
        """Gets attributionTarget: the class, as an index or a label, or the index of the number, of the first output
        that is attributed. Unset: each row's predicted class."""
    def setAttributionTarget(self, value: int | str) -> Self:
        """Sets attributionTarget: the class, as an index or a label, or the index of the number, of the first output
        that is attributed. Unset: each row's predicted class."""
    def getAttributionBaseline(self) -> float | list[float] | dict[str, float | list[float]]:
        """Gets attributionBaseline: the input that attributions compare a row with: a number for all of its values, a
        list with one for each, or a dict of these by name of the input, where those that are left out have 0."""
    def setAttributionBaseline(self, value: float | list[float] | dict[str, float | list[float]]) -> Self:
        """Sets attributionBaseline: the input that attributions compare a row with: a number for all of its values, a
        list with one for each, or a dict of these by name of the input, where those that are left out have 0."""
    def getAttributionSteps(self) -> int:
        """Gets attributionSteps: points between baseline and row (>= 1) at which attributions compute gradients."""
    def setAttributionSteps(self, value: int) -> Self:
        """Sets attributionSteps: points between baseline and row (>= 1) at which attributions compute gradients."""

class EstimatorAccessors(TrainingAccessors):
    """Getters and setters of DeepNetEstimator's Params."""
    def setParams(
        self,
        *,
        model: Any = ...,
        initialWeights: Any = ...,
        featuresCol: str | None = ...,
        inputCols: list[str] | None = ...,
        labelCol: str | None = ...,
        labelCols: list[str] | None = ...,
        weightCol: str | None = ...,
        validationIndicatorCol: str | None = ...,
        validationFraction: float | None = ...,
        validationSteps: int | None = ...,
        loss: Any = ...,
        metrics: Any = ...,
        lossWeights: Any = ...,
        optimizer: Any = ...,
        classWeights: dict[int, float] | str | None = ...,
        learningRate: float | None = ...,
        layerLearningRates: dict[str, float] | None = ...,
        batchSize: int | None = ...,
        epochs: int | None = ...,
        maxSteps: int | None = ...,
        shuffle: bool | None = ...,
        seed: int | None = ...,
        patience: int | None = ...,
        restoreBestWeights: bool | None = ...,
        halvingFactor: int | None = ...,
        halvingMinEpochs: int | None = ...,
        callbacks: list[Any] | None = ...,
        frozenLayers: list[str] | None = ...,
        feed: str | None = ...,
        cacheDir: str | PathLike[str] | None = ...,
        keepCache: bool | None = ...,
        cacheRows: str | None = ...,
        checkpointDir: str | PathLike[str] | None = ...,
        checkpointInterval: int | None = ...,
        checkpointSteps: int | None = ...,
        resume: str | None = ...,
        handleNonFiniteLoss: str | None = ...,
        stallTimeout: float | None = ...,
        numTrainWorkers: int | None = ...,
        useBarrier: bool | None = ...,
        useGpu: bool | None = ...,
        gradientCompression: str | None = ...,
        gradientAccumulationSteps: int | None = ...,
        dtypePolicy: str | None = ...,
        jitCompile: bool | None = ...,
        stepsPerExecution: int | None = ...,
        horovodOptions: dict[str, Any] | None = ...,
        featureLayers: list[str] | None = ...,
        outputCols: list[str] | None = ...,
        predictionCol: str | None = ...,
        probabilityCol: str | None = ...,
        rawPredictionCol: str | None = ...,
        vectorType: str | None = ...,
        predictedLabelCol: str | None = ...,
        labels: list[str] | None = ...,
        thresholds: list[float] | None = ...,
        handleInvalid: str | None = ...,
        paddingValue: float | None = ...,
        predictBatchSize: int | None = ...,
        handleMismatch: str | None = ...,
        progress: bool | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def setModel(self, value: Any) -> Self:
        """Sets model: the network to train, starting from its weights: a built keras.Model, compiled or not, the path
        of a .keras file, or a DeepNetModel."""
    def getInitialWeights(self) -> Any:
        """Gets initialWeights: weights to start from: a keras.Model, a DeepNetModel, or the path of a .keras, .h5,
        .weights.h5 or .caffemodel file. Each layer takes those of the layer there that has its name and shapes; others
        keep model's."""
    def setInitialWeights(self, value: Any) -> Self:
        """Sets initialWeights: weights to start from: a keras.Model, a DeepNetModel, or the path of a .keras, .h5,
        .weights.h5 or .caffemodel file. Each layer takes those of the layer there that has its name and shapes; others
        keep model's."""
    def getFeaturesCol(self) -> str:
        """Gets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def setFeaturesCol(self, value: str) -> Self:
        """Sets featuresCol: input column of a network with one input: a Vector, an array of numbers (nested too), a
        number, binary (uint8) or a string. Flat rows take the input's shape."""
    def getInputCols(self) -> list[str]:
        """Gets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def setInputCols(self, value: list[str]) -> Self:
        """Sets inputCols: input columns in place of featuresCol, one per input of the network: matched by the inputs'
        names, else in their order. Several columns of a network with one input are joined, as VectorAssembler does."""
    def getLabelCol(self) -> str:
        """Gets labelCol: label column: a number, a Vector or an array."""
    def setLabelCol(self, value: str) -> Self:
        """Sets labelCol: label column: a number, a Vector or an array."""
    def setLabelCols(self, value: list[str]) -> Self:
        """Sets labelCols: label columns in place of labelCol, one per output of the network, or per output that has a
        loss: matched by the outputs' keys or names, else in their order."""
    def getWeightCol(self) -> str:
        """Gets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def setWeightCol(self, value: str) -> Self:
        """Sets weightCol: column of row weights (>= 0), for the loss and weighted metrics."""
    def getValidationIndicatorCol(self) -> str:
        """Gets validationIndicatorCol: boolean column: true rows validate every epoch instead of training."""
    def setValidationIndicatorCol(self, value: str) -> Self:
        """Sets validationIndicatorCol: boolean column: true rows validate every epoch instead of training."""
    def getValidationFraction(self) -> float:
        """Gets validationFraction: fraction of the rows (> 0, < 1) to validate with instead of training on them, in
        place of validationIndicatorCol. A hash of seed and the row's values selects them, so equal rows stay together
        and every attempt selects the same rows."""
    def setValidationFraction(self, value: float) -> Self:
        """Sets validationFraction: fraction of the rows (> 0, < 1) to validate with instead of training on them, in
        place of validationIndicatorCol. A hash of seed and the row's values selects them, so equal rows stay together
        and every attempt selects the same rows."""
    def getValidationSteps(self) -> int:
        """Gets validationSteps: also validate within epochs, after every so many steps (>= 1) of the training; the
        history then has an entry for each validation. Unset: validate at the ends of epochs only."""
    def setValidationSteps(self, value: int) -> Self:
        """Sets validationSteps: also validate within epochs, after every so many steps (>= 1) of the training; the
        history then has an entry for each validation. Unset: validate at the ends of epochs only."""
    def getLoss(self) -> Any:
        """Gets loss: Keras identifier or serializable object. Unset: a compiled model's."""
    def setLoss(self, value: Any) -> Self:
        """Sets loss: Keras identifier or serializable object. Unset: a compiled model's."""
    def getMetrics(self) -> Any:
        """Gets metrics: Keras identifiers or serializable objects. Unset: a compiled model's."""
    def setMetrics(self, value: Any) -> Self:
        """Sets metrics: Keras identifiers or serializable objects. Unset: a compiled model's."""
    def getLossWeights(self) -> Any:
        """Gets lossWeights: weight of each output's loss. Unset: a compiled model's."""
    def setLossWeights(self, value: Any) -> Self:
        """Sets lossWeights: weight of each output's loss. Unset: a compiled model's."""
    def getOptimizer(self) -> Any:
        """Gets optimizer: Keras identifier or serializable object. A compiled model's own replaces the default."""
    def setOptimizer(self, value: Any) -> Self:
        """Sets optimizer: Keras identifier or serializable object. A compiled model's own replaces the default."""
    def getClassWeights(self) -> dict[int, float] | str:
        """Gets classWeights: weight (>= 0) of each class in the loss of the training rows, times weightCol's: a dict by
        class (classes that it lacks: 1), or 'balanced': rows / (classes that occur * rows of the class)."""
    def setClassWeights(self, value: dict[int, float] | str) -> Self:
        """Sets classWeights: weight (>= 0) of each class in the loss of the training rows, times weightCol's: a dict by
        class (classes that it lacks: 1), or 'balanced': rows / (classes that occur * rows of the class)."""
    def getLearningRate(self) -> float:
        """Gets learningRate: learning rate in place of the optimizer's (> 0); never scaled by the number of ranks."""
    def setLearningRate(self, value: float) -> Self:
        """Sets learningRate: learning rate in place of the optimizer's (> 0); never scaled by the number of ranks."""
    def getLayerLearningRates(self) -> dict[str, float]:
        """Gets layerLearningRates: factors (>= 0) that multiply the learning rate: a dict by the name of a layer, a
        model inside the model, or one weight, such as 'conv1/bias'. The most specific name applies; 0 freezes the
        weights. Unset: 1 for all."""
    def setLayerLearningRates(self, value: dict[str, float]) -> Self:
        """Sets layerLearningRates: factors (>= 0) that multiply the learning rate: a dict by the name of a layer, a
        model inside the model, or one weight, such as 'conv1/bias'. The most specific name applies; 0 freezes the
        weights. Unset: 1 for all."""
    def getBatchSize(self) -> int:
        """Gets batchSize: rows per rank and step (>= 1); the global batch is batchSize * numTrainWorkers."""
    def setBatchSize(self, value: int) -> Self:
        """Sets batchSize: rows per rank and step (>= 1); the global batch is batchSize * numTrainWorkers."""
    def getEpochs(self) -> int:
        """Gets epochs: passes over the training rows (>= 1)."""
    def setEpochs(self, value: int) -> Self:
        """Sets epochs: passes over the training rows (>= 1)."""
    def getMaxSteps(self) -> int:
        """Gets maxSteps: stop after this many steps (>= 1), even within an epoch, or after epochs, whichever comes
        first. If epochs is not set, maxSteps alone decides."""
    def setMaxSteps(self, value: int) -> Self:
        """Sets maxSteps: stop after this many steps (>= 1), even within an epoch, or after epochs, whichever comes
        first. If epochs is not set, maxSteps alone decides."""
    def getShuffle(self) -> bool:
        """Gets shuffle: reorder each rank's rows in every epoch."""
    def setShuffle(self, value: bool) -> Self:
        """Sets shuffle: reorder each rank's rows in every epoch."""
    def getSeed(self) -> int:
        """Gets seed: seed of row order and of Dropout."""
    def setSeed(self, value: int) -> Self:
        """Sets seed: seed of row order and of Dropout."""
    def getPatience(self) -> int:
        """Gets patience: stop after this many epochs (>= 0) without a better val_loss (loss, if there are no validation
        rows). With validationSteps, each validation counts, not only those at the ends of epochs. Unset: never."""
    def setPatience(self, value: int) -> Self:
        """Sets patience: stop after this many epochs (>= 0) without a better val_loss (loss, if there are no validation
        rows). With validationSteps, each validation counts, not only those at the ends of epochs. Unset: never."""
    def getRestoreBestWeights(self) -> bool:
        """Gets restoreBestWeights: end with the weights that had the best val_loss (loss, if there are no validation
        rows) at the end of an epoch or, with validationSteps, at any validation, not with the last weights."""
    def setRestoreBestWeights(self, value: bool) -> Self:
        """Sets restoreBestWeights: end with the weights that had the best val_loss (loss, if there are no validation
        rows) at the end of an epoch or, with validationSteps, at any validation, not with the last weights."""
    def getHalvingFactor(self) -> int:
        """Gets halvingFactor: successive halving in a grid (fitMultiple): after each rung only the best 1 /
        halvingFactor (>= 2) of the candidates by val_loss (loss, if there are no validation rows) train on. Unset: all
        train to their end."""
    def setHalvingFactor(self, value: int) -> Self:
        """Sets halvingFactor: successive halving in a grid (fitMultiple): after each rung only the best 1 /
        halvingFactor (>= 2) of the candidates by val_loss (loss, if there are no validation rows) train on. Unset: all
        train to their end."""
    def getHalvingMinEpochs(self) -> int:
        """Gets halvingMinEpochs: epochs (>= 1) of the first rung of halvingFactor; each further rung is halvingFactor
        times as many."""
    def setHalvingMinEpochs(self, value: int) -> Self:
        """Sets halvingMinEpochs: epochs (>= 1) of the first rung of halvingFactor; each further rung is halvingFactor
        times as many."""
    def getCallbacks(self) -> list[dict[str, Any]]:
        """Gets callbacks: Keras callbacks that run in the ranks, each made with cos_ml.callback(class, arguments)."""
    def setCallbacks(self, value: list[Any]) -> Self:
        """Sets callbacks: Keras callbacks that run in the ranks, each made with cos_ml.callback(class, arguments)."""
    def getFrozenLayers(self) -> list[str]:
        """Gets frozenLayers: layers, or models inside the model, whose weights do not change."""
    def setFrozenLayers(self, value: list[str]) -> Self:
        """Sets frozenLayers: layers, or models inside the model, whose weights do not change."""
    def getFeed(self) -> str:
        """Gets feed: how rows reach the ranks: 'arrow' (from Spark to each rank's local disk), 'parquet' (written once
        as Parquet under cacheDir and read from there in every epoch) or 'petastorm' (the same, read by petastorm)."""
    def setFeed(self, value: str) -> Self:
        """Sets feed: how rows reach the ranks: 'arrow' (from Spark to each rank's local disk), 'parquet' (written once
        as Parquet under cacheDir and read from there in every epoch) or 'petastorm' (the same, read by petastorm)."""
    def getCacheDir(self) -> str:
        """Gets cacheDir: where the feeds 'parquet' and 'petastorm' write their files: a URL that Spark, fsspec and all
        ranks can open."""
    def setCacheDir(self, value: str | PathLike[str]) -> Self:
        """Sets cacheDir: where the feeds 'parquet' and 'petastorm' write their files: a URL that Spark, fsspec and all
        ranks can open."""
    def getKeepCache(self) -> bool:
        """Gets keepCache: keep the files in cacheDir after the fit."""
    def setKeepCache(self, value: bool) -> Self:
        """Sets keepCache: keep the files in cacheDir after the fit."""
    def getCacheRows(self) -> str:
        """Gets cacheRows: 'disk': each rank copies the rows that it reads of Parquet files to its local disk and reads
        them there in later epochs, as long as a tenth of that disk stays free; 'none': it reads the files in every
        epoch."""
    def setCacheRows(self, value: str) -> Self:
        """Sets cacheRows: 'disk': each rank copies the rows that it reads of Parquet files to its local disk and reads
        them there in later epochs, as long as a tenth of that disk stays free; 'none': it reads the files in every
        epoch."""
    def getCheckpointDir(self) -> str:
        """Gets checkpointDir: folder for this fit's checkpoints: a URL that fsspec can write and all executors reach.
        The same fit, started again after a failure, resumes from there. Unset: no checkpoints."""
    def setCheckpointDir(self, value: str | PathLike[str]) -> Self:
        """Sets checkpointDir: folder for this fit's checkpoints: a URL that fsspec can write and all executors reach.
        The same fit, started again after a failure, resumes from there. Unset: no checkpoints."""
    def getCheckpointInterval(self) -> int:
        """Gets checkpointInterval: epochs between two checkpoints (>= 1)."""
    def setCheckpointInterval(self, value: int) -> Self:
        """Sets checkpointInterval: epochs between two checkpoints (>= 1)."""
    def getCheckpointSteps(self) -> int:
        """Gets checkpointSteps: steps between two checkpoints within an epoch (>= 1), rounded up to whole calls of
        stepsPerExecution steps. Unset: checkpoints at the ends of epochs only."""
    def setCheckpointSteps(self, value: int) -> Self:
        """Sets checkpointSteps: steps between two checkpoints within an epoch (>= 1), rounded up to whole calls of
        stepsPerExecution steps. Unset: checkpoints at the ends of epochs only."""
    def getResume(self) -> str:
        """Gets resume: 'auto' resumes from checkpoints of the same fit in checkpointDir; 'never' discards them and
        starts over."""
    def setResume(self, value: str) -> Self:
        """Sets resume: 'auto' resumes from checkpoints of the same fit in checkpointDir; 'never' discards them and
        starts over."""
    def getHandleNonFiniteLoss(self) -> str:
        """Gets handleNonFiniteLoss: what to do when the loss, the validation loss or a weight becomes NaN or infinite:
        'error' or 'keep' training."""
    def setHandleNonFiniteLoss(self, value: str) -> Self:
        """Sets handleNonFiniteLoss: what to do when the loss, the validation loss or a weight becomes NaN or infinite:
        'error' or 'keep' training."""
    def getStallTimeout(self) -> float:
        """Gets stallTimeout: seconds (> 0) after which a rank that makes no progress fails the attempt, and Spark
        starts the ranks again. The first 16 steps, 16 steps of validation and a callback must each take less; a
        checkpoint that takes half of it is given up, with a note."""
    def setStallTimeout(self, value: float) -> Self:
        """Sets stallTimeout: seconds (> 0) after which a rank that makes no progress fails the attempt, and Spark
        starts the ranks again. The first 16 steps, 16 steps of validation and a callback must each take less; a
        checkpoint that takes half of it is given up, with a note."""
    def getNumTrainWorkers(self) -> int:
        """Gets numTrainWorkers: ranks (>= 1): tasks that run at the same time."""
    def setNumTrainWorkers(self, value: int) -> Self:
        """Sets numTrainWorkers: ranks (>= 1): tasks that run at the same time."""
    def getUseBarrier(self) -> bool:
        """Gets useBarrier: run the ranks as the tasks of a barrier stage of Spark; False: as those of an ordinary
        stage, which the driver keeps together. With spark.dynamicAllocation.enabled, only False is possible."""
    def setUseBarrier(self, value: bool) -> Self:
        """Sets useBarrier: run the ranks as the tasks of a barrier stage of Spark; False: as those of an ordinary
        stage, which the driver keeps together. With spark.dynamicAllocation.enabled, only False is possible."""
    def getUseGpu(self) -> bool:
        """Gets useGpu: train each rank on the GPU that Spark assigned to its task."""
    def setUseGpu(self, value: bool) -> Self:
        """Sets useGpu: train each rank on the GPU that Spark assigned to its task."""
    def getGradientCompression(self) -> str:
        """Gets gradientCompression: how gradients travel between ranks: 'none' (unchanged) or 'fp16' (half the bytes,
        three digits)."""
    def setGradientCompression(self, value: str) -> Self:
        """Sets gradientCompression: how gradients travel between ranks: 'none' (unchanged) or 'fp16' (half the bytes,
        three digits)."""
    def getGradientAccumulationSteps(self) -> int:
        """Gets gradientAccumulationSteps: steps (>= 1) whose gradients are averaged into one update: a batch that is so
        many times larger."""
    def setGradientAccumulationSteps(self, value: int) -> Self:
        """Sets gradientAccumulationSteps: steps (>= 1) whose gradients are averaged into one update: a batch that is so
        many times larger."""
    def getDtypePolicy(self) -> str:
        """Gets dtypePolicy: Keras dtype policy while training: 'mixed_float16' (with loss scaling) and 'mixed_bfloat16'
        compute in half precision on float32 weights; 'float32'. Unset: each layer's own. The trained network has its
        own again."""
    def setDtypePolicy(self, value: str) -> Self:
        """Sets dtypePolicy: Keras dtype policy while training: 'mixed_float16' (with loss scaling) and 'mixed_bfloat16'
        compute in half precision on float32 weights; 'float32'. Unset: each layer's own. The trained network has its
        own again."""
    def getJitCompile(self) -> bool:
        """Gets jitCompile: compile loss and gradients with XLA (mostly for GPUs)."""
    def setJitCompile(self, value: bool) -> Self:
        """Sets jitCompile: compile loss and gradients with XLA (mostly for GPUs)."""
    def getStepsPerExecution(self) -> int:
        """Gets stepsPerExecution: steps per call of TensorFlow (>= 1); callbacks, progress and checkpoints run between
        calls. Unset: 16."""
    def setStepsPerExecution(self, value: int) -> Self:
        """Sets stepsPerExecution: steps per call of TensorFlow (>= 1); callbacks, progress and checkpoints run between
        calls. Unset: 16."""
    def getHorovodOptions(self) -> dict[str, Any]:
        """Gets horovodOptions: Horovod settings of every rank: fusionThreshold (bytes), cycleTime (ms), timeline (a
        file on rank 0's host), autotune (bool), networkInterface (a name such as eth0), and HOROVOD_... and NCCL_...
        variables."""
    def setHorovodOptions(self, value: dict[str, Any]) -> Self:
        """Sets horovodOptions: Horovod settings of every rank: fusionThreshold (bytes), cycleTime (ms), timeline (a
        file on rank 0's host), autotune (bool), networkInterface (a name such as eth0), and HOROVOD_... and NCCL_...
        variables."""
    def getFeatureLayers(self) -> list[str]:
        """Gets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def setFeatureLayers(self, value: list[str]) -> Self:
        """Sets featureLayers: layers whose activations become Vector columns, computed in one forward pass with the
        predictions. A layer of a nested model is named 'outer/inner', or 'inner' where that is unique."""
    def getOutputCols(self) -> list[str]:
        """Gets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def setOutputCols(self, value: list[str]) -> Self:
        """Sets outputCols: names of the columns of featureLayers, one each. Unset: the layers' names."""
    def getPredictionCol(self) -> str:
        """Gets predictionCol: output column of the predictions; '' omits it."""
    def setPredictionCol(self, value: str) -> Self:
        """Sets predictionCol: output column of the predictions; '' omits it."""
    def getProbabilityCol(self) -> str:
        """Gets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def setProbabilityCol(self, value: str) -> Self:
        """Sets probabilityCol: output column of a classifier's probabilities; '' omits it."""
    def getRawPredictionCol(self) -> str:
        """Gets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def setRawPredictionCol(self, value: str) -> Self:
        """Sets rawPredictionCol: output column of a classifier's logits or log-probabilities; '' omits it."""
    def getVectorType(self) -> str:
        """Gets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def setVectorType(self, value: str) -> Self:
        """Sets vectorType: type of output columns with several numbers: 'vector' (Spark ML's, which its evaluators and
        stages take) or 'array' (array<float>, half the bytes, for tables and SQL)."""
    def getPredictedLabelCol(self) -> str:
        """Gets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def setPredictedLabelCol(self, value: str) -> Self:
        """Sets predictedLabelCol: output column of the name of the predicted class, a string, of the first output.
        Unset: none."""
    def getLabels(self) -> list[str]:
        """Gets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def setLabels(self, value: list[str]) -> Self:
        """Sets labels: names of the classes of the first output, in their order. Unset: those that StringIndexer has
        left in the metadata of the label column of a fit."""
    def getThresholds(self) -> list[float]:
        """Gets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def setThresholds(self, value: list[float]) -> Self:
        """Sets thresholds: a number (>= 0, at most one of them 0) per class of the first output: the class with the
        largest probability / threshold is predicted. Unset: the most probable class."""
    def getHandleInvalid(self) -> str:
        """Gets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def setHandleInvalid(self, value: str) -> Self:
        """Sets handleInvalid: what to do with rows that contain a null, a NaN, an infinite number, one that the
        network's input can't hold, or the wrong number of values: 'error' (raise an error that names row and column),
        'skip' (drop them) or 'keep' (NaN in, NaN out)."""
    def getPaddingValue(self) -> float:
        """Gets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def setPaddingValue(self, value: float) -> Self:
        """Sets paddingValue: number at the end of rows that are shorter than the longest of their batch, for inputs
        with an unknown dimension; strings are padded with ''. A Masking layer's mask_value lets the network ignore
        it."""
    def getPredictBatchSize(self) -> int:
        """Gets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def setPredictBatchSize(self, value: int) -> Self:
        """Sets predictBatchSize: rows per forward pass in transform (>= 1)."""
    def getHandleMismatch(self) -> str:
        """Gets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def setHandleMismatch(self, value: str) -> Self:
        """Sets handleMismatch: what to do when the outputs of a loaded model differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def getProgress(self) -> bool:
        """Gets progress: show a progress bar, and a line per epoch, on standard error."""
    def setProgress(self, value: bool) -> Self:
        """Sets progress: show a progress bar, and a line per epoch, on standard error."""

class ImageAccessors:
    """Getters and setters of ImageAssembler's Params."""
    def setParams(
        self,
        *,
        inputCol: str | None = ...,
        outputCol: str | None = ...,
        height: int | None = ...,
        width: int | None = ...,
        channels: int | None = ...,
        resize: str | None = ...,
        outputType: str | None = ...,
        handleInvalid: str | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def getInputCol(self) -> str:
        """Gets inputCol: column of images: whole files (binary), or the structs of Spark's source "image"."""
    def setInputCol(self, value: str) -> Self:
        """Sets inputCol: column of images: whole files (binary), or the structs of Spark's source "image"."""
    def getOutputCol(self) -> str:
        """Gets outputCol: output column: height x width x channels values from 0 to 255, in row-major order with the
        channels last."""
    def setOutputCol(self, value: str) -> Self:
        """Sets outputCol: output column: height x width x channels values from 0 to 255, in row-major order with the
        channels last."""
    def getHeight(self) -> int:
        """Gets height: height of the output in pixels (>= 1)."""
    def setHeight(self, value: int) -> Self:
        """Sets height: height of the output in pixels (>= 1)."""
    def getWidth(self) -> int:
        """Gets width: width of the output in pixels (>= 1)."""
    def setWidth(self, value: int) -> Self:
        """Sets width: width of the output in pixels (>= 1)."""
    def getChannels(self) -> int:
        """Gets channels: 3 (red, green, blue) or 1 (gray); images of the other kind are converted."""
    def setChannels(self, value: int) -> Self:
        """Sets channels: 3 (red, green, blue) or 1 (gray); images of the other kind are converted."""
    def getResize(self) -> str:
        """Gets resize: 'stretch' to height and width, 'crop' (scale the image to cover them and keep its center) or
        'none' (keep the center; smaller images are invalid)."""
    def setResize(self, value: str) -> Self:
        """Sets resize: 'stretch' to height and width, 'crop' (scale the image to cover them and keep its center) or
        'none' (keep the center; smaller images are invalid)."""
    def getOutputType(self) -> str:
        """Gets outputType: 'uint8' (a binary column, one byte per value) or 'float' (an array of floats, 4 times the
        size)."""
    def setOutputType(self, value: str) -> Self:
        """Sets outputType: 'uint8' (a binary column, one byte per value) or 'float' (an array of floats, 4 times the
        size)."""
    def getHandleInvalid(self) -> str:
        """Gets handleInvalid: what to do with rows that are null, can't be decoded (by Spark, where it has read them),
        or exceed PIL.Image.MAX_IMAGE_PIXELS (against decompression bombs): 'error', 'skip' (drop them) or 'keep' (as
        null)."""
    def setHandleInvalid(self, value: str) -> Self:
        """Sets handleInvalid: what to do with rows that are null, can't be decoded (by Spark, where it has read them),
        or exceed PIL.Image.MAX_IMAGE_PIXELS (against decompression bombs): 'error', 'skip' (drop them) or 'keep' (as
        null)."""

class VocabularyAccessors:
    """Getters and setters of Vocabulary's Params."""
    def setParams(
        self,
        *,
        inputCol: str | None = ...,
        outputCol: str | None = ...,
        targetCol: str | None = ...,
        markEnds: bool | None = ...,
        maxWords: int | None = ...,
        minCount: int | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def getInputCol(self) -> str:
        """Gets inputCol: input column: a string, which is split at white space, or an array of strings."""
    def setInputCol(self, value: str) -> Self:
        """Sets inputCol: input column: a string, which is split at white space, or an array of strings."""
    def getOutputCol(self) -> str:
        """Gets outputCol: output column: an array of the words' ids; null for null."""
    def setOutputCol(self, value: str) -> Self:
        """Sets outputCol: output column: an array of the words' ids; null for null."""
    def getTargetCol(self) -> str:
        """Gets targetCol: column for teacher forcing: outputCol then has all ids but the last, targetCol all but the
        first. Unset: none."""
    def setTargetCol(self, value: str) -> Self:
        """Sets targetCol: column for teacher forcing: outputCol then has all ids but the last, targetCol all but the
        first. Unset: none."""
    def getMarkEnds(self) -> bool:
        """Gets markEnds: whether [START] is put before the words, and [END] behind them."""
    def setMarkEnds(self, value: bool) -> Self:
        """Sets markEnds: whether [START] is put before the words, and [END] behind them."""
    def getMaxWords(self) -> int:
        """Gets maxWords: maximum number of words, not counting the four special ones (>= 1). Unset: no limit."""
    def setMaxWords(self, value: int) -> Self:
        """Sets maxWords: maximum number of words, not counting the four special ones (>= 1). Unset: no limit."""
    def getMinCount(self) -> int:
        """Gets minCount: number of times that a word must occur to get an id (>= 1)."""
    def setMinCount(self, value: int) -> Self:
        """Sets minCount: number of times that a word must occur to get an id (>= 1)."""

class VocabularyModelAccessors:
    """Getters and setters of VocabularyModel's Params."""
    def setParams(
        self,
        *,
        inputCol: str | None = ...,
        outputCol: str | None = ...,
        targetCol: str | None = ...,
        markEnds: bool | None = ...,
        vocabulary: Any = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def getInputCol(self) -> str:
        """Gets inputCol: input column: a string, which is split at white space, or an array of strings."""
    def setInputCol(self, value: str) -> Self:
        """Sets inputCol: input column: a string, which is split at white space, or an array of strings."""
    def getOutputCol(self) -> str:
        """Gets outputCol: output column: an array of the words' ids; null for null."""
    def setOutputCol(self, value: str) -> Self:
        """Sets outputCol: output column: an array of the words' ids; null for null."""
    def getTargetCol(self) -> str:
        """Gets targetCol: column for teacher forcing: outputCol then has all ids but the last, targetCol all but the
        first. Unset: none."""
    def setTargetCol(self, value: str) -> Self:
        """Sets targetCol: column for teacher forcing: outputCol then has all ids but the last, targetCol all but the
        first. Unset: none."""
    def getMarkEnds(self) -> bool:
        """Gets markEnds: whether [START] is put before the words, and [END] behind them."""
    def setMarkEnds(self, value: bool) -> Self:
        """Sets markEnds: whether [START] is put before the words, and [END] behind them."""
    def getVocabulary(self) -> list[str]:
        """Gets vocabulary: the words in the order of their ids, of which ['', '[UNK]', '[START]', '[END]'] are the
        first, or a VocabularyModel that has them."""
    def setVocabulary(self, value: Any) -> Self:
        """Sets vocabulary: the words in the order of their ids, of which ['', '[UNK]', '[START]', '[END]'] are the
        first, or a VocabularyModel that has them."""

class DecoderAccessors:
    """Getters and setters of SequenceDecoder's Params."""
    def setParams(
        self,
        *,
        model: Any = ...,
        vocabulary: Any = ...,
        inputCols: list[str] | None = ...,
        wordsInput: str | None = ...,
        outputCol: str | None = ...,
        logProbabilityCol: str | None = ...,
        beamWidth: int | None = ...,
        maxLength: int | None = ...,
        handleInvalid: str | None = ...,
        predictBatchSize: int | None = ...,
        handleMismatch: str | None = ...,
    ) -> Self:
        """Sets any of the Params by keyword, as the constructor does; None unsets one."""
    def setModel(self, value: Any) -> Self:
        """Sets model: the network: a built keras.Model, the path of a .keras file, or a DeepNetModel."""
    def getVocabulary(self) -> list[str]:
        """Gets vocabulary: the words in the order of their ids, of which ['', '[UNK]', '[START]', '[END]'] are the
        first, or a VocabularyModel that has them."""
    def setVocabulary(self, value: Any) -> Self:
        """Sets vocabulary: the words in the order of their ids, of which ['', '[UNK]', '[START]', '[END]'] are the
        first, or a VocabularyModel that has them."""
    def getInputCols(self) -> list[str]:
        """Gets inputCols: input columns, one per input of the network except that of the words, as in DeepNetModel."""
    def setInputCols(self, value: list[str]) -> Self:
        """Sets inputCols: input columns, one per input of the network except that of the words, as in DeepNetModel."""
    def getWordsInput(self) -> str:
        """Gets wordsInput: name of the network's input that takes the words so far. Unset: the only one that goes into
        an Embedding."""
    def setWordsInput(self, value: str) -> Self:
        """Sets wordsInput: name of the network's input that takes the words so far. Unset: the only one that goes into
        an Embedding."""
    def getOutputCol(self) -> str:
        """Gets outputCol: output column of the texts: words with spaces between them."""
    def setOutputCol(self, value: str) -> Self:
        """Sets outputCol: output column of the texts: words with spaces between them."""
    def getLogProbabilityCol(self) -> str:
        """Gets logProbabilityCol: output column of the natural logarithms of the texts' probabilities; '' omits it."""
    def setLogProbabilityCol(self, value: str) -> Self:
        """Sets logProbabilityCol: output column of the natural logarithms of the texts' probabilities; '' omits it."""
    def getBeamWidth(self) -> int:
        """Gets beamWidth: number of texts that beam search keeps after each word (>= 1); 1 is greedy search."""
    def setBeamWidth(self, value: int) -> Self:
        """Sets beamWidth: number of texts that beam search keeps after each word (>= 1); 1 is greedy search."""
    def getMaxLength(self) -> int:
        """Gets maxLength: maximum number of words of a text, [END] included (>= 1)."""
    def setMaxLength(self, value: int) -> Self:
        """Sets maxLength: maximum number of words of a text, [END] included (>= 1)."""
    def getHandleInvalid(self) -> str:
        """Gets handleInvalid: what to do with bad rows, as in DeepNetModel: 'error', 'skip' (drop them) or 'keep'
        (null)."""
    def setHandleInvalid(self, value: str) -> Self:
        """Sets handleInvalid: what to do with bad rows, as in DeepNetModel: 'error', 'skip' (drop them) or 'keep'
        (null)."""
    def getPredictBatchSize(self) -> int:
        """Gets predictBatchSize: rows per batch (>= 1); a forward pass has up to beamWidth times as many."""
    def setPredictBatchSize(self, value: int) -> Self:
        """Sets predictBatchSize: rows per batch (>= 1); a forward pass has up to beamWidth times as many."""
    def getHandleMismatch(self) -> str:
        """Gets handleMismatch: what to do when the outputs of a loaded network differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
    def setHandleMismatch(self, value: str) -> Self:
        """Sets handleMismatch: what to do when the outputs of a loaded network differ from those recorded when it was
        saved: 'warn', 'error' or 'ignore' (no check)."""
