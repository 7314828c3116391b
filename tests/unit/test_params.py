import dataclasses
import inspect
import json
import runpy

import numpy as np
import pytest
from pyspark.ml.param import Param
from pyspark.ml.tuning import ParamGridBuilder

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler
from cos_ml.errors import InvalidInputError, ParamTypeError
from cos_ml.estimator_params import EstimatorParams
from cos_ml.network.archive import Network
from cos_ml.network.keras_import import import_keras
from cos_ml.network.signature import input_columns
from cos_ml.params import DeclaredParam, ModelParams
from cos_ml.spec import TrainSpec
from cos_ml.text import SequenceDecoder, Vocabulary, VocabularyModel
from tests.support.sessions import ROOT

keras = import_keras()

# The defaults of the public contract; None where a Param is not set.
DEFAULTS = {
    "model": None,
    "initialWeights": None,
    "featuresCol": "features",
    "inputCols": None,
    "labelCol": "label",
    "labelCols": None,
    "weightCol": None,
    "validationIndicatorCol": None,
    "validationFraction": None,
    "loss": None,
    "metrics": [],
    "lossWeights": None,
    "optimizer": "adam",
    "classWeights": None,
    "layerLearningRates": None,
    "learningRate": None,
    "batchSize": 32,
    "epochs": 1,
    "shuffle": True,
    "numTrainWorkers": 1,
    "useBarrier": True,
    "useGpu": False,
    "featureLayers": [],
    "outputCols": None,
    "predictionCol": "prediction",
    "probabilityCol": "probability",
    "rawPredictionCol": "rawPrediction",
    "vectorType": "vector",
    "predictedLabelCol": None,
    "labels": None,
    "thresholds": None,
    "handleInvalid": "error",
    "paddingValue": 0.0,
    "predictBatchSize": 1024,
    "handleMismatch": "warn",
    "patience": None,
    "restoreBestWeights": False,
    "halvingFactor": None,
    "halvingMinEpochs": 1,
    "callbacks": [],
    "frozenLayers": [],
    "checkpointDir": None,
    "checkpointInterval": 1,
    "checkpointSteps": None,
    "resume": "auto",
    "handleNonFiniteLoss": "error",
    "stallTimeout": 1800.0,
    "gradientCompression": "none",
    "gradientAccumulationSteps": 1,
    "dtypePolicy": None,
    "jitCompile": False,
    "stepsPerExecution": None,
    "horovodOptions": {},
}
SHARED = [
    "model", "featuresCol", "inputCols", "labelCol", "labelCols", "weightCol", "featureLayers", "outputCols",
    "predictionCol", "probabilityCol", "rawPredictionCol", "vectorType", "predictedLabelCol", "labels", "thresholds",
    "handleInvalid", "paddingValue", "predictBatchSize", "handleMismatch",
]  # fmt: skip
MODELS_OWN = {  # of DeepNetModel alone, with their defaults
    "attributionsCol": None, "attributionTarget": None, "attributionBaseline": 0.0, "attributionSteps": 50,
}  # fmt: skip
MODELS_VALUES = {
    "attributionsCol": "why", "attributionTarget": "cat", "attributionBaseline": {"a": 0.5, "b": [0.0, 1.0]},
    "attributionSteps": 20,
}  # fmt: skip
OF_MODEL = [*SHARED, *MODELS_OWN]
VALUES = {
    "featuresCol": "pixels",
    "inputCols": ["a", "b"],
    "labelCol": "digit",
    "labelCols": ["y", "z"],
    "weightCol": "weight",
    "validationIndicatorCol": "held",
    "validationFraction": 0.25,
    "loss": "mse",
    "metrics": ["mae"],
    "lossWeights": [0.5, 2.0],
    "optimizer": "sgd",
    "classWeights": {0: 1.0, 1: 2.5},
    "layerLearningRates": {"hidden": 0.5, "out/bias": 0.0},
    "learningRate": 0.5,
    "batchSize": 64,
    "epochs": 3,
    "maxSteps": 70,
    "validationSteps": 20,
    "shuffle": False,
    "seed": 7,
    "numTrainWorkers": 2,
    "useBarrier": False,
    "useGpu": True,
    "featureLayers": ["hidden"],
    "outputCols": ["h"],
    "predictionCol": "p",
    "probabilityCol": "",
    "rawPredictionCol": "r",
    "vectorType": "array",
    "predictedLabelCol": "word",
    "labels": ["cat", "dog"],
    "thresholds": [0.5, 0.25],
    "handleInvalid": "skip",
    "paddingValue": -1.0,
    "predictBatchSize": 16,
    "progress": False,
    "handleMismatch": "ignore",
    "patience": 2,
    "restoreBestWeights": True,
    "halvingFactor": 3,
    "halvingMinEpochs": 2,
    "callbacks": [{"class": "keras.callbacks:TerminateOnNaN", "ranks": "all", "arguments": {}}],
    "frozenLayers": ["hidden"],
    "feed": "petastorm",
    "cacheDir": "file:///tmp/cache",
    "keepCache": True,
    "cacheRows": "disk",
    "checkpointDir": "file:///tmp/states",
    "checkpointInterval": 2,
    "checkpointSteps": 100,
    "resume": "never",
    "handleNonFiniteLoss": "keep",
    "stallTimeout": 60.0,
    "gradientCompression": "fp16",
    "gradientAccumulationSteps": 4,
    "dtypePolicy": "mixed_bfloat16",
    "jitCompile": True,
    "stepsPerExecution": 8,
    "horovodOptions": {"cycleTime": 2.5, "NCCL_DEBUG": "WARN"},
}


