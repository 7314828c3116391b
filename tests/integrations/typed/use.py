"""What an editor and a type checker know of cos_ml: pyright checks this file, with the package as pip installs it."""

from typing import Any, assert_type

import keras
from pyspark.ml import Pipeline
from pyspark.sql import DataFrame, SparkSession

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler, callback, read_images
from cos_ml.errors import CosMLError
from cos_ml.exporting import ExportedModel
from cos_ml.summary import EvaluationSummary, TrainingSummary
from cos_ml.text import Vocabulary, VocabularyModel


def use(spark: SparkSession, df: DataFrame, net: keras.Model) -> None:
    """Typical use, and the types of what it gives."""
    est = DeepNetEstimator(model=net, loss="mse", epochs=2, callbacks=[callback("TerminateOnNaN")])
    assert_type(est.setBatchSize(64), DeepNetEstimator)
    assert_type(est.setParams(epochs=3, featureLayers=["hidden"]), DeepNetEstimator)
    assert_type(est.getBatchSize(), int)
    assert_type(est.getFeatureLayers(), list[str])
    assert_type(est.explain(df), str)
    model = est.fit(df)
    assert_type(model, DeepNetModel)
    assert_type(model.transform(df), DataFrame)
    assert_type(model.summary, TrainingSummary)
    assert_type(model.summary.history, dict[str, list[Any]])
    assert_type(model.evaluate(df), EvaluationSummary)
    assert_type(model.export("digits.onnx", "onnx"), ExportedModel)
    assert_type(model.setPredictionCol("p").getPredictionCol(), str)
    assert_type(DeepNetModel.load("path"), DeepNetModel)
    assert_type(ImageAssembler.load("path"), ImageAssembler)
    assert_type(Vocabulary(inputCol="text").fit(df), VocabularyModel)
    assert_type(read_images(spark, "photos"), DataFrame)
    Pipeline(stages=[ImageAssembler(height=8, width=8), est])


def misuse(net: keras.Model) -> None:
    """What is an error before anything runs."""
    DeepNetEstimator(model=net, epoch=2)  # pyright: ignore[reportCallIssue]
    DeepNetEstimator(net)  # pyright: ignore[reportCallIssue]
    DeepNetEstimator(model=net).setBatchSize("64")  # pyright: ignore[reportArgumentType]
    DeepNetModel(model=net).setEpochs(2)  # pyright: ignore[reportAttributeAccessIssue]
    raise CosMLError("an exception")
