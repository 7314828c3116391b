"""The conventions of Spark's stages: Params of fitted models, copies, types of values, uids, pickles."""

import pickle

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.param import Params
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras

pytestmark = pytest.mark.once

keras = import_keras()
layers = keras.layers


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), layers.Dense(3, name="hidden"), layers.Dense(2, "softmax")])


def estimator(**params):
    given = {"model": network(), "loss": "sparse_categorical_crossentropy", "progress": False} | params
    return DeepNetEstimator(**given)


@pytest.fixture(scope="module")
def df(spark):
    rows = [(float(i), i % 5.0, float(i % 2), i % 2) for i in range(20)]
    parts = spark.createDataFrame(rows, ["a", "b", "label", "fold"])
    return VectorAssembler(inputCols=["a", "b"], outputCol="features").transform(parts).coalesce(1).cache()


@pytest.fixture(scope="module")
def tuned(df):
    """A CrossValidator of a network and one of a LogisticRegression, fitted to the same grid of Params."""
    fitted = []
    for stage, param, other in (
        (estimator(metrics=["accuracy"]), "epochs", "predictBatchSize"),
        (LogisticRegression(tol=0.1), "maxIter", "aggregationDepth"),
    ):
        grid = ParamGridBuilder().addGrid(stage.getParam(param), [2, 3]).addGrid(stage.getParam(other), [4]).build()
        validator = CrossValidator(
            estimator=stage, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), numFolds=2,
            foldCol="fold", collectSubModels=True,
        )  # fmt: skip
        fitted.append((validator, validator.fit(df)))
    return fitted


def compare(one, other):
    """Fails unless two stages are the same, as far as their Params and those of stages in them tell."""
    assert (type(one), one.uid, [p.name for p in one.params]) == (
        type(other),
        other.uid,
        [p.name for p in other.params],
    )
    for param in one.params:
        assert other.getParam(param.name).parent == param.parent
        assert other.isDefined(param.name) == one.isDefined(param), param
        if one.isDefined(param):
            value, again = one.getOrDefault(param), other.getOrDefault(param.name)
            if isinstance(value, Params):
                compare(value, again)
            else:
                assert value == again, param


# ── Params of what was fitted ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_model_tells_what_won(tuned):
    (_, ours), (_, native) = tuned
    for model, param in ((ours, "epochs"), (native, "maxIter")):
        best = model.getEstimatorParamMaps()[int(np.argmax(model.avgMetrics))]
        assert {p.name: v for p, v in best.items()}[param] == model.bestModel.getOrDefault(param)
        assert f"{param}: " in model.bestModel.explainParams()
        assert {sub.getOrDefault(param) for sub in model.subModels[0]} == {2, 3}
        assert model.bestModel.uid == model.getEstimator().uid
    best = ours.bestModel
    assert (best.getLoss(), best.getMetrics()) == ("sparse_categorical_crossentropy", ["accuracy"])
    assert best.getPredictBatchSize() == 4
    assert best.isSet("epochs")
    assert (best.isSet("batchSize"), best.getBatchSize()) == (False, 32)
    assert not hasattr(best, "setEpochs")
    assert not hasattr(native.bestModel, "setMaxIter")
    with pytest.raises(KeyError):
        best.getLearningRate()


def test_what_is_saved_and_loaded_is_the_same(tuned, df, tmp_path):
    (validator, model), _ = tuned
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a", "b"], outputCol="in"), validator.getEstimator()])
    pipeline.save(str(tmp_path / "pipeline"))
    again = Pipeline.load(str(tmp_path / "pipeline"))
    compare(pipeline.getStages()[1], again.getStages()[1])
    assert str(again.getStages()) == str(pipeline.getStages())
    PipelineModel([model.bestModel]).save(str(tmp_path / "fitted"))
    fitted = PipelineModel.load(str(tmp_path / "fitted")).stages[0]
    compare(model.bestModel, fitted)
    assert fitted.transform(df).select("prediction").collect() == model.transform(df).select("prediction").collect()
    model.save(str(tmp_path / "validated"))
    validated = CrossValidatorModel.load(str(tmp_path / "validated"))
    compare(model.bestModel, validated.bestModel)
    assert len(validated.subModels) == 2
    for one, other in zip(model.getEstimatorParamMaps(), validated.getEstimatorParamMaps(), strict=True):
        assert one == other


def test_a_pretrained_model_has_the_defaults(spark):
    model = DeepNetModel(model=network())
    assert (model.getEpochs(), model.getOptimizer(), model.isSet("epochs")) == (1, "adam", False)


# ── a stage in a stage ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_given_as_model_stays_itself(spark, tmp_path):
    inner = DeepNetModel(model=network(), featuresCol="pixels", predictBatchSize=9)
    outer = estimator(model=inner, epochs=2)
    outer.save(str(tmp_path / "outer"))
    for one in (outer, outer.copy(), outer.copy({outer.epochs: 5}), DeepNetEstimator.load(str(tmp_path / "outer"))):
        compare(inner, one.getOrDefault("model"))
    inner.setFeaturesCol("other")
    assert outer.getOrDefault("model").getFeaturesCol() == "pixels"