def accessor(kind, name):
    return f"{kind}{name[0].upper()}{name[1:]}"


def stages():
    of_model = [name for name in OF_MODEL if name != "model"]
    return [(DeepNetEstimator, name) for name in VALUES] + [(DeepNetModel, name) for name in of_model]


# ── what follows from a declaration ───────────────────────────────────────────────────────────────────────────────────

STAGES = [DeepNetEstimator, DeepNetModel, ImageAssembler, SequenceDecoder, Vocabulary, VocabularyModel]
DECLARED = [(stage, param) for stage in STAGES for param in stage().params]


@pytest.mark.parametrize(("stage", "param"), DECLARED, ids=lambda value: getattr(value, "name", None))
def test_a_constructor_has_the_keyword_of_each_param_with_its_type_and_default(stage, param):
    assert isinstance(param, DeclaredParam)
    if stage is DeepNetModel and param.name not in OF_MODEL:
        return  # a Param of its training, which only the fit sets
    keyword = inspect.signature(stage.__init__).parameters[param.name]
    # None is "not set" in a signature, and stands for defaults that could change in place.
    assert keyword.default == (None if isinstance(param.default, (list, dict)) else param.default)
    optional = keyword.default is None and param.accepts != "Any"
    assert keyword.annotation == (f"{param.accepts} | None" if optional else param.accepts)


@pytest.mark.parametrize("stage", STAGES)
def test_a_constructor_has_no_other_keywords(stage):
    params = OF_MODEL if stage is DeepNetModel else [param.name for param in stage().params]
    assert set(inspect.signature(stage.__init__).parameters) == {"self", *params}


@pytest.mark.parametrize(("stage", "param"), DECLARED, ids=lambda value: getattr(value, "name", None))
def test_a_default_is_a_value_as_its_converter_returns_it(stage, param):
    if param.default is not None:
        converted = param.typeConverter(param.default)
        assert (converted, type(converted)) == (param.default, type(param.default))


def test_the_model_shares_params_of_the_estimator():
    assert issubclass(EstimatorParams, ModelParams)
    assert [param.name for param in ModelParams().params] == sorted(SHARED)
    own = {"initialWeights"}  # a network, and the trained one is the model's
    shared = {param.name for param in DeepNetEstimator().params} - own
    assert {param.name for param in DeepNetModel().params} == shared | {*MODELS_OWN}


