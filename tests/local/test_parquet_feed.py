"""The feeds by Parquet files compute what the Arrow feed does, and leave nothing behind."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator
from cos_ml.errors import InvalidInputError, SetupError
from tests.support import reference
from tests.support.reference import assert_same_weights, split
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once

EPOCHS = 3
PETASTORM = ["petastorm"] if importlib.util.find_spec("petastorm") else []  # the "latest" stack has none


def estimator(folder: Any, **params: Any) -> DeepNetEstimator:
    defaults = {
        "model": reference.network(),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9),
        "batchSize": 32,
        "epochs": EPOCHS,
        "shuffle": False,
        "numTrainWorkers": 2,
        "progress": False,
        "feed": "parquet",
        "cacheDir": str(folder),
    }
    return DeepNetEstimator(**defaults | params)


def arrays(df: Any) -> Any:
    return df.withColumn("features", vector_to_array("features", "float32"))


@pytest.mark.parametrize(
    ("sizes", "weighted", "stored", "feed"),
    [
        pytest.param((400, 100), True, False, "parquet", id="weighted"),
        pytest.param((333, 211), False, True, "parquet", id="from Parquet"),
        pytest.param((300, 0), False, False, "parquet", id="an empty partition", marks=pytest.mark.more),
        *(pytest.param((333, 211), True, True, feed, id="petastorm, from Parquet") for feed in PETASTORM),
        *(
            pytest.param((333, 211), False, False, feed, id="petastorm, uneven", marks=pytest.mark.more)
            for feed in PETASTORM
        ),
    ],
)
def test_two_ranks_are_the_loop_by_hand(spark, tmp_path, sizes, weighted, stored, feed):
    features, labels, weights = reference.data(sum(sizes))
    if weighted:
        weights = np.random.default_rng(1).integers(0, 4, len(labels)).astype(np.float32)
    parts = split((features, labels, weights), *sizes)
    df = frame(spark, [rows_of(*part) for part in parts])
    expected = reference.network()
    losses = reference.train(expected, parts, 32, EPOCHS, keras.optimizers.SGD(0.1, momentum=0.9))
    est = estimator(tmp_path / "cache", feed=feed, **({"weightCol": "weight"} if weighted else {}))
    if stored:
        arrays(df).write.parquet(str(tmp_path / "rows"))
        model = est.fitParquet(str(tmp_path / "rows"))
    else:
        model = est.fit(df)
        assert list((tmp_path / "cache").iterdir()) == []
    assert_same_weights(model.toKeras(), expected)
    np.testing.assert_allclose(model.summary.history["loss"], losses, atol=1e-5)
    assert model.summary.rows == sum(sizes)


def test_validation_shuffle_and_seed(spark, tmp_path):
    df = frame(spark, [rows_of(*reference.data(200)), rows_of(*reference.data(100, seed=5))])
    arrays(df).withColumn("held", F.rand(7) < 0.3).write.option("parquet.block.size", 2048).parquet(str(tmp_path / "r"))
    stored = spark.read.parquet(str(tmp_path / "r"))
    held = stored.filter("held").count()
    est = estimator(tmp_path, shuffle=True, seed=4, validationIndicatorCol="held")
    first, again = (est.fitParquet(str(tmp_path / "r"), {est.cacheRows: copies}) for copies in ("none", "disk"))
    assert (first.summary.rows, first.summary.validationRows) == (300 - held, held)
    assert_same_weights(first.toKeras(), again.toKeras(), 0)
    assert first.summary.history == again.summary.history
    exact = first.evaluate(stored.filter("held"))
    assert first.summary.history["val_accuracy"][-1] == pytest.approx(exact["accuracy"], abs=1e-6)
    assert first.summary.history["val_loss"][-1] == pytest.approx(exact["loss"], abs=1e-5)


@pytest.mark.more
def test_a_grid_stores_the_rows_once(spark, tmp_path):
    df = frame(spark, [rows_of(*reference.data(64)), rows_of(*reference.data(64))])
    est = estimator(tmp_path / "cache", epochs=1, numTrainWorkers=1, keepCache=True)
    models = est.fit(df, [{est.learningRate: 0.1}, {est.learningRate: 0.01}])
    assert len(models) == 2
    (kept,) = (tmp_path / "cache").iterdir()
    assert models[0].summary.cacheUrl == str(kept)
    again = est.fitParquet(str(kept), {est.featuresCol: "x0", est.labelCol: "y0", est.learningRate: 0.1})
    assert again.summary.rows == 128
    assert again.summary.cacheUrl is None


def test_a_fit_to_stored_rows_is_gone_on_with(spark, tmp_path):
    df = frame(spark, [rows_of(*reference.data(64)), rows_of(*reference.data(64))])
    arrays(df).write.parquet(str(tmp_path / "rows"))
    first, again = (
        estimator(tmp_path, checkpointDir=str(tmp_path / "states"), shuffle=True).fitParquet(str(tmp_path / "rows"))
        for _ in range(2)
    )
    assert again.summary.resumedAt == (EPOCHS, 0)
    assert_same_weights(first.toKeras(), again.toKeras(), 0)


@pytest.mark.more
def test_a_fit_whose_cache_is_written_again_is_gone_on_with(spark, tmp_path):
    """Within an epoch only where the rows come in the same order."""
    rows = rows_of(*reference.data(64))
    there = frame(spark, [rows[:32], rows[32:]])
    back = frame(spark, [rows[31::-1], rows[:31:-1]])
    est = estimator(tmp_path / "cache", epochs=1, numTrainWorkers=1, checkpointDir=str(tmp_path / "epochs"))
    est.fit(there)
    assert est.fit(back).summary.resumedAt == (1, 0)
    est = est.copy({est.checkpointSteps: 1, est.checkpointDir: str(tmp_path / "steps")})
    est.fit(there)
    assert est.fit(there).summary.resumedAt == (1, 0)
    assert est.fit(back).summary.resumedAt == (0, 0)


@pytest.mark.more
def test_a_fit_with_checkpoints_leaves_spark_as_it_was(spark, tmp_path):
    """Spark 4.0 can't serialize a model's summary any more once an Observation has been used in its session."""
    df = frame(spark, [rows_of(*reference.data(32))] * 2)
    est = estimator(tmp_path / "cache", epochs=1, numTrainWorkers=1, checkpointDir=str(tmp_path / "checkpoints"))
    est.fit(df)
    binary = df.withColumn("label", (F.col("label") > 0).cast("double"))
    assert LogisticRegression(maxIter=1).fit(binary).transform(binary).cache().count() == 64


def test_the_data_is_read_once(spark, tmp_path):
    made = spark.sparkContext.accumulator(0)

    def make(index):
        made.add(1)
        return [float(np.random.default_rng().normal())] * 12

    features = F.udf(make, "array<float>").asNondeterministic()("id").alias("features")
    df = spark.range(60, numPartitions=5).select(features, (F.col("id") % 3).alias("label"))
    assert estimator(tmp_path / "cache", epochs=1).fit(df).summary.rows == 60
    assert made.value == 60


def test_pixels(spark, tmp_path):
    network = keras.Sequential(
        [keras.Input((4,), dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Dense(1)]
    )
    rows = [(bytes([n, 255 - n, n // 2, 7]), n / 64) for n in range(64)]
    df = spark.createDataFrame(rows, "features binary, label double").repartition(2).cache()
    fitted = [
        estimator(tmp_path, model=network, feed=feed, loss="mse", metrics=[], epochs=1).fit(df).toKeras()
        for feed in ("arrow", "parquet")
    ]
    assert_same_weights(*fitted, 1e-3)  # the rows come in another order
    df.unpersist()


@pytest.mark.parametrize("shape", [(1,), ()])
def test_strings(spark, tmp_path, shape):
    words = keras.Input(shape, dtype="string")
    codes = keras.layers.StringLookup(vocabulary=["no", "yes"], output_mode="one_hot")(words)
    network = keras.Model(words, keras.layers.Dense(2, activation="softmax")(codes))
    rows = [("yes" if n % 2 else "no", n % 2) for n in range(64)]
    df = spark.createDataFrame(rows, "features string, label int").repartition(2)
    fitted = estimator(tmp_path, model=network, epochs=20, numTrainWorkers=1).fit(df)
    assert fitted.summary.history["accuracy"][-1] == 1.0


@pytest.mark.more
def test_bad_rows(spark, tmp_path):
    rows = rows_of(*reference.data(40))
    df = frame(spark, [rows[:20], [*rows[20:], (rows[0][0], 7.0, 1.0)]])
    with pytest.raises(InvalidInputError, match=r"column 'label', row 20: is 7; expected .* from 0 to 2, .* 3 classes"):
        estimator(tmp_path / "cache").fit(df)
    assert list((tmp_path / "cache").iterdir()) == []
    holes = df.filter("label < 3").withColumn("features", F.when(F.col("weight") > 0, F.col("features")))
    nulls = holes.union(spark.createDataFrame([(None, 1.0, 1.0)], holes.schema))
    assert estimator(tmp_path / "cache", handleInvalid="skip", epochs=1).fit(nulls).summary.rows == 40
    with pytest.raises(InvalidInputError, match=r"column 'features', row 0: is null"):
        estimator(tmp_path / "cache", epochs=1).fit(nulls)
    arrays(df).write.parquet(str(tmp_path / "bad"))
    with pytest.raises(InvalidInputError, match=r"column 'label', row 20: is 7.*within a row group"):
        estimator(tmp_path).fitParquet(str(tmp_path / "bad"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB, where this process may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    made = subprocess.run(mount, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"this process may mount nothing: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # Spark may still hold what it could not write


def test_a_full_disk_is_said_to_be_one(spark, small_disk):
    rows = rows_of(*reference.data(64))
    many = frame(spark, [rows, rows]).crossJoin(spark.range(1000)).withColumn("weight", F.rand(1)).drop("id")
    with pytest.raises(InvalidInputError, match=r"^Param cacheDir: \S+small has no room for the rows"):
        estimator(small_disk, weightCol="weight").fit(many)
    assert list(small_disk.iterdir()) == []


def test_what_is_refused(spark, tmp_path):
    df = arrays(frame(spark, [rows_of(*reference.data(8))]))
    df.write.parquet(str(tmp_path / "rows"))
    with pytest.raises(InvalidInputError, match=r'cannot skip rows: expected "error" or "keep"'):
        estimator(tmp_path, handleInvalid="skip").fitParquet(str(tmp_path / "rows"))
    (tmp_path / "rows" / "_delta_log").mkdir()
    with pytest.raises(InvalidInputError, match=r'table of Delta Lake: .*spark.read.format\("delta"\)'):
        estimator(tmp_path).fitParquet(tmp_path / "rows")
    with pytest.raises(InvalidInputError, match=r"table of Delta Lake"):
        estimator(tmp_path / "rows").fit(df)
    est = estimator(tmp_path)
    with pytest.raises(InvalidInputError, match=r"no Parquet files in an empty list"):
        est.fitParquet([])
    est.clear(est.cacheDir)
    with pytest.raises(InvalidInputError, match=r'cacheDir is not set, but feed="parquet"'):
        est.fit(df)


@pytest.mark.parametrize("feed", PETASTORM)
def test_what_petastorm_can_not_read_is_refused_before_the_job(spark, tmp_path, monkeypatch, feed):
    df = frame(spark, [rows_of(*reference.data(8))])
    df.write.parquet(str(tmp_path / "vectors"))
    est = estimator(tmp_path, feed=feed)
    with pytest.raises(InvalidInputError, match=r"Column 'features' .* is stored as struct.*feed=\"parquet\""):
        est.fitParquet(str(tmp_path / "vectors"))
    df.withColumnRenamed("features", "the features").write.parquet(str(tmp_path / "names"))
    with pytest.raises(InvalidInputError, match=r"Python identifiers, received 'the features'"):
        est.fitParquet(str(tmp_path / "names"), {est.featuresCol: "the features"})
    df.select(F.array("label").alias("features"), F.struct("label").alias("s")).write.parquet(str(tmp_path / "fields"))
    with pytest.raises(InvalidInputError, match=r"petastorm reads whole columns, so it can't read 's\.label'"):
        est.fitParquet(str(tmp_path / "fields"), {est.labelCol: "s.label"})
    with pytest.raises(InvalidInputError, match=r"only paths of a local or mounted disk, received local://.*parquet"):
        est.fitParquet(f"local://{tmp_path / 'vectors'}")
    with pytest.raises(InvalidInputError, match=r"Param cacheRows: petastorm keeps no copies"):
        est.fitParquet(str(tmp_path / "vectors"), {est.cacheRows: "disk"})
    with pytest.raises(InvalidInputError, match=r"Param cacheRows: petastorm keeps no copies"):
        est.fit(df, {est.cacheRows: "disk", est.cacheDir: str(tmp_path / "cache")})
    with pytest.raises(InvalidInputError, match=r"only paths of a local or mounted disk, received local://.*cache"):
        est.fit(df, {est.cacheDir: f"local://{tmp_path}/cache"})
    assert not (tmp_path / "cache").exists()
    monkeypatch.setitem(sys.modules, "petastorm.reader", None)
    with pytest.raises(SetupError, match=r'pip install "cos-ml\[petastorm\]".*pyarrow < 15'):
        est.fit(df)


@pytest.mark.more
def test_vectors_and_folders_on_a_file_system_that_spark_lacks(spark, tmp_path):
    """The label is in the names of folders; two ranks of uneven rows train what two of the Arrow feed do."""
    df = frame(spark, [rows_of(*reference.data(60))])
    df.coalesce(1).write.partitionBy("label").parquet(str(tmp_path / "rows"))
    est = estimator(tmp_path, epochs=1, shuffle=True, weightCol="weight", classWeights="balanced")
    by_spark, by_fsspec, listed = (
        est.fitParquet(urls)
        for urls in (tmp_path / "rows", f"local://{tmp_path}/rows", [f"simplecache::file://{tmp_path}/rows"])
    )
    assert by_spark.summary.rows == by_fsspec.summary.rows == 60
    assert_same_weights(by_spark.toKeras(), by_fsspec.toKeras(), 0)
    assert_same_weights(by_spark.toKeras(), listed.toKeras(), 0)


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return eval, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("feed", ["parquet", *PETASTORM])
def test_pickles_beside_a_dataset_are_not_opened(spark, tmp_path, feed):
    """petastorm's own datasets have their schema as a pickle; whoever can write the dataset could put another there."""
    path = tmp_path / "rows"
    arrays(frame(spark, [rows_of(*reference.data(20))] * 2)).write.parquet(str(path))
    schema = pq.read_schema(next(path.glob("*.parquet")))
    evil = schema.with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Evil(tmp_path / "opened"))})
    for name in ("_common_metadata", "_metadata"):
        pq.write_metadata(evil, path / name)
    assert estimator(tmp_path, feed=feed, epochs=1).fitParquet(str(path)).summary.rows == 40
    assert not (tmp_path / "opened").exists()
