"""Paths, beside LogisticRegression's and Parquet's: pathlib, names with signs of globs and URLs, saves that fail."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import keras
import lmdb
import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.sql import DataFrameWriter

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler
from cos_ml.data import blobs
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.sources import convert, images
from tests.support.archives import layer, rebuilt

pytestmark = pytest.mark.once

NAMES = ["a b", "a[x]", "{a,b}", "a%20b", "ä €", "a#b", "a+b", "a?b", "a*b", "a:b", "it's", "a\\b", "a;b", "a&b=c"]
FEW = ["ä b%20#+;", "a[x]{y,z}", "a?*b", "a:b", "a\\b"]  # the same signs, where each name takes jobs of Spark


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


@pytest.fixture(scope="module")
def model(network):
    return DeepNetModel(model=network)


@pytest.fixture(scope="module")
def estimator(network):
    return DeepNetEstimator(model=network, loss="mse", progress=False)


def weights(stage):
    return stage.toKeras().get_weights()[0].tolist()


# --- stages


@pytest.mark.parametrize("name", FEW)
def test_what_is_saved_under_a_name_is_loaded_from_it(spark, model, tmp_path, name):
    """Names that native stages load, and those that Spark takes for globs, which they save but do not find."""
    for kind in (str, Path):
        path = kind(tmp_path / name)
        model.write().overwrite().save(path)
        assert weights(DeepNetModel.load(path)) == weights(model)
        assert os.listdir(tmp_path) == [name]
    LogisticRegression().write().overwrite().save(str(tmp_path / name))
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_matches_others_too(spark, model, network, tmp_path):
    """As a glob, a? matches ab: Spark would read both."""
    other = DeepNetModel(model=keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    model.save(tmp_path / "a?")
    other.save(tmp_path / "ab")
    assert weights(DeepNetModel.load(tmp_path / "a?")) == weights(model)
    assert weights(DeepNetModel.load(f"file://{tmp_path}/a?")) == weights(model)


def test_a_glob_still_finds_what_matches_it(spark, model, tmp_path):
    """As it does for native stages."""
    LogisticRegression().save(str(tmp_path / "native-1"))
    LogisticRegression.load(str(tmp_path / "native-*"))
    model.save(tmp_path / "net-1")
    assert DeepNetModel.load(str(tmp_path / "net-*")).uid == model.uid
    assert DeepNetModel.load(str(tmp_path / "net-[1]")).uid == model.uid


@pytest.mark.parametrize("name", ["ä b%20#;"])
def test_pipelines_that_spark_saves(spark, model, estimator, tmp_path, name):
    path = str(tmp_path / name)
    pipeline = Pipeline(
        stages=[LogisticRegression(), estimator, model, ImageAssembler(inputCol="i", height=1, width=1)]
    )
    pipeline.save(path)
    assert [stage.uid for stage in Pipeline.load(path).getStages()] == [stage.uid for stage in pipeline.getStages()]
    PipelineModel([model]).save(path + "2")
    assert PipelineModel.load(path + "2").stages[0].uid == model.uid


@pytest.mark.parametrize("path", [3, None, b"x", ["x"]])
def test_what_is_no_path(spark, model, path):
    for save in (LogisticRegression().save, model.save, DeepNetModel.load):
        with pytest.raises(TypeError, match="path"):
            save(path)


def test_a_path_that_exists_stays_as_it_is(spark, model, tmp_path):
    """Also one without a stage: LogisticRegression refuses whatever exists."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("empty", "mine", "file"):
        for stage, error in ((LogisticRegression(), Exception), (model, SavedModelError)):
            with pytest.raises(error, match="already exists"):
                stage.save(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "mine"]
    assert os.listdir(tmp_path / "mine") == ["precious.txt"]
    assert os.listdir(tmp_path / "empty") == []


def full(*_, **__):
    raise OSError("No space left on device")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_that_fails_midway_leaves_nothing(spark, model, tmp_path, monkeypatch, overwrite):
    if overwrite:
        model.save(tmp_path / "net")
    monkeypatch.setattr(DataFrameWriter, "parquet", full)
    writer = model.write().overwrite() if overwrite else model.write()
    with pytest.raises(OSError, match="No space left"):
        writer.save(tmp_path / "net")
    assert os.listdir(tmp_path) == []


def test_what_can_not_be_saved_is_found_before_the_old_stage_is_removed(spark, model, tmp_path, monkeypatch):
    model.save(tmp_path / "net")
    broken = model.copy()
    broken.compiled = {"loss": object()}
    with pytest.raises(TypeError, match="JSON"):
        broken.write().overwrite().save(tmp_path / "net")
    assert weights(DeepNetModel.load(tmp_path / "net")) == weights(model)
    with pytest.raises(TypeError, match="JSON"):
        broken.save(tmp_path / "other")
    assert os.listdir(tmp_path) == ["net"]


def test_a_folder_that_can_not_be_made(spark, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Exception, match="file"):
        model.save(tmp_path / "file" / "net")
    assert os.listdir(tmp_path) == ["file"]


# --- files of networks, checkpoints, caches


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("kind", [str, Path, Path.as_uri], ids=["str", "Path", "URL"])
def test_networks_in_files(network, tmp_path, name, kind):
    path = tmp_path / f"{name}.keras"
    network.save(tmp_path / "net.keras")
    shutil.move(tmp_path / "net.keras", path)  # keras.Model.save itself refuses some names
    assert weights(DeepNetModel(model=kind(path))) == network.get_weights()[0].tolist()


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "a[x].keras", str(tmp_path / "none.keras"), (tmp_path / "a b.keras").as_uri()):
        with pytest.raises(InvalidInputError, match=r"Param model: expected a keras.Model, or the path of a .keras"):
            DeepNetModel(model=path)