def test_spec_fields_have_the_defaults_of_their_params():
    fields = {field.name: field.default for field in dataclasses.fields(TrainSpec)}
    declared = {param.spec: param for param in DeepNetEstimator().params if param.spec}
    assert len(declared) == sum(bool(param.spec) for param in DeepNetEstimator().params)
    for name, param in declared.items():
        if name != "steps_per_execution":  # unset by default, which the field resolves
            assert fields[name] == param.default, param.name
    by_hand = {"inputs", "labels", "weight", "validation", "compile", "modules", "frozen", "callbacks", "checkpoint",
               "stop_at_non_finite", "variables", "network", "name", "run_eagerly",
               "class_weights", "layer_rates"}  # fmt: skip
    assert set(declared) | by_hand == set(fields)
    assert not set(declared) & by_hand


def test_what_identifies_a_fit():
    # A Param added here, or removed, decides whether older checkpoints are resumed from.
    assert {param.name for param in DeepNetEstimator().params if param.identifies} == {
        "learningRate", "batchSize", "epochs", "shuffle", "seed", "handleInvalid", "callbacks", "patience",
        "restoreBestWeights", "numTrainWorkers", "feed", "checkpointSteps", "gradientCompression",
        "gradientAccumulationSteps", "dtypePolicy", "stepsPerExecution", "paddingValue", "classWeights",
        "layerLearningRates", "validationFraction", "maxSteps", "validationSteps",
    }  # fmt: skip


def test_stubs_and_reference_are_up_to_date():
    tool = runpy.run_path(str(ROOT / "tools/generate_params.py"))
    assert tool["STUB"].read_text() == tool["stub"](), "run: make params"
    assert tool["REFERENCE"].read_text() == tool["reference"](), "run: make params"
    assert "\n#### batchSize\n\n*`int`, default `32`*\n" in tool["reference"]()


@pytest.mark.parametrize("stage", STAGES)
def test_every_accessor_is_in_the_stub_or_in_the_class(stage):
    stub = (ROOT / "cos_ml/accessors.pyi").read_text()
    for param in stage().params:
        for method in (accessor("get", param.name), accessor("set", param.name)):
            if not hasattr(stage, method):
                assert (stage, method[:3], param.name in OF_MODEL) == (DeepNetModel, "set", False)
                continue
            by_hand = inspect.getsourcefile(getattr(stage, method)).endswith(("estimator_params.py", "params.py"))
            assert f"    def {method}(self" in stub or (by_hand and method not in param.generated), method


# ── defaults, setters, getters ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    estimator = DeepNetEstimator()
    param = getattr(estimator, name)
    assert not estimator.isSet(param)
    assert (estimator.getOrDefault(param) if estimator.hasDefault(param) else None) == DEFAULTS[name]


@pytest.mark.parametrize("name", OF_MODEL)
def test_defaults_of_the_model(name):
    model = DeepNetModel()
    param = getattr(model, name)
    assert (model.getOrDefault(param) if model.hasDefault(param) else None) == (DEFAULTS | MODELS_OWN)[name]


def test_the_seed_is_fixed():
    assert DeepNetEstimator().getSeed() == DeepNetEstimator().getSeed() == 0


@pytest.mark.parametrize("stage", [DeepNetEstimator, DeepNetModel])
def test_every_param_can_be_set_by_keyword_setter_and_set_params(stage):
    params = [name for name in dir(stage) if isinstance(getattr(stage, name), Param)]
    own = {"model", *MODELS_OWN} if stage is DeepNetModel else {"model", "initialWeights"}
    assert set(params) == set(VALUES) | own
    if stage is DeepNetModel:
        params = OF_MODEL
    keywords = stage.__init__.__wrapped__.__kwdefaults__
    assert set(keywords) == set(params)
    for name in params:
        assert callable(getattr(stage, accessor("set", name)))
        assert callable(getattr(stage, accessor("get", name)))
        assert getattr(stage, accessor("set", name)).__doc__
        assert getattr(stage, accessor("get", name)).__doc__


