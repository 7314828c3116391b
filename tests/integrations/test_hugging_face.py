"""Datasets of Hugging Face's package ``datasets`` as docs/data.md tells to train on them."""

import datasets
import numpy as np
import pytest
from PIL import Image
from pyspark.ml import Pipeline

from cos_ml.estimator import DeepNetEstimator
from cos_ml.images import ImageAssembler
from cos_ml.network.keras_import import import_keras

keras = import_keras()

datasets.disable_progress_bars()

ROWS, RANKS = 64, 2
CLASSES = ["dark", "light"]
LABELS = np.arange(ROWS) % 2
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(128 * LABELS[:, None, None, None], 128 * LABELS[:, None, None, None] + 128, (ROWS, 6, 5, 3))
NUMBERS = RANDOM.normal(LABELS[:, None], 0.5, (ROWS, 4)).astype(np.float32)
GRIDS = RANDOM.normal(LABELS[:, None, None], 0.5, (ROWS, 2, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def dataset():
    """One with the features that people have, in memory."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=CLASSES),
            "numbers": datasets.Sequence(datasets.Value("float32"), length=4),
            "grid": datasets.Array2D((2, 3), "float32"),
            "words": datasets.List(datasets.Value("string")),
            "price": datasets.Value("float64"),
        }
    )
    columns = {
        "image": [Image.fromarray(pixels.astype(np.uint8)) for pixels in PIXELS],
        "label": LABELS.tolist(),
        "numbers": NUMBERS.tolist(),
        "grid": GRIDS.tolist(),
        "words": [["a", "b"][: index % 3] for index in range(ROWS)],
        "price": np.arange(ROWS).astype(float).tolist(),
    }
    return datasets.Dataset.from_dict(columns, features)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    for shard in range(RANKS):
        dataset.shard(RANKS, shard).to_parquet(f"{folder}/{shard:05}.parquet")
    return str(folder)


def estimator(net, **params):
    return DeepNetEstimator(
        model=net, loss="sparse_categorical_crossentropy", optimizer="sgd", learningRate=0.5, batchSize=8, epochs=3,
        numTrainWorkers=RANKS, shuffle=False, progress=False, **params,
    )  # fmt: skip


def network(*shape):
    keras.utils.set_random_seed(0)
    layers = [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    return keras.Sequential(layers)


def test_spark_reads_each_kind_of_feature(spark, folder):
    df = spark.read.parquet(folder)
    assert dict(df.dtypes) == {
        "image": "struct<bytes:binary,path:string>",
        "label": "bigint",
        "numbers": "array<float>",
        "grid": "array<array<float>>",
        "words": "array<string>",
        "price": "double",
    }
    rows = df.orderBy("price").collect()
    assert np.array_equal([row.numbers for row in rows], NUMBERS)
    assert np.array_equal([row.grid for row in rows], GRIDS)
    assert [row.words for row in rows[:3]] == [[], ["a"], ["a", "b"]]


def test_a_small_one_without_files(spark, dataset):
    df = spark.createDataFrame(dataset.remove_columns(["image", "grid"]).with_format("arrow")[:])
    assert [row.label for row in df.orderBy("price").collect()] == LABELS.tolist()


def test_images_and_the_names_of_classes(spark, folder, dataset):
    images = ImageAssembler(inputCol="image.bytes", outputCol="pixels", height=6, width=5, outputType="float")
    net = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Rescaling(1 / 255), *network(6, 5, 3).layers])
    deep = estimator(net, featuresCol="pixels", labels=dataset.features["label"].names, predictedLabelCol="name")
    scored = Pipeline(stages=[images, deep]).fit(spark.read.parquet(folder)).transform(spark.read.parquet(folder))
    rows = scored.orderBy("price").select("pixels", "name").collect()
    assert np.array_equal([row.pixels for row in rows], PIXELS.reshape(ROWS, -1))
    assert [row.name for row in rows] == [CLASSES[label] for label in LABELS]


@pytest.mark.parametrize(("column", "values"), [("numbers", NUMBERS), ("grid", GRIDS)])
def test_ranks_read_its_files_without_spark(spark, folder, column, values):
    net = network(*values.shape[1:])
    model = estimator(net, featuresCol=column).fitParquet(folder)
    net.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    order = np.arange(ROWS).reshape(RANKS, -1, 8).transpose(1, 0, 2).reshape(-1)  # a rank has the rows of a shard
    net.fit(values[order], LABELS[order], 8 * RANKS, 3, shuffle=False, verbose=0)
    for found, expected in zip(model.toKeras().get_weights(), net.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
