"""Grids: one barrier job for all candidates, CrossValidator and TrainValidationSplit, fits side by side."""

from __future__ import annotations

import logging
from typing import Any

import keras
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.job import barrier
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights
from tests.support.sessions import frame, rows_of

# PySpark leaves its validators' thread pools to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*Pool.__del__:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def accuracy(spark):
    return MulticlassClassificationEvaluator(metricName="accuracy")


def make(**params: Any) -> DeepNetEstimator:
    defaults = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "epochs": 3, "progress": False}
    return DeepNetEstimator(**defaults | params)


def wide() -> Any:
    """Another network for the same rows, with Dropout."""
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(24, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax", name="out"),
        ]
    )


def in_rows() -> Any:
    """A network that sees the same 12 numbers as three rows of four."""
    keras.utils.set_random_seed(6)
    return keras.Sequential(
        [keras.Input((3, 4)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="out")]
    )


@pytest.fixture(scope="module")
def df(spark):
    rows = rows_of(*reference.data(240))
    return frame(spark, [rows[:140], rows[140:]]).cache()


@pytest.fixture
def jobs(monkeypatch):
    """How many candidates each barrier job had, in the order of the jobs."""
    counts, run = [], barrier.run

    def counted(df: Any, job: Any, *arguments: Any) -> Any:
        counts.append(len(job.specs))
        return run(df, job, *arguments)

    monkeypatch.setattr(barrier, "run", counted)
    return counts


def grid_of(est: DeepNetEstimator) -> list[Any]:
    return (
        ParamGridBuilder()
        .addGrid(est.model, [reference.network(), wide(), in_rows()])
        .addGrid(est.learningRate, [1e-2, 0.1])
        .build()
    )


@pytest.mark.once
def test_a_grid_in_one_job_is_its_candidates_one_by_one(df, jobs):
    est = make(numTrainWorkers=2, batchSize=16, seed=3)
    grid = grid_of(est)
    together = dict(est.fitMultiple(df, grid))
    assert jobs == [6]
    assert sorted(together) == list(range(6))
    for index in (1, 2, 5):
        alone = est.fit(df, grid[index])
        assert_same_weights(together[index].toKeras(), alone.toKeras(), tolerance=0)
        assert together[index].summary.history == alone.summary.history
        assert together[index].summary.rows == 240


@pytest.mark.once
def test_fit_takes_a_list_of_maps(df, jobs):
    est = make(model=reference.network())
    models = est.fit(df, [{est.epochs: 1}, {est.epochs: 2, est.predictionCol: "p"}])
    assert [len(model.summary.history["loss"]) for model in models] == [1, 2]
    assert models[1].getPredictionCol() == "p"
    assert jobs == [2]
    assert est.getEpochs() == 3


@pytest.mark.more
@pytest.mark.once
def test_what_can_not_share_rows_has_a_job_of_its_own(df, jobs):
    other = df.withColumn("other", F.col("features"))
    est = make(model=reference.network(), epochs=1)
    maps = [{est.featuresCol: "features"}, {est.featuresCol: "other"}, {est.batchSize: 7}, {est.numTrainWorkers: 2}]
    models = dict(est.fitMultiple(other, maps))
    assert sorted(models) == [0, 1, 2, 3]
    assert jobs == [2, 1, 1]


@pytest.mark.more
@pytest.mark.once
def test_halving_drops_the_worse_and_returns_all(df, jobs, accuracy, caplog):
    """Under CrossValidator every param map has a model; the best is fitted in full."""
    est = make(model=reference.network(), numTrainWorkers=2, batchSize=16, epochs=4, halvingFactor=2, seed=3)
    est.setValidationFraction(0.25)
    grid = [{est.learningRate: rate} for rate in (1e-6, 0.03, 1e-4)]
    with caplog.at_level(logging.INFO, logger="cos_ml"):
        validator = CrossValidator(
            estimator=est, estimatorParamMaps=grid, evaluator=accuracy, numFolds=2, collectSubModels=True, seed=1
        ).fit(df)
    assert jobs == [3, 3, 1]
    for fold in validator.subModels:
        summaries = [model.summary for model in fold]
        assert [one.totalIterations for one in summaries] == [1, 4, 2]
        assert [one.droppedAt for one in summaries] == [1, None, 2]
        assert "4 epochs" not in str(summaries[0])
        assert "dropped after rung 1" in str(summaries[0])
    assert "Dropped after rung 1, 1 epochs: candidate 1 of 3 (learningRate=1e-06)" in caplog.text
    assert validator.bestModel.summary.totalIterations == 4
    assert validator.bestModel.summary.droppedAt is None