@pytest.fixture(scope="module")
def rows(spark):
    rows = [([float(row), 1.0], float(row % 2)) for row in range(8)]
    return spark.createDataFrame(rows, "features array<double>, label double").coalesce(1)


@pytest.mark.more
@pytest.mark.parametrize("name", ["a [x] {b,c} %20 ä+"])
def test_checkpoints_and_the_other_feed(spark, network, rows, tmp_path, name):
    fit = DeepNetEstimator(
        model=network, loss="mse", progress=False, shuffle=False, checkpointDir=tmp_path / f"c{name}"
    )
    expected = weights(fit.fit(rows))
    assert os.path.isfile(tmp_path / f"c{name}" / "fit.json")
    assert fit.fit(rows).summary.resumedAt != (0, 0)
    cached = fit.copy({fit.feed: "parquet", fit.cacheDir: tmp_path / f"p{name}"})
    cached.clear(cached.checkpointDir)
    assert np.allclose(weights(cached.fit(rows)), expected)
    assert os.listdir(tmp_path / f"p{name}") == []
    rows.write.parquet(str(tmp_path / f"d{name}"))
    cached.clear(cached.feed)
    assert np.allclose(weights(cached.fitParquet(tmp_path / f"d{name}")), expected)


def test_a_folder_of_checkpoints_is_cleared_whatever_its_name(tmp_path):
    from cos_ml.rank.checkpoint_store import acquire
    from cos_ml.spec import CheckpointConfig

    config = CheckpointConfig(url=str(tmp_path / "c[x]"), fit={"a": 1}, run="one")
    (tmp_path / "c[x]" / "rows-0").mkdir(parents=True)
    acquire(config)
    assert os.listdir(tmp_path / "c[x]") == ["fit.json"]


# --- sources


@pytest.mark.parametrize("name", ["ä b%20#", "a[x]{b,c}"])
def test_images_and_sequence_files(spark, tmp_path, name):
    folder = tmp_path / name / "cat"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(b"not decoded")
    assert images.image_classes(spark, tmp_path / name) == ["cat"]
    found = images.read_images(spark, tmp_path / name, classes=["cat"])
    assert [bytes(row.data) for row in found.collect()] == [b"not decoded"]
    frame = found.selectExpr("'k' AS id", "data")
    images.write_sequence_file(frame, tmp_path / f"{name}.seq")
    read = images.read_sequence_file(spark, tmp_path / f"{name}.seq")
    assert [bytes(row.data) for row in read.collect()] == [b"not decoded"]


def test_images_by_a_glob(spark, tmp_path):
    for name in ("x1", "x2", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.png").write_bytes(b"x")
    assert images.read_images(spark, str(tmp_path / "x[12]")).count() == 2


@pytest.mark.parametrize("name", NAMES)
def test_conversions(tmp_path, name):
    source, parquet, back = (tmp_path / f"{name}{end}" for end in ("", ".parquet", ".back"))
    with lmdb.open(str(source), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"k", b"v")
    convert.lmdb_to_parquet(source, parquet, raw=True)
    convert.parquet_to_lmdb(parquet, back, raw=True)
    with lmdb.open(str(back), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert list(transaction.cursor()) == [(b"k", b"v")]


@pytest.mark.parametrize("name", FEW)
def test_lmdb(spark, tmp_path, name):
    frame = spark.createDataFrame([(b"k", b"v")], "key binary, value binary")
    path = str(tmp_path / name)
    frame.write.format("lmdb").option("values", "raw").mode("overwrite").save(path)
    assert os.listdir(tmp_path) == [name]
    for url in (path, f"file://{path}", Path(path).as_uri()):
        assert spark.read.format("lmdb").option("values", "raw").load(url).count() == 1


def test_a_network_of_a_newer_keras_says_so_in_tasks_and_where_it_is_loaded(spark, model, rows, tmp_path):
    network = model.copy().getOrDefault("model")
    new = rebuilt(network.archive, layer(class_name="New"), **{"metadata.json": '{"keras_version": "99.0.0"}'})
    newer = model.copy()._set(model=network.with_archive(new))
    expected = f"Keras 99.0.0 saved it, which is newer than Keras {keras.version()} here: install Keras 99.0.0"
    with pytest.raises(Exception, match=f"SavedModelError: .*{expected}"):
        newer.transform(rows).select("prediction").collect()
    items = {"network": new}
    model.save(tmp_path / "net")
    replace_network(spark, tmp_path / "net", items)
    with pytest.raises(SavedModelError, match=expected):
        DeepNetModel.load(tmp_path / "net")


def replace_network(spark, path, items):
    """What another machine would have saved there, without golden rows."""
    metadata = json.loads(next(file.read_text() for file in (path / "metadata").glob("part-*")))
    metadata["golden"] = None
    metadata["network"]["sha256"] = hashlib.sha256(items["network"]).hexdigest()
    shutil.rmtree(path / "metadata")
    spark.createDataFrame([(json.dumps(metadata),)], "value string").write.text(str(path / "metadata"))
    rows = list(blobs.pieces(items))
    spark.createDataFrame(rows, blobs.SCHEMA).write.mode("overwrite").parquet(str(path / "data"))
