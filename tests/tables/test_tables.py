"""Tables of Delta and Iceberg, as what is trained on, scored and written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from pyspark.errors import PySparkException
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.sql import functions as F

from cos_ml import DeepNetModel, ImageAssembler
from cos_ml.commands import data
from cos_ml.errors import InvalidInputError
from cos_ml.sources.images import read_images
from tests.standalone.hosts import die_with_parent
from tests.support import reference
from tests.support.sessions import ROOT
from tests.tables import stream
from tests.tables.conftest import FEATURES, KEPT, LABELS, ROWS, TABLES, create, rows

every_table = pytest.mark.parametrize("key", TABLES)
FORMATS = {"delta": "default", "iceberg": "lake.db"}  # the database of new tables
OUTPUTS = ("hidden", "rawPrediction", "probability", "prediction")


def model(**params):
    return DeepNetModel(model=reference.network(), featureLayers=["hidden"], **params)


def estimator(**params):
    return reference.estimator(reference.network(), **{"batchSize": ROWS, "epochs": 2} | params)


def refused(spark, url):
    """What ``fitParquet`` advises in place of reading these files."""
    est = estimator()
    with pytest.raises(InvalidInputError, match="also has files of deleted and replaced rows") as error:
        est.fitParquet(url)
    return re.search(r"Instead: (est\.fit\((spark\..*)\))\.$", str(error.value))


def by_id(df, *columns):
    return df.select("id", *columns or df.drop("id").columns).orderBy("id").collect()


@every_table
def test_files_of_tables_are_refused_however_they_are_named(spark, tables, key):
    folder = tables[key].folder
    files = [str(path) for path in Path(folder).rglob("*.parquet")]
    for url in (folder, f"file://{folder}/", str(Path(folder).parent), files, files[-1]):
        assert f"a table of {'Iceberg' if key == 'delete files' else 'Delta Lake'}: " in refused(spark, url).string
    with pytest.raises(InvalidInputError, match=r"Param cacheDir: \S+/cache is in .*a table of"):
        estimator(feed="parquet", cacheDir=f"{folder}/cache").fit(rows(spark, range(8)))
    with pytest.raises(InvalidInputError, match=r"--data \S+ --format (delta|iceberg)"):
        data.read(spark, data.Data(folder, "parquet"))


def test_a_partition_of_a_table(spark, tables):
    found = refused(spark, f"{tables['deletion vectors'].folder}/day=1")
    assert eval(found[2]).select("id").orderBy("id").collect() == [(one,) for one in range(1, KEPT, 3)]


@pytest.mark.parametrize(
    ("key", "feed"),
    [("rewritten", "arrow"), ("deletion vectors", "parquet"), ("delete files", "arrow"), ("delete files", "parquet")],
)
def test_what_is_advised_trains_the_rows_of_the_table(spark, tables, tmp_path, key, feed):
    advised = refused(spark, tables[key].folder)[1]
    est = estimator(feed=feed, cacheDir=str(tmp_path))
    trained = eval(advised, {"est": est, "spark": spark})
    assert trained.summary.rows == KEPT
    expected = reference.network()
    part = (FEATURES[:KEPT], LABELS[:KEPT], np.ones(KEPT, np.float32))
    reference.train(expected, [part], ROWS, 2, keras.optimizers.SGD(0.1, momentum=0.9))
    reference.assert_same_weights(trained.toKeras(), expected)


def test_commands_read_and_write_tables(spark, tables, tmp_path):
    """Without --format, the folder tells that it is Delta's."""
    assert data.read(spark, data.Data(tables["rewritten"].folder)).count() == KEPT
    assert data.read(spark, data.Data(tables["delete files"].name, "iceberg")).count() == KEPT
    scored = model().transform(spark.table(tables["rewritten"].name))
    for path, kind in ((str(tmp_path / "scores"), "delta"), ("lake.db.written", "iceberg")):
        data.write(scored, path, kind, overwrite=False)
        assert by_id(spark.read.format(kind).load(path), "prediction") == by_id(scored, "prediction")


def test_scores_go_into_delta_as_vectors_or_arrays(spark, tables, tmp_path):
    df = spark.table(tables["deletion vectors"].name)
    vectors, arrays = model().transform(df), model(vectorType="array").transform(df)
    vectors.write.format("delta").saveAsTable("vectors")
    stored = spark.table("vectors")
    assert by_id(stored) == by_id(vectors)
    assert [stored.schema[name].metadata for name in OUTPUTS] == [vectors.schema[name].metadata for name in OUTPUTS]
    fresh = stored.select("id", "hidden", "label")  # a stage of Spark ML reads them
    assert LogisticRegression(featuresCol="hidden", maxIter=1).fit(fresh).transform(fresh).count() == KEPT
    arrays.write.format("delta").save(str(tmp_path / "arrays"))
    assert by_id(spark.read.format("delta").load(str(tmp_path / "arrays"))) == by_id(arrays)


def test_scores_go_into_iceberg_as_arrays(spark, tables):
    df = spark.table(tables["delete files"].name)
    arrays = model(vectorType="array").transform(df)
    arrays.writeTo("lake.db.arrays").create()
    assert by_id(spark.table("lake.db.arrays")) == by_id(arrays)
    with pytest.raises(
        PySparkException, match="User-defined types are not supported"
    ):  # Iceberg's, as docs/data.md says
        model().transform(df).writeTo("lake.db.vectors").create()