@pytest.mark.once
def test_halving_refuses_candidates_that_need_jobs_of_their_own(df, jobs):
    est = make(model=reference.network(), halvingFactor=2)
    with pytest.raises(InvalidInputError, match=r"halvingFactor: candidate 1 of 2 .* train in jobs of their own"):
        est.fitMultiple(df, [{est.numTrainWorkers: 1}, {est.numTrainWorkers: 2}])
    assert jobs == []


@pytest.mark.once
@pytest.mark.more
def test_early_stopping_within_folds(spark, df, accuracy):
    """A fold's held-out rows do not validate: of the marked rows it has those that it does not hold out."""
    rows = [(row.features, row.label, at % 3, at % 4 == 0) for at, row in enumerate(df.collect())]
    folds = spark.createDataFrame(rows, ["features", "label", "fold", "held"]).cache()
    est = make(model=reference.network(), epochs=30, patience=1, restoreBestWeights=True, seed=1)
    est.setValidationIndicatorCol("held")
    grid = [{est.learningRate: rate} for rate in (1.0, 1e-3)]
    validator = CrossValidator(
        estimator=est, estimatorParamMaps=grid, evaluator=accuracy, numFolds=3, foldCol="fold", collectSubModels=True
    ).fit(folds)
    for fold, models in enumerate(validator.subModels):
        used = folds.where(F.col("fold") != fold)
        marked = used.where("held").count()
        for model in models:
            assert (model.summary.rows, model.summary.validationRows) == (used.count() - marked, marked)
        assert models[0].summary.totalIterations < 30
        assert models[1].summary.totalIterations > models[0].summary.totalIterations  # each stops by itself
    alone = est.copy(grid[0]).fit(folds.where("fold != 0"))
    assert_same_weights(alone.toKeras(), validator.subModels[0][0].toKeras(), tolerance=1e-4)


@pytest.mark.once
def test_an_unfit_candidate_names_itself(df):
    est = make(model=reference.network())
    with pytest.raises(InvalidInputError, match=r"candidate 2 of 2 \(featuresCol='nothing'\): There is no column"):
        est.fitMultiple(df, [{est.featuresCol: "features"}, {est.featuresCol: "nothing"}])


@pytest.mark.once
def test_a_candidate_that_fails_names_itself(df):
    broken = keras.Sequential(
        [keras.Input((12,)), Misbehaving("raise", rank="0"), keras.layers.Dense(3, activation="softmax")]
    )
    est = make(model=reference.network(), epochs=1)
    with pytest.raises(RankError, match=r"This was candidate 2 of 2 \(model=<Sequential.*epochs=1\)") as error:
        est.fit(df, [{est.epochs: 1}, {est.model: broken, est.epochs: 1}])
    assert "this layer broke on purpose" in str(error.value)


@pytest.mark.once
def test_a_grid_that_failed_is_not_trained_again_by_whoever_goes_on_asking(df, jobs):
    """As CrossValidator's threads do after the first error."""
    broken = keras.Sequential(
        [keras.Input((12,)), Misbehaving("raise", rank="0"), keras.layers.Dense(3, activation="softmax")]
    )
    est = make(model=broken, epochs=1)
    models = est.fitMultiple(df, [{est.epochs: 1}, {est.epochs: 2}])
    for _ in range(2):
        with pytest.raises(RankError, match="this layer broke on purpose"):
            next(models)
    assert jobs == [2]


