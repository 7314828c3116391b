"""The blocks of Python of README and of docs/*.md run: in their order, with one set of names for each page.

What a block expects to be there, for it stands in the text or is the reader's own, is made by a generator with the name
of the page: it continues before each block.
"""

import logging
import signal
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import SparkSession

import cos_ml
from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler, paths
from tests.support.pages import blocks
from tests.support.sessions import ROOT

ROWS = 300  # of scikit-learn's digits
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if blocks(page)]
KNOWN = {
    "keras": keras,
    "layers": keras.layers,
    "Pipeline": Pipeline,
    "ParamGridBuilder": ParamGridBuilder,
    "DeepNetEstimator": DeepNetEstimator,
    "DeepNetModel": DeepNetModel,
    "ImageAssembler": ImageAssembler,
    "cos_ml": cos_ml,
}
STOP = """
import keras


class StopWhenGood(keras.callbacks.Callback):
    def __init__(self, above):
        super().__init__()
        self.above = above
"""


@pytest.fixture
def folder(spark, tmp_path, monkeypatch):
    """The working folder of a program, for Python and for Spark."""
    files = spark._jvm.org.apache.hadoop.fs.FileSystem.get(spark._jsc.hadoopConfiguration())
    before = files.getWorkingDirectory()
    files.setWorkingDirectory(spark._jvm.org.apache.hadoop.fs.Path(str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "_answers", weakref.WeakKeyDictionary())  # a session's folder stays what it is
    yield tmp_path
    files.setWorkingDirectory(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, spark, folder, monkeypatch):
    digits = sklearn.datasets.load_digits()
    few = SimpleNamespace(data=digits.data[:ROWS], target=digits.target[:ROWS])
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(logging.getLogger("cos_ml"), "level", logging.WARNING)
    names = {"spark": spark, "df": digits_of(spark, few), **KNOWN}
    prepared = PREPARATIONS.get(page.stem, nothing)(names, spark)
    for block in blocks(page):
        if not block.reason:
            next(prepared)
            exec(block.code, names)
    next(prepared, None)


def digits_of(spark: SparkSession, digits: Any) -> Any:
    rows = list(zip((digits.data / 16).tolist(), digits.target.tolist(), strict=True))
    return spark.createDataFrame(rows, "features array<float>, label int").repartition(2).cache()


def classifier(width: int = 8) -> keras.Model:
    hidden = keras.layers.Dense(width, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(10, activation="softmax", name="head")])


def nothing(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    while True:
        yield


def migration(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    names |= {"model": classifier(), "train": names["df"], "test": names["df"]}
    yield


def images(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    for index in range(8):
        folder = Path("photos/train", ("cat", "dog")[index % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (300, 280, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    yield
    Image.fromarray(pixels).save("photos/one.png")
    yield


def text(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    rows = [("Four words are here.", 0), ("And here", 3)] * 20
    names["texts"] = spark.createDataFrame(rows, "text string, label int")
    yield


def training(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    Path("my_package").mkdir()
    Path("my_package/__init__.py").touch()
    Path("my_package/callbacks.py").write_text(STOP)
    names["net"] = classifier()
    yield
    for units in (3, 1):
        first, head = keras.layers.Dense(8, name="conv1"), keras.layers.Dense(units, name="head")
        names["net"] = keras.Sequential([keras.Input((64,)), first, head])
        if units == 3:
            names["net"].save_weights("backbone.weights.h5")
    yield
    assert names["model"].summary.initialWeights["notTaken"]["head"]
    before, names["train"] = signal.getsignal(signal.SIGALRM), names["df"]
    yield  # a time limit
    signal.signal(signal.SIGALRM, before)
    yield  # logging
    network = classifier()
    network.compile(loss="sparse_categorical_crossentropy")
    names |= {"model": DeepNetModel(model=network), "network": network, "test": names["df"]}
    yield
    pixels = [([float(index % 255)] * 32 * 48 * 3,) for index in range(2)]
    names["df"] = spark.createDataFrame(pixels, "pixels array<float>")
    yield


def tuning(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    train = names["df"].limit(200).cache()
    names |= {"net": classifier(), "train": train, "small": classifier(4), "large": classifier()}
    names["est"] = DeepNetEstimator(model=names["net"], loss="sparse_categorical_crossentropy")
    yield
    assert len(names["grid"]) == 8
    yield  # halving
    assert sorted(model.summary.totalIterations for model in names["models"]) == [2, 2, 4, 16]
    yield  # Optuna
    study = names["study"]
    states = [trial.state.name for trial in study.trials]
    assert (states.count("COMPLETE"), states.count("PRUNED")) == (3, 9)
    assert study.best_value == min(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    yield


def explanations(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    names |= {"model": DeepNetModel(model=classifier()), "train": names["df"], "test": names["df"]}
    yield
    assert names["scored"].schema["attributions"].metadata["ml_attr"]["num_attrs"] == 64
    yield  # SHAP
    network, rows = names["network"], names["rows"]
    expected = network(rows).numpy() - network(names["background"]).numpy().mean(axis=0)
    assert names["values"].shape == (5, 64, 10)
    assert np.abs(names["values"].sum(axis=1) - expected).max() < 0.1  # of a sample of the background
    yield  # KernelExplainer
    expected = network(rows[:1]).numpy() - names["explainer"].expected_value
    assert np.allclose(names["values"].sum(axis=1), expected, atol=1e-4)
    yield


def export(names: dict[str, Any], spark: SparkSession) -> Iterator[None]:
    labels = [str(digit) for digit in range(10)]
    photos = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    network, assembler = DeepNetModel(model=photos, featuresCol="image"), ImageAssembler(height=8, width=8)
    names |= {"model": DeepNetModel(model=classifier(), labels=labels), "test": names["df"]}
    names |= {"network": network, "assembler": assembler, "pipeline_model": PipelineModel([assembler, network])}
    while True:
        yield


PREPARATIONS = {
    "images": images,
    "text": text,
    "training": training,
    "tuning": tuning,
    "explanations": explanations,
    "export": export,
    "migration-horovod-spark": migration,
}
