"""Everything that takes a URL, on S3: by Spark's own client, and by s3fs on the driver and the ranks."""

from __future__ import annotations

import csv
import io

import keras
import lmdb
import numpy as np
import pytest
import s3fs
from pyspark.ml import Pipeline, PipelineModel

from cos_ml import DeepNetEstimator, DeepNetModel, callback, read_sequence_file, write_sequence_file
from cos_ml.errors import RankError, SavedModelError
from cos_ml.network.keras_import import import_tensorflow
from tests.support import reference
from tests.support.layers import Misbehaving
from tests.support.reference import assert_same_weights, estimator, split
from tests.support.sessions import frame, rows_of


def for_spark(url):
    """A URL for what is Spark's alone, which knows s3a:// only."""
    return url.replace("s3://", "s3a://")


def names_in(url):
    """The names of all files below a folder."""
    system = s3fs.S3FileSystem()
    system.invalidate_cache()
    return sorted(path.rsplit("/", 1)[-1] for path in system.find(url))


@pytest.fixture(scope="module")
def rows(spark):
    return frame(spark, [rows_of(*part) for part in split(reference.data(200), 120, 80)])


def test_a_fit_resumes_from_s3_and_its_callbacks_files_are_there(rows, folder, tmp_path):
    logs = [
        callback("CSVLogger", filename=f"{folder}/log.csv"),
        callback("TensorBoard", log_dir=f"{folder}/board"),
        callback("ModelCheckpoint", filepath=f"{for_spark(folder)}/nets/{{epoch}}.keras"),
    ]
    failing = Misbehaving("raise", marker=str(tmp_path / "failed"), call=9)
    network = keras.Sequential([keras.Input((12,)), failing, *reference.network().layers])
    est = estimator(network, epochs=4)
    kept = est.copy({est.callbacks: logs, est.checkpointDir: f"{folder}/states"})
    with pytest.raises(RankError, match="broke on purpose"):  # in the third epoch
        kept.fit(rows)
    again = kept.copy({est.checkpointDir: f"{for_spark(folder)}/states"}).fit(rows)
    undisturbed = est.fit(rows)
    assert again.summary.notes == []
    assert again.summary.resumedAt == (2, 0)
    assert_same_weights(again.toKeras(), undisturbed.toKeras(), 1e-6)
    states = [name for name in names_in(f"{folder}/states") if name.startswith("checkpoint-")]
    assert states == [f"checkpoint-auto-{epoch:06d}-000000000" for epoch in (3, 4)]

    table = list(csv.DictReader(io.StringIO(s3fs.S3FileSystem().cat_file(f"{folder}/log.csv").decode())))
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    np.testing.assert_allclose([float(row["loss"]) for row in table], again.summary.history["loss"], rtol=1e-6)
    assert any(name.startswith("events.out.tfevents") for name in names_in(f"{folder}/board"))
    assert names_in(f"{folder}/nets") == [f"{epoch}.keras" for epoch in (1, 2, 3, 4)]

    # A network of the training's is where the next one starts: by its file, and by its weights.
    third = DeepNetEstimator(model=f"{folder}/nets/4.keras").getModel()
    assert_same_weights(third, again.toKeras(), 0)
    tuned = estimator(reference.network(), epochs=1, initialWeights=f"{for_spark(folder)}/nets/4.keras").fit(rows)
    assert tuned.summary.history["loss"][0] < again.summary.history["loss"][1]


def test_ranks_read_parquet_files_and_the_cache_from_s3(spark, rows, folder, tmp_path):
    rows.write.parquet(for_spark(f"{folder}/rows"))
    rows.write.parquet(str(tmp_path / "rows"))
    est = estimator(reference.network(), epochs=2)
    expected = est.fitParquet(str(tmp_path / "rows"))
    for url in (f"{folder}/rows", for_spark(f"{folder}/rows")):
        assert_same_weights(est.fitParquet(url).toKeras(), expected.toKeras(), 1e-6)
    cached = est.copy({est.feed: "parquet", est.cacheDir: f"{folder}/cache"}).fit(rows)
    assert cached.summary.rows == 200
    assert_same_weights(cached.toKeras(), expected.toKeras(), 1e-6)
    assert names_in(f"{folder}/cache") == []


@pytest.fixture(scope="module")
def model(rows):
    return estimator(reference.network(), epochs=1, featureLayers=["hidden"]).fit(rows)


def test_models_are_saved_and_loaded_and_scores_written(spark, rows, model, folder):
    for _ in range(2):
        model.write().overwrite().save(f"{folder}/model")
    with pytest.raises(SavedModelError, match="already exists"):
        model.save(for_spark(f"{folder}/model"))
    expected = [row.prediction for row in model.transform(rows).select("prediction").collect()]
    for url in (f"{folder}/model", for_spark(f"{folder}/model")):
        loaded = DeepNetModel.load(url)
        assert [row.prediction for row in loaded.transform(rows).select("prediction").collect()] == expected
    loaded.transform(rows).write.parquet(for_spark(f"{folder}/scores"))
    scores = spark.read.parquet(for_spark(f"{folder}/scores"))
    assert sorted(row.prediction for row in scores.collect()) == sorted(expected)
    assert len(scores.first().hidden) == 16


def test_a_model_is_exported_and_replaced(rows, model, folder, tmp_path):
    for url, overwrite in ((f"{folder}/served/1", False), (for_spark(f"{folder}/served/1"), True)):
        model.export(url, rows=rows, overwrite=overwrite)
    with pytest.raises(SavedModelError, match="already exists"):
        model.export(f"{folder}/served/1")
    s3fs.S3FileSystem().get(f"{folder}/served/1", str(tmp_path / "served"), recursive=True)
    served = import_tensorflow().saved_model.load(str(tmp_path / "served"))
    features = reference.data(20)[0].astype(np.float32)
    found = served.signatures["serving_default"](features=features)["hidden"].numpy()
    network = model.toKeras()
    expected = keras.Model(network.inputs, network.get_layer("hidden").output).predict(features, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_pipeline_is_saved_by_spark(rows, model, folder):
    pipeline = Pipeline(stages=[model]).fit(rows)
    pipeline.save(for_spark(f"{folder}/pipeline"))
    (stage,) = PipelineModel.load(for_spark(f"{folder}/pipeline")).stages
    assert_same_weights(stage.toKeras(), model.toKeras(), 0)


def test_an_lmdb_is_copied_once(spark, s3, folder, tmp_path):
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as transaction:
        for number in range(100):
            transaction.put(b"%03d" % number, b"x")
    s3fs.S3FileSystem().put_file(str(tmp_path / "data.mdb"), f"{folder}/base/data.mdb")
    s3.requests.clear()
    df = spark.read.format("lmdb").option("values", "raw").option("numPartitions", 4).load(for_spark(f"{folder}/base"))
    assert sorted(row.key for row in df.collect()) == [b"%03d" % number for number in range(100)]
    assert sum(method == "GET" and "data.mdb" in path for method, path in s3.requests) == 1


def test_sequence_files(spark, folder):
    df = spark.createDataFrame([("a", bytearray(b"1")), ("b", bytearray(b"2"))], "id string, data binary")
    write_sequence_file(df, f"{folder}/records")
    for url in (f"{folder}/records", for_spark(f"{folder}/records")):
        assert sorted(map(tuple, read_sequence_file(spark, url).collect())) == [("a", b"1"), ("b", b"2")]