@pytest.mark.more
@pytest.mark.parametrize("parallelism", [1, 4])
def test_cross_validator(df, accuracy, jobs, tmp_path, parallelism):
    est = make(numTrainWorkers=2, batchSize=8, epochs=5)
    grid = grid_of(est)[1:4:2]
    validator = CrossValidator(
        estimator=est, estimatorParamMaps=grid, evaluator=accuracy, numFolds=2, parallelism=parallelism,
        collectSubModels=True, seed=1,
    )  # fmt: skip
    model = validator.fit(df)
    assert jobs == [2, 2, 1]
    assert max(model.avgMetrics) > 0.8
    assert len(set(model.avgMetrics)) > 1
    assert [len(fold) for fold in model.subModels] == [2, 2]
    # The metrics are the trained networks', and not those of the networks in the grid.
    assert accuracy.evaluate(model.transform(df)) > 0.8
    if parallelism == 4:
        return
    validator.write().overwrite().save(str(tmp_path / "validator"))
    again = CrossValidator.load(str(tmp_path / "validator"))
    best = again.getEstimatorParamMaps()[max(range(2), key=model.avgMetrics.__getitem__)]
    assert_same_weights(again.getEstimator().fit(df, best).toKeras(), model.bestModel.toKeras(), tolerance=0)
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = CrossValidatorModel.load(str(tmp_path / "model"))
    assert loaded.avgMetrics == model.avgMetrics
    # PySpark 4.0 to 4.3 loads the last fold's models for every fold; what is saved is right.
    for index in range(2):
        assert_same_weights(loaded.subModels[1][index].toKeras(), model.subModels[1][index].toKeras(), tolerance=0)
        first = DeepNetModel.load(str(tmp_path / "model" / "subModels" / "fold0" / str(index)))
        assert_same_weights(first.toKeras(), model.subModels[0][index].toKeras(), tolerance=0)


@pytest.mark.once
def test_cross_validator_over_a_pipeline_with_folds_of_the_users(spark, df, accuracy, jobs, caplog):
    """Side by side fits wait for each other's slots, and say so."""
    numbers = spark.createDataFrame(
        [(*map(float, row.features), row.label, index % 2) for index, row in enumerate(df.collect())],
        [*(f"n{i}" for i in range(12)), "label", "fold"],
    )
    est = make(model=reference.network(), numTrainWorkers=2, batchSize=16)
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=[f"n{i}" for i in range(12)], outputCol="features"), est])
    grid = ParamGridBuilder().addGrid(est.learningRate, [1e-6, 0.05]).addGrid(est.model, [wide()]).build()
    validator = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=accuracy, numFolds=2, parallelism=4, foldCol="fold"
    )
    with caplog.at_level(logging.INFO, logger="cos_ml"):
        model = validator.fit(numbers)
    assert jobs == [1] * 5
    assert "Waiting for 2 slots" in caplog.text
    assert model.avgMetrics[1] > max(0.7, model.avgMetrics[0])
    assert accuracy.evaluate(model.transform(numbers)) > 0.7


@pytest.mark.more
@pytest.mark.once
def test_train_validation_split(df, accuracy, jobs, tmp_path):
    est = make(model=wide(), epochs=2)
    grid = ParamGridBuilder().addGrid(est.learningRate, [1e-6, 0.05]).build()
    split = TrainValidationSplit(
        estimator=est, estimatorParamMaps=grid, evaluator=accuracy, parallelism=2, seed=1, collectSubModels=True
    )
    model = split.fit(df)
    assert jobs == [2, 1]
    assert model.validationMetrics[1] > model.validationMetrics[0]
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = TrainValidationSplitModel.load(str(tmp_path / "model"))
    assert isinstance(loaded.bestModel, DeepNetModel)
    assert_same_weights(loaded.bestModel.toKeras(), model.bestModel.toKeras(), tolerance=0)
    assert loaded.validationMetrics == model.validationMetrics
    assert len(loaded.subModels) == 2