@pytest.mark.parametrize(("stage", "name"), stages())
def test_set_and_get(stage, name):
    made, value = stage(), (VALUES | MODELS_VALUES)[name]
    assert getattr(made, accessor("set", name))(value) is made
    assert getattr(made, accessor("get", name))() == value
    if name != "featureLayers":  # DeepNetModel looks for them in the network
        assert getattr(stage(**{name: value}), accessor("get", name))() == value
    made = stage()
    assert made.setParams(**{name: value}) is made
    assert getattr(made, accessor("get", name))() == value


@pytest.mark.parametrize("name", DeepNetEstimator.__init__.__wrapped__.__kwdefaults__)
def test_none_is_as_good_as_nothing(name):
    assert not DeepNetEstimator(**{name: None}).isSet(name)


def test_input_and_label_columns():
    estimator = DeepNetEstimator()
    assert estimator.input_columns() == ["features"]
    assert estimator.getLabelCols() == ["label"]
    estimator.setFeaturesCol("x").setLabelCol("y")
    assert estimator.input_columns() == ["x"]
    assert estimator.getLabelCols() == ["y"]
    estimator.setInputCols(["a", "b"]).setLabelCols(["c"])
    assert estimator.input_columns() == ["a", "b"]
    assert estimator.getLabelCols() == ["c"]


@pytest.mark.parametrize("stage", [DeepNetEstimator, DeepNetModel])
def test_the_model_param(stage, classifier, tmp_path):
    classifier.save(tmp_path / "classifier.keras")
    for given in (classifier, str(tmp_path / "classifier.keras"), DeepNetModel(model=classifier)):
        made = stage(model=given)
        mine = made.getModel()
        assert mine is not classifier
        assert all((a == b).all() for a, b in zip(mine.get_weights(), classifier.get_weights(), strict=True))
        mine.set_weights([weight * 0 for weight in mine.get_weights()])
        assert any(weight.any() for weight in made.getModel().get_weights())


def test_a_network_is_frozen_once(classifier):
    model = DeepNetModel(model=classifier)
    assert isinstance(model.getOrDefault("model"), Network)
    estimator = DeepNetEstimator(model=model)
    again = DeepNetEstimator(model=estimator.getOrDefault("model"))
    assert again.getOrDefault("model").getOrDefault("model") is model.getOrDefault("model")


def test_a_grid_may_hold_networks(classifier):
    estimator = DeepNetEstimator()
    grid = ParamGridBuilder().addGrid(estimator.model, [classifier]).addGrid(estimator.epochs, [1, 2]).build()
    assert [estimator.copy(extra).getEpochs() for extra in grid] == [1, 2]
    assert all(isinstance(extra[estimator.model], DeepNetModel) for extra in grid)


def test_a_trained_model_keeps_its_network_in_a_copy(classifier):
    """CrossValidator gives the grid's Params to the models too."""
    trained, pretrained = (DeepNetModel(model=classifier, predictBatchSize=2) for _ in range(2))
    trained.compiled = {"loss": "mse"}
    other = keras.models.clone_model(classifier)
    for model, kept in ((trained, True), (pretrained, False)):
        extra = {model.model: Network.of(other), model.predictBatchSize: 5}
        copied = model.copy(extra)
        assert copied.getPredictBatchSize() == 5
        assert (copied.getOrDefault("model") is model.getOrDefault("model")) == kept


def test_explain_params_is_for_people(classifier):
    for stage in (DeepNetEstimator(model=classifier, loss="mse"), DeepNetModel(model=classifier)):
        lines = stage.explainParams().splitlines()
        assert len(lines) == len(stage.params)
        assert max(map(len, lines)) < 500
        assert all(len(param.doc) > 10 for param in stage.params)


def test_a_model_without_the_layer_that_is_asked_for(classifier):
    with pytest.raises(InvalidInputError, match=r"no layer 'conv'.*'hidden'"):
        DeepNetModel(model=classifier, featureLayers=["conv"])


