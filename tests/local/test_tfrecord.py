import numpy as np
import pytest
from pyspark.errors import PythonException

from cos_ml.estimator import DeepNetEstimator
from cos_ml.network.keras_import import import_keras, import_tensorflow

keras, tf = import_keras(), import_tensorflow()

ROWS, BATCH, EPOCHS = 96, 16, 2
LABELS = np.arange(ROWS) % 3
PIXELS = np.random.default_rng(0).normal(LABELS[:, None], 0.5, (ROWS, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of TensorFlow's own writer, of rows in turns."""
    folder = tmp_path_factory.mktemp("records")
    for part in range(2):
        with tf.io.TFRecordWriter(str(folder / f"train-{part}-of-2.gz"), "GZIP") as writer:
            for pixels, label in zip(PIXELS[part::2], LABELS[part::2], strict=True):
                features = {
                    "x": tf.train.Feature(float_list=tf.train.FloatList(value=pixels)),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"row {label}".encode()])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return str(folder)


def test_spark_finds_the_format_and_reads_what_was_written(spark, folder):
    df = spark.read.format("tfrecord").load(folder)
    assert df.dtypes == [("label", "bigint"), ("name", "binary"), ("x", "array<float>")]
    assert df.rdd.getNumPartitions() == 2
    rows = sorted(df.collect(), key=lambda row: row.x)
    order = np.lexsort(PIXELS.T[::-1])
    assert np.array_equal([row.x for row in rows], PIXELS[order])
    assert [row.label for row in rows] == LABELS[order].tolist()
    assert [bytes(row.name) for row in rows] == [f"row {label}".encode() for label in LABELS[order]]


def test_a_schema_and_several_paths(spark, folder):
    reader = spark.read.format("tfrecord").schema("name string, label int")
    rows = reader.load([f"{folder}/train-0*", f"{folder}/train-1-of-2.gz"]).collect()
    assert sorted(tuple(row) for row in rows) == sorted((f"row {label}", label) for label in LABELS.tolist())
    with pytest.raises(PythonException, match="feature 'x' has 6 values in a record"):
        spark.read.format("tfrecord").schema("x float").load(folder).collect()


@pytest.mark.more
@pytest.mark.once
def test_a_fit_computes_what_plain_keras_does(spark, folder):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
    estimator = DeepNetEstimator(
        model=net, featuresCol="x", loss="sparse_categorical_crossentropy", optimizer="adam", learningRate=0.05,
        batchSize=BATCH // 2, epochs=EPOCHS, numTrainWorkers=2, shuffle=False, progress=False,
    )  # fmt: skip
    model = estimator.fit(spark.read.format("tfrecord").load(folder))
    net.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    # A step has 8 rows of each rank, and a rank those of a file.
    order = np.arange(ROWS).reshape(-1, BATCH // 2, 2).transpose(0, 2, 1).reshape(-1)
    history = net.fit(PIXELS[order], LABELS[order], BATCH, EPOCHS, shuffle=False, verbose=0).history
    np.testing.assert_allclose(model.summary.history["loss"], history["loss"], rtol=1e-5)
    for found, expected in zip(model.toKeras().get_weights(), net.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