@pytest.mark.parametrize("kind", FORMATS)
def test_scores_are_merged(spark, kind):
    """Those of a later run replace and complete the others, and each row is there once."""
    name = f"{FORMATS[kind]}.merged"
    scored = model(vectorType="array").transform(rows(spark, range(ROWS))).select("id", "prediction", "probability")
    scored.where("id < 40").writeTo(name).using(kind).create()
    later = scored.where("id >= 20").withColumn("prediction", F.expr("prediction + 10"))
    later.createOrReplaceTempView("later")
    spark.sql(
        f"MERGE INTO {name} t USING later s ON t.id = s.id "
        "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
    )
    assert by_id(spark.table(name)) == by_id(scored.where("id < 20").union(later))


@pytest.mark.parametrize("kind", FORMATS)
def test_decoded_images_go_into_tables(spark, tmp_path, kind):
    for number in range(3):
        keras.utils.save_img(tmp_path / f"{number}.png", np.full((8, 8, 3), 9.0 * number), scale=False)
    decoded = ImageAssembler(height=4, width=4).transform(
        read_images(spark, tmp_path).withColumn("id", F.expr("int(substr(path, -5, 1))"))
    )
    name = f"{FORMATS[kind]}.images"
    decoded.writeTo(name).using(kind).create()
    stored = by_id(spark.table(name), "image")
    assert stored == by_id(decoded, "image")
    assert [set(row["image"]) for row in stored] == [{0}, {9}, {18}]


def test_versions_and_views_of_a_table(spark, tables):
    table = tables["rewritten"]
    first = spark.read.option("versionAsOf", 1).table(table.name)  # before its rows were deleted
    spark.sql(f"CREATE VIEW some AS SELECT *, label + 0 AS again FROM {table.name} WHERE day = 0")
    net = reference.network()
    net.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    scorer = DeepNetModel(model=net, labelCol="label")
    for df, ids in (
        (first, range(ROWS)),
        (spark.table(table.name), range(KEPT)),
        (spark.table("some"), range(0, KEPT, 3)),
    ):
        found = scorer.evaluate(df)
        loss, accuracy = net.evaluate(FEATURES[ids], LABELS[ids], verbose=0)
        assert found["loss"] == pytest.approx(loss, abs=1e-5)
        assert found["accuracy"] == pytest.approx(accuracy)
        assert scorer.transform(df).count() == len(ids)


def test_a_fit_does_not_resume_on_another_version_of_a_table(spark, tmp_path):
    create(spark, "changing", TABLES["rewritten"])
    est = estimator(checkpointDir=str(tmp_path), numTrainWorkers=1)
    fits = [est.fit(spark.table("changing")), est.fit(spark.table("changing"))]
    spark.sql("DELETE FROM changing WHERE id = 7")
    fits += [est.fit(spark.table("changing")), est.fit(spark.read.option("versionAsOf", 1).table("changing"))]
    assert [one.summary.rows for one in fits] == [ROWS, ROWS, ROWS - 1, ROWS]
    assert [one.summary.resumedAt for one in fits] == [(0, 0), (2, 0), (0, 0), (2, 0)]
    assert [any("belong to other rows" in note for note in one.summary.notes) for one in fits] == [
        False,
        False,
        True,
        False,
    ]
    reference.assert_same_weights(fits[3].toKeras(), fits[0].toKeras(), 0)


def test_a_stream_that_is_killed_in_a_batch_writes_every_row_once(spark, tmp_path):
    """Started again, both sinks write the batches in which it was: one that had written none of its rows, and all."""
    df = rows(spark, range(ROWS))
    later = LogisticRegression(featuresCol="hidden", predictionCol="class", probabilityCol="p", rawPredictionCol="r")
    pipeline = Pipeline(stages=[model(), later.setMaxIter(2)]).fit(df)
    pipeline.save(str(tmp_path / "pipeline"))
    for first in range(0, ROWS, stream.IN_BATCH):
        part = df.where(f"id >= {first} and id < {first + stream.IN_BATCH}").coalesce(1)
        part.write.format("delta").mode("append").save(str(tmp_path / "source"))
    command = [sys.executable, "-m", "tests.tables.stream", str(tmp_path)]
    killed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, start_new_session=True, preexec_fn=die_with_parent,
        check=False, timeout=2 * stream.LONGEST,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    count = {name: spark.read.format("delta").load(str(tmp_path / name)).count() for name in ("sink", "batches")}
    assert count == {"sink": stream.IN_BATCH, "batches": 2 * stream.IN_BATCH}
    for name in count:
        assert [path.name for path in (tmp_path / f"{name}-checkpoint" / "commits").glob("[0-9]*")] == ["0"]
    for query in stream.start(spark, tmp_path, dies=False):
        assert query.awaitTermination(stream.LONGEST)
        assert query.exception() is None
    expected = by_id(pipeline.transform(df))
    assert len(expected) == ROWS
    for name in count:
        assert by_id(spark.read.format("delta").load(str(tmp_path / name))) == expected
