"""Scoring costs what it costs in a native stage: each row passes the network once, and nothing is left behind."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from cos_ml import DeepNetModel, ImageAssembler, broadcasts
from cos_ml.persistence import golden_rows
from tests.support.layers import CountRows, MonteCarloDropout, Noise

ROWS = 1000
INVALID = ["error", "skip", "keep"]


class Counter:
    """A folder in which the layer CountRows counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, action: Callable[[], Any]) -> int:
        """How many rows pass the network in ``action``."""
        for file in self.folder.iterdir():
            file.unlink()
        action()
        return sum(int(file.read_text()) for file in self.folder.iterdir())


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Counter:
    return Counter(tmp_path_factory.mktemp("counts"))


@pytest.fixture(scope="module")
def network(counter) -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, name="hidden")(CountRows(str(counter.folder))(inputs))
    classes = keras.layers.Dense(2, activation="softmax", name="classes")(hidden)
    return keras.Model(inputs, [classes, keras.layers.Dense(1, name="size")(hidden)])


@pytest.fixture(scope="module")
def rows(spark, tmp_path_factory) -> DataFrame:
    """Rows of a Parquet file with one partition per value of ``part``."""
    path = str(tmp_path_factory.mktemp("rows") / "rows")
    numbers = F.array(*(F.sin(F.col("id") * k).cast("float") for k in (1, 2, 3)))
    made = spark.range(ROWS).select("id", (F.col("id") % 4).alias("part"), numbers.alias("features"))
    made.repartition("part").write.partitionBy("part").parquet(path)
    return spark.read.parquet(path)


def run(df: DataFrame) -> None:
    df.write.format("noop").mode("overwrite").save()


def keyed(spark: Any, values: list[Any], schema: str) -> DataFrame:
    return spark.createDataFrame([(value,) for value in values], schema)