def test_no_summary():
    assert not DeepNetModel().hasSummary
    with pytest.raises(RuntimeError, match=r"No training summary available"):
        DeepNetModel().summary  # noqa: B018


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["batchSize", "epochs", "numTrainWorkers", "predictBatchSize"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, [1], float("nan"), float("inf")])
def test_integers(name, value):
    with pytest.raises(InvalidInputError) as error:
        DeepNetEstimator(**{name: value})
    assert str(error.value) == f"Param {name}: expected an integer >= 1, received {value!r}."


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float64(2)])
def test_integers_of_any_type(value):
    epochs = DeepNetEstimator(epochs=value).getEpochs()
    assert epochs == 2
    assert type(epochs) is int


@pytest.mark.parametrize("value", [0, -0.1, "0.1", True, float("nan"), float("inf"), [0.1]])
def test_learning_rate(value):
    with pytest.raises(InvalidInputError) as error:
        DeepNetEstimator(learningRate=value)
    assert str(error.value) == f"Param learningRate: expected a number > 0, received {value!r}."


@pytest.mark.parametrize("value", [1, 1.0, np.int64(1), np.float64(1)])
def test_learning_rate_of_any_type(value):
    rate = DeepNetEstimator(learningRate=value).getLearningRate()
    assert rate == 1
    assert type(rate) is float


@pytest.mark.parametrize("value", ["drop", "ERROR", "", 1])
@pytest.mark.parametrize("stage", [DeepNetEstimator, DeepNetModel])
def test_handle_invalid(stage, value):
    with pytest.raises(InvalidInputError) as error:
        stage(handleInvalid=value)
    assert str(error.value) == (f"Param handleInvalid: expected one of 'error', 'skip', 'keep', received {value!r}.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("featuresCol", 3),
        ("labelCol", ["label"]),
        ("weightCol", 3),
        ("validationIndicatorCol", True),
        ("inputCols", "features"),
        ("inputCols", [1]),
        ("labelCols", "label"),
        ("featureLayers", "hidden"),
        ("outputCols", "hidden"),
        ("predictionCol", 3),
        ("shuffle", "yes"),
        ("useBarrier", "no"),
        ("useGpu", 1),
        ("progress", 0),
        ("feed", "lmdb"),
        ("cacheDir", ""),
        ("cacheDir", 3),
        ("keepCache", "no"),
        ("cacheRows", "memory"),
        ("seed", "7"),
        ("seed", 1.5),
        ("featureLayers", ["a", "a"]),
        ("featureLayers", [""]),
        ("frozenLayers", "hidden"),
        ("restoreBestWeights", 1),
        ("patience", -1),
        ("callbacks", "TensorBoard"),
        ("handleMismatch", "fail"),
    ],
)
def test_wrong_types(name, value):
    # As the docstring of DeepNetEstimator says: InvalidInputError for a Param of the wrong type.
    estimator = DeepNetEstimator()
    for attempt in (
        lambda: DeepNetEstimator(**{name: value}),
        lambda: estimator.set(estimator.getParam(name), value),
        lambda: estimator.copy({estimator.getParam(name): value}),
    ):
        with pytest.raises(InvalidInputError) as error:
            attempt()
        assert name in str(error.value)
        assert repr(value) in str(error.value)


def test_not_a_network():
    with pytest.raises(InvalidInputError, match=r"Param model: expected a keras.Model, or the path.*'resnet'"):
        DeepNetEstimator(model="resnet")


def test_unknown_and_positional_arguments():
    with pytest.raises(TypeError):
        DeepNetEstimator(batch_size=3)
    with pytest.raises(TypeError):
        DeepNetEstimator("features")


