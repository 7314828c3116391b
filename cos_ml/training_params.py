"""The Params of a training, which DeepNetEstimator sets and a trained DeepNetModel keeps (driver side)."""

from __future__ import annotations

from pyspark.ml.param import shared

from cos_ml.accessors import TrainingAccessors
from cos_ml.converters import (
    boolean,
    class_weights,
    fraction,
    integer,
    keras_callbacks,
    keras_objects,
    keras_optimizer,
    layer_rates,
    loss_weights,
    names,
    one_of,
    path,
    positive_number,
    string,
)
from cos_ml.job import horovod_env
from cos_ml.params import DeclaredParam, ModelParams

__all__ = ["TrainingParams"]


class TrainingParams(
    TrainingAccessors,
    ModelParams,
    shared.HasValidationIndicatorCol,
    shared.HasLearningRate,
    shared.HasBatchSize,
    shared.HasSeed,
    shared.HasNumTrainWorkers,
    shared.HasCheckpointInterval,
    setters=False,
):
    """The Params of a training: on a model they tell how it was trained, so it has no setters of them."""

    validationIndicatorCol = DeclaredParam(string, "boolean column: true rows validate every epoch instead of training")
    validationFraction = DeclaredParam(
        fraction,
        "fraction of the rows (> 0, < 1) to validate with instead of training on them, in place of "
        "validationIndicatorCol. A hash of seed and the row's values selects them, so equal rows stay together and "
        "every attempt selects the same rows",
        spec="validation_fraction",
        identifies=True,
    )
    validationSteps = DeclaredParam(
        integer(1),
        "also validate within epochs, after every so many steps (>= 1) of the training; the history then has an entry "
        "for each validation. Unset: validate at the ends of epochs only",
        spec="validation_steps",
        identifies=True,
    )
    loss = DeclaredParam(keras_objects, "Keras identifier or serializable object. Unset: a compiled model's")
    metrics = DeclaredParam(keras_objects, "Keras identifiers or serializable objects. Unset: a compiled model's", [])
    lossWeights = DeclaredParam(loss_weights, "weight of each output's loss. Unset: a compiled model's")
    optimizer = DeclaredParam(
        keras_optimizer, "Keras identifier or serializable object. A compiled model's own replaces the default", "adam"
    )
    classWeights = DeclaredParam(
        class_weights,
        "weight (>= 0) of each class in the loss of the training rows, times weightCol's: a dict by class (classes "
        "that it lacks: 1), or 'balanced': rows / (classes that occur * rows of the class)",
        identifies=True,
    )
    learningRate = DeclaredParam(
        positive_number,
        "learning rate in place of the optimizer's (> 0); never scaled by the number of ranks",
        spec="learning_rate",
        identifies=True,
    )
    layerLearningRates = DeclaredParam(
        layer_rates,
        "factors (>= 0) that multiply the learning rate: a dict by the name of a layer, a model inside the model, or "
        "one weight, such as 'conv1/bias'. The most specific name applies; 0 freezes the weights. Unset: 1 for all",
        identifies=True,
    )
    batchSize = DeclaredParam(
        integer(1),
        "rows per rank and step (>= 1); the global batch is batchSize * numTrainWorkers",
        32,
        spec="batch_size",
        identifies=True,
    )
    epochs = DeclaredParam(integer(1), "passes over the training rows (>= 1)", 1, spec="epochs", identifies=True)
    maxSteps = DeclaredParam(
        integer(1),
        "stop after this many steps (>= 1), even within an epoch, or after epochs, whichever comes first. If epochs is "
        "not set, maxSteps alone decides",
        spec="max_steps",
        identifies=True,
    )
    shuffle = DeclaredParam(boolean, "reorder each rank's rows in every epoch", True, spec="shuffle", identifies=True)
    seed = DeclaredParam(integer(-(2**63)), "seed of row order and of Dropout", 0, spec="seed", identifies=True)
    patience = DeclaredParam(
        integer(0),
        "stop after this many epochs (>= 0) without a better val_loss (loss, if there are no validation rows). With "
        "validationSteps, each validation counts, not only those at the ends of epochs. Unset: never",
        spec="patience",
        identifies=True,
    )
    restoreBestWeights = DeclaredParam(
        boolean,
        "end with the weights that had the best val_loss (loss, if there are no validation rows) at the end of an "
        "epoch or, with validationSteps, at any validation, not with the last weights",
        False,
        spec="restore_best",
        identifies=True,
    )
    halvingFactor = DeclaredParam(
        integer(2),
        "successive halving in a grid (fitMultiple): after each rung only the best 1 / halvingFactor (>= 2) of the "
        "candidates by val_loss (loss, if there are no validation rows) train on. Unset: all train to their end",
        spec="halving_factor",
    )
    halvingMinEpochs = DeclaredParam(
        integer(1),
        "epochs (>= 1) of the first rung of halvingFactor; each further rung is halvingFactor times as many",
        1,
        spec="halving_min_epochs",
    )
    callbacks = DeclaredParam(
        keras_callbacks,
        "Keras callbacks that run in the ranks, each made with cos_ml.callback(class, arguments)",
        [],
        accepts="list[Any]",
        identifies=True,
    )
    frozenLayers = DeclaredParam(names, "layers, or models inside the model, whose weights do not change", [])
    feed = DeclaredParam(
        one_of("arrow", "parquet", "petastorm"),
        "how rows reach the ranks: 'arrow' (from Spark to each rank's local disk), 'parquet' (written once as Parquet "
        "under cacheDir and read from there in every epoch) or 'petastorm' (the same, read by petastorm)",
        "arrow",
        identifies=True,
    )
    cacheDir = DeclaredParam(
        path,
        "where the feeds 'parquet' and 'petastorm' write their files: a URL that Spark, fsspec and all ranks can open",
        accepts="str | PathLike[str]",
    )
    keepCache = DeclaredParam(boolean, "keep the files in cacheDir after the fit", False)
    cacheRows = DeclaredParam(
        one_of("none", "disk"),
        "'disk': each rank copies the rows that it reads of Parquet files to its local disk and reads them there in "
        "later epochs, as long as a tenth of that disk stays free; 'none': it reads the files in every epoch",
        "none",
    )
    checkpointDir = DeclaredParam(
        path,
        "folder for this fit's checkpoints: a URL that fsspec can write and all executors reach. The same fit, started "
        "again after a failure, resumes from there. Unset: no checkpoints",
        accepts="str | PathLike[str]",
    )
    checkpointInterval = DeclaredParam(integer(1), "epochs between two checkpoints (>= 1)", 1)
    checkpointSteps = DeclaredParam(
        integer(1),
        "steps between two checkpoints within an epoch (>= 1), rounded up to whole calls of stepsPerExecution steps. "
        "Unset: checkpoints at the ends of epochs only",
        identifies=True,
    )
    resume = DeclaredParam(
        one_of("auto", "never"),
        "'auto' resumes from checkpoints of the same fit in checkpointDir; 'never' discards them and starts over",
        "auto",
    )
    handleNonFiniteLoss = DeclaredParam(
        one_of("error", "keep"),
        "what to do when the loss, the validation loss or a weight becomes NaN or infinite: 'error' or 'keep' training",
        "error",
    )
    stallTimeout = DeclaredParam(
        positive_number,
        "seconds (> 0) after which a rank that makes no progress fails the attempt, and Spark starts the ranks again. "
        "The first 16 steps, 16 steps of validation and a callback must each take less; a checkpoint that takes half "
        "of it is given up, with a note",
        1800.0,
        spec="stall_timeout",
    )
    numTrainWorkers = DeclaredParam(integer(1), "ranks (>= 1): tasks that run at the same time", 1, identifies=True)
    useBarrier = DeclaredParam(
        boolean,
        "run the ranks as the tasks of a barrier stage of Spark; False: as those of an ordinary stage, which the "
        "driver keeps together. With spark.dynamicAllocation.enabled, only False is possible",
        True,
    )
    useGpu = DeclaredParam(boolean, "train each rank on the GPU that Spark assigned to its task", False, spec="use_gpu")
    gradientCompression = DeclaredParam(
        one_of("none", "fp16"),
        "how gradients travel between ranks: 'none' (unchanged) or 'fp16' (half the bytes, three digits)",
        "none",
        spec="compression",
        identifies=True,
    )
    gradientAccumulationSteps = DeclaredParam(
        integer(1),
        "steps (>= 1) whose gradients are averaged into one update: a batch that is so many times larger",
        1,
        spec="accumulation",
        identifies=True,
    )
    dtypePolicy = DeclaredParam(
        one_of("float32", "mixed_float16", "mixed_bfloat16"),
        "Keras dtype policy while training: 'mixed_float16' (with loss scaling) and 'mixed_bfloat16' compute in half "
        "precision on float32 weights; 'float32'. Unset: each layer's own. The trained network has its own again",
        spec="dtype_policy",
        identifies=True,
    )
    jitCompile = DeclaredParam(
        boolean, "compile loss and gradients with XLA (mostly for GPUs)", False, spec="jit_compile"
    )
    stepsPerExecution = DeclaredParam(
        integer(1),
        "steps per call of TensorFlow (>= 1); callbacks, progress and checkpoints run between calls. Unset: 16",
        spec="steps_per_execution",
        identifies=True,
    )
    horovodOptions = DeclaredParam(
        horovod_env.converted,
        "Horovod settings of every rank: fusionThreshold (bytes), cycleTime (ms), timeline (a file on rank 0's host), "
        "autotune (bool), networkInterface (a name such as eth0), and HOROVOD_... and NCCL_... variables",
        {},
    )
    progress = DeclaredParam(boolean, "show a progress bar, and a line per epoch, on standard error", True)