def test_a_grid_of_stages_is_saved_with_their_uids(spark, tmp_path):
    stages = [DeepNetModel(model=network()) for _ in range(2)]
    outer = estimator()
    grid = ParamGridBuilder().addGrid(outer.model, stages).build()
    validator = CrossValidator(estimator=outer, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator())
    validator.save(str(tmp_path / "grid"))
    again = CrossValidator.load(str(tmp_path / "grid"))
    found = [extra[again.getEstimator().model].uid for extra in again.getEstimatorParamMaps()]
    assert found == [stage.uid for stage in stages]


# ── copies and param maps ─────────────────────────────────────────────────────────────────────────────────────────────


def test_copy_takes_maps_of_params(tuned, df):
    (_, ours), (_, native) = tuned
    image = ImageAssembler(height=1, width=1)
    # A copy that fails takes the JVM's part of a native model with it, so this one is not used by other tests.
    regression = native.bestModel.copy()
    for stage in (regression, ours.bestModel, DeepNetModel(model=network()), estimator(), image):
        for wrong in ({"epochs": 1}, ["epochs"], "epochs"):
            with pytest.raises(TypeError):
                stage.copy(wrong)
        if stage is not regression:
            assert stage.copy({}).uid == stage.copy(None).uid == stage.uid
    for model in (native.bestModel.copy(), ours.bestModel, DeepNetModel(model=network())):
        for wrong in ({"epochs": 1}, ["epochs"]):
            with pytest.raises(TypeError):
                model.transform(df, wrong)
    for wrong in ({"epochs": 1}, [{"epochs": 1}], "epochs"):
        for stage in (LogisticRegression(), estimator()):
            with pytest.raises(TypeError):
                list(stage.fit(df, wrong))


def test_params_of_a_map_are_those_of_the_stage(tuned, df):
    (_, ours), (_, native) = tuned
    for model in (native.bestModel, ours.bestModel):
        assert "guess" in model.transform(df, {model.predictionCol: "guess"}).columns
        copied = model.copy({model.predictionCol: "guess"})
        assert (copied.getPredictionCol(), model.getPredictionCol()) == ("guess", "prediction")
        with pytest.raises(ValueError, match=LogisticRegression.__name__):
            model.set(LogisticRegression().maxIter, 1)


# ── evaluate, and what is refused by name ─────────────────────────────────────────────────────────────────────────────


def test_evaluate_of_no_rows_names_all_metrics(tuned, df):
    model = tuned[0][1].bestModel
    full, empty = model.evaluate(df), model.evaluate(df.where("a < 0"))
    assert set(empty) == set(full) == {"accuracy", "loss"}
    assert all(np.isnan(value) for value in empty.values())


def two_outputs():
    given = keras.Input((2,))
    outputs = [layers.Dense(1, name=name)(given) for name in ("left", "right")]
    return keras.Model(given, outputs)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"loss": "mse", "lossWeights": [1.0]}, r"Param lossWeights: .*2 outputs.*left.*right.*received 1"),
        ({"loss": "mse", "lossWeights": [1.0, 2.0, 3.0]}, r"Param lossWeights: .*received 3"),
        ({"loss": ["mse"] * 4}, r"Param loss: .*2 outputs.*received 4"),
        ({"loss": {"left": "mse", "middle": "mse"}}, r"Param loss: there is no output 'middle'.*left, right"),
        ({"loss": "mse", "lossWeights": {"middle": 1.0}}, r"Param lossWeights: .*no output 'middle'"),
        ({"loss": "mse", "metrics": {"middle": "mae"}}, r"Param metrics: .*no output 'middle'"),
        ({"loss": "mse", "metrics": [["mae"], ["mae"], ["mae"]]}, r"Param metrics: .*received 3"),
    ],
)
def test_what_does_not_fit_the_outputs_is_refused_before_a_job(df, params, message):
    with pytest.raises(InvalidInputError, match=message):
        estimator(model=two_outputs(), labelCols=["a", "b"], **params).fit(df)


# ── in the closures of users ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_in_a_udf(df):
    model = DeepNetModel(model=network())
    expected = [row.prediction for row in model.transform(df).collect()]

    @F.udf("double")
    def predicted(row):
        return model.predict(row)

    @F.udf("double")
    def by_keras(row):
        keras_model = model.toKeras()
        return float(np.argmax(keras_model(np.float32([row.toArray()]))))

    found = df.limit(3).select(predicted("features").alias("ours"), by_keras("features").alias("keras")).collect()
    assert [row.ours for row in found] == [row.keras for row in found] == expected[:3]


def test_a_trained_model_and_a_pipeline_are_pickled(tuned, df):
    model = PipelineModel([tuned[0][1].bestModel])
    again = pickle.loads(pickle.dumps(model))
    compare(model.stages[0], again.stages[0])
    assert again.stages[0].summary == model.stages[0].summary
    assert again.transform(df).select("prediction").collect() == model.transform(df).select("prediction").collect()


def test_a_pipeline_of_a_network_beside_one_of_a_regression(df):
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="x")
    native, ours = (
        Pipeline(stages=[assembler, stage]).fit(df).transform(df)
        for stage in (LogisticRegression(featuresCol="x", maxIter=1), DeepNetModel(model=network(), featuresCol="x"))
    )
    assert ours.columns == native.columns
    assert ours.schema.simpleString() == native.schema.simpleString()