@pytest.mark.parametrize(("stage", "param"), DECLARED, ids=lambda value: getattr(value, "name", None))
def test_a_wrong_type_is_a_type_error(stage, param):
    made, name, wrong = stage(), param.name, object()
    for attempt in (
        lambda: stage(**{name: wrong}),
        lambda: made.set(made.getParam(name), wrong),
        lambda: made.copy({made.getParam(name): wrong}),
        lambda: ParamGridBuilder().addGrid(made.getParam(name), [wrong]).build(),
        lambda: made.setParams(**{name: wrong}),
        lambda: getattr(made, accessor("set", name))(wrong),
    ):
        of_training = stage is DeepNetModel and name not in SHARED  # a model has no keyword and no setter for it
        with pytest.raises((TypeError, AttributeError) if of_training else ParamTypeError):
            attempt()
    assert not made.isSet(name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("loss", 5),
        ("loss", True),
        ("loss", {1: "mse"}),
        ("metrics", 0.5),
        ("metrics", ["mae", 3]),
        ("optimizer", ["adam"]),
        ("optimizer", 0.1),
        ("optimizer", keras.losses.Huber()),
        ("lossWeights", "mse"),
        ("lossWeights", ["1"]),
        ("lossWeights", {"a": True}),
        ("epochs", 2.5),
        ("inputCols", [1]),
        ("shuffle", np.bool_(True)),
        ("callbacks", [3]),
        ("horovodOptions", {"cycleTime": "1"}),
        ("horovodOptions", {"autotune": 1}),
    ],
)
def test_what_a_param_does_not_take(name, wrong):
    with pytest.raises(ParamTypeError, match=f"Param {name}"):
        DeepNetEstimator(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("learningRate", float("nan")), ("resume", "always"), ("inputCols", ["a", "a"]), ("cacheDir", ""),
     ("lossWeights", [float("inf")]), ("horovodOptions", {"cycleTime": -1}), ("horovodOptions", {"color": 1})],
)  # fmt: skip
def test_what_is_out_of_range_is_a_value_error(name, value):
    with pytest.raises(InvalidInputError) as error:
        DeepNetEstimator(**{name: value})
    assert not isinstance(error.value, TypeError)


def test_set_params_takes_what_the_constructor_takes():
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        DeepNetEstimator().setParams(epoch=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        DeepNetModel().setParams(epochs=1)


# ── Keras's objects ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value", "classes"),
    [
        ("loss", keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["SparseCategoricalCrossentropy"]),
        ("loss", {"a": "mse", "b": keras.losses.Huber(delta=2.0)}, ["Huber"]),
        ("loss", ["mse", keras.losses.Huber()], ["Huber"]),
        ("optimizer", keras.optimizers.Adam(1e-3, beta_1=0.8), ["Adam"]),
        ("optimizer", keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
         ["SGD", "ExponentialDecay"]),
        ("metrics", ["accuracy", keras.metrics.AUC(name="auc")], ["AUC"]),
        ("metrics", {"a": ["mae"], "b": [keras.metrics.MeanSquaredError()]}, ["MeanSquaredError"]),
        ("lossWeights", {"a": 1, "b": 0.5}, []),
    ],
)  # fmt: skip
def test_keras_objects_become_plain(name, value, classes):
    estimator = DeepNetEstimator(**{name: value})
    plain = getattr(estimator, accessor("get", name))()
    text = json.dumps(plain)
    assert json.loads(text) == plain
    assert all(f'"class_name": "{one}"' in text for one in classes)


def test_plain_objects_come_alive_again():
    loss = DeepNetEstimator(loss=keras.losses.BinaryCrossentropy(from_logits=True)).getLoss()
    assert keras.saving.deserialize_keras_object(loss).get_config()["from_logits"]
    assert DeepNetEstimator(loss=loss).getLoss() == loss


@pytest.mark.parametrize("loss", [keras.losses.Huber(delta=0.1), keras.losses.CosineSimilarity(axis=0)])
def test_a_loss_keeps_its_arguments(loss):
    # Keras 3.15 itself leaves these two out of what it serialises.
    again = keras.saving.deserialize_keras_object(DeepNetEstimator(loss=loss).getLoss())
    labels, outputs = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[3.0, 1.0], [1.0, 5.0]])
    assert float(again(labels, outputs)) == float(loss(labels, outputs))


@keras.saving.register_keras_serializable("cos_ml_unit_tests")
def registered_loss(y_true, y_pred):
    return keras.ops.abs(y_pred - y_true)


def test_a_registered_function_serializes():
    plain = DeepNetEstimator(loss=registered_loss).getLoss()
    assert json.loads(json.dumps(plain)) == plain
    assert keras.saving.deserialize_keras_object(plain) is registered_loss