# What follows the model, and how many rows pass the network.
ACTIONS: dict[str, tuple[Callable[[DataFrame, Any], Any], int]] = {
    "all": (lambda out, spark: run(out), ROWS),
    "where prediction": (lambda out, spark: out.where("prediction = 1").collect(), ROWS),
    "where several": (lambda out, spark: out.where("prediction = 1 and prediction_size > 0").collect(), ROWS),
    "join on prediction": (lambda out, spark: out.join(keyed(spark, [1.0], "prediction double"), "prediction"), ROWS),
    "na.drop": (lambda out, spark: out.na.drop(), ROWS),
    "na.fill": (lambda out, spark: out.na.fill(0.0), ROWS),
    "order": (lambda out, spark: out.orderBy("prediction_size").limit(3).collect(), ROWS),
    "groups": (lambda out, spark: out.groupBy("prediction").count().where("prediction = 1").collect(), ROWS),
    "probability": (lambda out, spark: out.select("probability").collect(), ROWS),
    "where id": (lambda out, spark: out.where("id < 10").collect(), 10),
    "where partition": (lambda out, spark: out.where("part = 1").collect(), ROWS // 4),
    "where both": (lambda out, spark: out.where("id < 10 and prediction = 1").collect(), 10),
    "where column": (lambda out, spark: out.where(out.id < 10).collect(), 10),
    "limit": (lambda out, spark: out.limit(5).collect(), 5),
    "head": (lambda out, spark: out.head(), 1),
    "broadcast join": (lambda out, spark: out.join(F.broadcast(keyed(spark, [3, 5], "id long")), "id"), ROWS),
    "semi join": (lambda out, spark: out.join(keyed(spark, [3, 5], "id long"), "id", "left_semi"), ROWS),
    "union": (lambda out, spark: out.where("part = 1").union(out.where("part = 2")), ROWS // 2),
    "self join": (
        lambda out, spark: out.alias("a").join(out.alias("b"), F.expr("a.id = b.id and a.prediction = 1")), 2 * ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "handle_invalid"),
    [
        *((name, "error") for name in ACTIONS),
        *(pytest.param(name, "skip", marks=pytest.mark.once) for name in ACTIONS),
        ("where both", "keep"),
        ("limit", "keep"),
    ],
)
def test_each_row_passes_the_network_once(spark, rows, network, counter, name, handle_invalid):
    action, expected = ACTIONS[name]
    model = DeepNetModel(model=network, featureLayers=["hidden"], handleInvalid=handle_invalid)

    def act() -> None:
        result = action(model.transform(rows), spark)
        if isinstance(result, DataFrame):
            run(result)

    assert counter.rows(act) <= expected


@pytest.mark.parametrize("handle_invalid", INVALID)
def test_vectors_and_bad_rows(spark, rows, network, counter, handle_invalid):
    """A limit takes as many rows as it needs, though some of those before are skipped."""
    bad = F.when(F.col("id") % 2 == 0, F.array(F.lit(float("nan")))).otherwise(F.col("features"))
    made = rows.withColumn("features", array_to_vector(F.col("features") if handle_invalid == "error" else bad))
    out = DeepNetModel(model=network, handleInvalid=handle_invalid).transform(made)
    found: list[Any] = []
    assert counter.rows(lambda: found.extend(out.limit(5).collect())) <= 5
    assert len(found) == 5
    kept = ROWS // 2 if handle_invalid == "skip" else ROWS
    assert counter.rows(lambda: run(out.where("prediction = 1"))) == kept
    assert out.where("id < 11").count() == (5 if handle_invalid == "skip" else 11)


@pytest.mark.parametrize("handle_invalid", INVALID)
def test_two_networks(spark, rows, network, counter, handle_invalid):
    first = DeepNetModel(model=network, handleInvalid=handle_invalid)
    columns = {"probabilityCol": "p", "rawPredictionCol": "r", "predictionCol": "q"}
    second = DeepNetModel(model=network, inputCols=["features"], handleInvalid=handle_invalid, **columns)
    out = PipelineModel([first, second]).transform(rows)
    assert counter.rows(lambda: out.where("prediction = 1 and q = 1").collect()) <= 2 * ROWS
    assert counter.rows(lambda: out.limit(5).collect()) <= (10 if handle_invalid != "skip" else ROWS)


@pytest.mark.parametrize("handle_invalid", INVALID)
def test_images_are_decoded_once(spark, counter, monkeypatch, handle_invalid):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, "PNG")
    data = [(index, None if index % 10 == 0 and handle_invalid != "error" else file.getvalue()) for index in range(100)]
    images = spark.createDataFrame(data, "id long, data binary").coalesce(1)
    inputs = keras.Input((4, 4, 3))
    flat = keras.layers.Flatten()(CountRows(str(counter.folder))(inputs))
    net = DeepNetModel(
        model=keras.Model(inputs, keras.layers.Dense(1)(flat)), featuresCol="image", handleInvalid=handle_invalid
    )
    assembler = ImageAssembler(height=4, width=4, handleInvalid=handle_invalid)
    decoded = assembler.transform(images).where("image is not null and id < 50")
    plan = decoded._jdf.queryExecution().optimizedPlan().toString()
    assert plan.count("ArrowEvalPython") == 1
    out = PipelineModel([assembler, net]).transform(images)
    good = 90 if handle_invalid == "skip" else 100
    assert counter.rows(lambda: out.where("prediction > -1e9").collect()) == good
    assert counter.rows(lambda: out.where("id < 10").collect()) == (9 if handle_invalid == "skip" else 10)
    plan = out.where("prediction > 0")._jdf.queryExecution().optimizedPlan().toString()
    assert plan.count("ArrowEvalPython") == 2


def test_what_spark_does_with_any_dataframe(spark, rows, network):
    """Caches, views, streams of files, plans and writes."""
    out = DeepNetModel(model=network).transform(rows)
    expected = sorted(row.id for row in out.where("prediction = 1").collect())
    out.createOrReplaceTempView("scored")
    assert sorted(row.id for row in spark.sql("select id from scored where prediction = 1").collect()) == expected
    cached = out.cache()
    assert sorted(row.id for row in cached.where("prediction = 1").collect()) == expected
    cached.unpersist()
    assert out.alias("a").join(out.alias("b"), "id").where("a.prediction <> b.prediction").count() == 0
    stream = spark.readStream.schema(rows.schema).parquet(rows.inputFiles()[0].rsplit("/", 2)[0])
    query = DeepNetModel(model=network).transform(stream).where("prediction = 1").writeStream.format("memory")
    running = query.queryName("streamed").start()
    running.processAllAvailable()
    running.stop()
    assert sorted(row.id for row in spark.table("streamed").collect()) == expected


# ── what is left behind ───────────────────────────────────────────────────────────────────────────────────────────────


def files(spark: Any) -> set[Path]:
    return set(Path(spark.sparkContext._temp_dir).iterdir())


def test_one_broadcast_per_network(spark, rows, counter):
    keras.utils.set_random_seed(3)
    large = keras.Sequential([keras.Input((3,)), keras.layers.Dense(200_000), keras.layers.Dense(1)])
    before = files(spark)
    model = DeepNetModel(model=large)
    for _ in range(5):
        run(model.transform(rows.limit(3)))
        model.copy().transform(rows)
    assert len(files(spark) - before) == 1
    lazy = model.transform(rows.limit(3))
    del model
    gc.collect()
    assert len(lazy.select("prediction").collect()) == 3  # the network is gone, what was made with it is not
    broadcasts.sweep()
    assert len(files(spark) - before) == 1
    del lazy
    gc.collect()
    for _ in range(60):
        spark.sparkContext._jvm.System.gc()
        broadcasts.sweep()
        if files(spark) <= before:
            break
        time.sleep(0.5)
    assert files(spark) <= before


@pytest.mark.once
def test_evaluation_and_training_leave_nothing(spark, rows):
    small = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    small.compile(loss="mse")
    model = DeepNetModel(model=small)
    labelled = rows.withColumn("label", F.lit(1.0))
    model.evaluate(labelled)
    before = files(spark)
    for _ in range(3):
        model.evaluate(labelled)
        run(model.transform(rows))
    assert files(spark) <= before


# ── large rows ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_large_outputs_come_in_small_batches(spark):
    from cos_ml.scoring import predict

    ends = np.arange(1, 1001) * 1000
    assert predict._stop(ends, 0, 0.0, 1024) == predict.FIRST_ROWS
    assert predict._stop(ends, 64, predict.BATCH_BYTES / 10, 1024) == 74
    assert predict._stop(ends, 64, predict.BATCH_BYTES / 10, 4) == 72
    assert predict._stop(ends, 64, 1.0, 1024) == 1000
    assert predict._stop(ends * 10**6, 0, 1.0, 1024) == 1


# ── random layers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
@pytest.mark.parametrize("layer", [MonteCarloDropout(0.5), Noise()])
def test_random_layers_draw_for_each_row(spark, layer):
    inputs = keras.Input((50,))
    network = keras.Model(inputs, keras.layers.Rescaling(1.0)(layer(inputs)))
    df = spark.range(0, 40, 1, 4).select("id", F.array(*[F.lit(1.0)] * 50).alias("features"))
    model = DeepNetModel(model=network, predictBatchSize=4)

    def draws(one: DeepNetModel) -> list[tuple[float, ...]]:
        return [tuple(row.prediction.toArray()) for row in one.transform(df).orderBy("id").collect()]

    first = draws(model)
    assert len(set(first)) == 40  # of rows, of batches and of partitions
    assert draws(model) == first
    assert len(set(first) | set(draws(model.copy({model.seed: 7})))) == 80
    assert golden_rows(model.getOrDefault(model.model)) == b""