def own_loss(y_true, y_pred):
    return y_pred - y_true


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning")
@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", own_loss), ("loss", lambda y_true, y_pred: y_pred), ("metrics", [own_loss]), ("optimizer", object())],
)
def test_what_does_not_serialize(name, value):
    with pytest.raises(InvalidInputError, match=rf"Param {name}: .*"):
        DeepNetEstimator(**{name: value})


# ── copies ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_has_its_own_values():
    estimator = DeepNetEstimator(**VALUES)
    other = estimator.copy({estimator.epochs: 9})
    assert other.uid == estimator.uid
    assert other.getEpochs() == 9
    assert estimator.getEpochs() == 3
    other.setBatchSize(1).setMetrics(["mse"])
    assert estimator.getBatchSize() == 64
    assert estimator.getMetrics() == ["mae"]


def test_lists_of_the_caller_are_not_kept():
    metrics, layers, inputs = ["mae"], ["hidden"], ["a"]
    estimator = DeepNetEstimator(metrics=metrics, featureLayers=layers, inputCols=inputs)
    for given in (metrics, layers, inputs):
        given.append("more")
    assert (estimator.getMetrics(), estimator.getFeatureLayers(), estimator.getInputCols()) == (
        ["mae"],
        ["hidden"],
        ["a"],
    )


@pytest.mark.parametrize("name", ["metrics", "featureLayers", "inputCols", "labelCols", "outputCols", "lossWeights"])
def test_a_value_is_not_changed_through_a_getter(name):
    estimator = DeepNetEstimator(**VALUES)
    getattr(estimator, accessor("get", name))().append("more")
    assert getattr(estimator, accessor("get", name))() == VALUES[name]


@pytest.mark.parametrize("name", ["metrics", "featureLayers", "inputCols", "labelCols", "outputCols", "lossWeights"])
def test_a_copy_shares_nothing_that_changes(name):
    estimator = DeepNetEstimator(**VALUES)
    getattr(estimator.copy(), accessor("get", name))().append("more")
    assert getattr(estimator, accessor("get", name))() == VALUES[name]


@pytest.mark.parametrize("name", ["metrics", "featureLayers"])
def test_defaults_are_not_changed_through_a_getter(name):
    estimator = DeepNetEstimator()
    getattr(estimator.copy(), accessor("get", name))().append("more")
    assert getattr(estimator, accessor("get", name))() == []


def test_a_copy_of_a_model(classifier):
    model = DeepNetModel(model=classifier, featureLayers=["hidden"])
    model.compiled = {"loss": "mse"}
    other = model.copy()
    assert other.compiled == {"loss": "mse"}
    assert other.getOrDefault("model") is model.getOrDefault("model")  # frozen
    other.setHandleInvalid("skip")
    assert model.getHandleInvalid() == "error"


def test_steps_of_an_order_that_does_not_last(classifier):
    est = DeepNetEstimator(model=classifier, loss="sparse_categorical_crossentropy", checkpointSteps=10, shuffle=False)
    with pytest.raises(InvalidInputError, match=r"checkpointSteps: with shuffle=False .*shuffle=True"):
        est._spec(None, est._network())


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("int8", 200.0, "from -128 to 127"),
        ("uint16", -1.0, "from 0 to 65535"),
        ("int32", 0.5, "from -2147483648"),
        ("bool", 2, "from 0 to 1"),
    ],
)
def test_a_padding_value_that_an_input_can_not_hold(dtype, value, expected):
    words = keras.Input((None,), dtype=dtype, name="words")
    network = Network.of(keras.Model(words, keras.layers.Rescaling(1.0)(words)))
    with pytest.raises(
        InvalidInputError, match=rf"Param paddingValue: expected an integer.*{expected}.*'words'.*received"
    ):
        input_columns(network, ["words"], float(value))
    assert input_columns(network, ["words"], 1.0)[0].padding == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0", True])
def test_a_padding_value_is_a_finite_number(value):
    with pytest.raises(InvalidInputError, match="Param paddingValue: expected a finite number"):
        DeepNetModel(paddingValue=value)
