import numpy as np
import pytest
from PIL import Image
from py4j.protocol import Py4JJavaError
from pyspark.errors import PythonException
from pyspark.ml import PipelineModel
from pyspark.ml.linalg import Vectors

from cos_ml.errors import InvalidInputError
from cos_ml.estimator import DeepNetEstimator
from cos_ml.images import ImageAssembler, preprocessing_layers
from cos_ml.network.keras_import import import_keras
from cos_ml.sources.images import image_classes, read_images, read_sequence_file, write_sequence_file

keras = import_keras()

CLASSES = ["dark", "light photos, 100%"]  # what a URL would encode


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes, dark and light images of different sizes, and some files that are none."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        folder = root / "2024 ä" / name
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(128 * label, 128 * label + 128, (10 + index, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.{['png', 'JPG'][index % 2]}")
        (folder / "Thumbs.db").write_bytes(b"no image")
    return root


def assembler(**params):
    return ImageAssembler(**{"height": 8, "width": 8, **params})


def test_all_images_of_a_folder(spark, photos):
    df = read_images(spark, str(photos))
    assert dict(df.dtypes) == {"path": "string", "data": "binary"}
    assert df.count() == 24


def test_folders_are_classes(spark, photos):
    assert image_classes(spark, str(photos)) == CLASSES
    rows = read_images(spark, str(photos), classes=CLASSES).drop("data").collect()
    assert sorted(row.label for row in rows) == [0] * 12 + [1] * 12
    assert all(row.path.split("/")[-2] == CLASSES[row.label] for row in rows)


@pytest.mark.once
def test_other_folders_are_not_read(spark, photos):
    rows = read_images(spark, str(photos), classes=["elsewhere", "dark"]).collect()
    assert [row.label for row in rows] == [1] * 12


@pytest.mark.once
@pytest.mark.parametrize("classes", ["dark", ["dark", "dark"]])
def test_classes_are_different_names(spark, photos, classes):
    with pytest.raises(InvalidInputError, match="each once"):
        read_images(spark, str(photos), classes=classes)


@pytest.mark.once
def test_a_pattern_of_one_s_own(spark, photos):
    assert read_images(spark, str(photos), pattern="*.db").count() == 2


@pytest.mark.parametrize("output_type", ["uint8", "float"])
def test_pixels_as_the_decoder_makes_them(spark, tmp_path, output_type):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    df = assembler(outputType=output_type).transform(read_images(spark, str(tmp_path))).orderBy("path")
    assert dict(df.dtypes)["image"] == {"uint8": "binary", "float": "array<float>"}[output_type]
    found = [np.frombuffer(row.image, np.uint8) if output_type == "uint8" else row.image for row in df.collect()]
    assert (np.reshape(found, pixels.shape) == pixels).all()


def test_rows_that_are_no_image(spark, photos):
    df = read_images(spark, str(photos), pattern="{1.JPG,Thumbs.db}")
    kept = assembler(handleInvalid="keep").transform(df).collect()
    assert [row.image is None for row in kept] == [row.path.endswith("db") for row in kept]
    skipped = assembler(handleInvalid="skip").transform(df)
    assert skipped.count() == 2
    assert all(row.image is not None for row in skipped.collect())
    with pytest.raises(PythonException, match=r"column 'data', row \d: can't be decoded"):
        assembler().transform(df).collect()


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A folder of PNGs of different sizes and kinds, and one that is damaged."""
    folder, random = tmp_path_factory.mktemp("decoded"), np.random.default_rng(0)
    for index, mode in enumerate(["RGB", "RGBA", "L"]):
        image = Image.fromarray(random.integers(0, 256, (9 + index, 12, 4), np.uint8)).convert(mode)
        image.save(folder / f"{index}.png")
    (folder / "3.png").write_bytes(b"no image")
    return str(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_spark_has_decoded(spark, decoded, channels):
    files = assembler(channels=channels, handleInvalid="keep").transform(read_images(spark, decoded)).orderBy("path")
    expected = [row.image for row in files.collect()]
    stage = assembler(channels=channels, inputCol="image", outputCol="pixels", handleInvalid="keep")
    rows = stage.transform(spark.read.format("image").load(decoded)).orderBy("image.origin").collect()
    assert [row.image.nChannels for row in rows] == [3, 4, 1, -1]
    assert [row.pixels for row in rows] == expected
    assert expected[3] is None
    skipped = stage.setHandleInvalid("skip").transform(spark.read.format("image").load(decoded))
    assert skipped.count() == 3


def test_images_that_spark_could_not_decode(spark, decoded):
    stage = assembler(inputCol="image", outputCol="pixels")
    images = spark.read.format("image").load(decoded)
    valid = spark.read.format("image").option("dropInvalid", True).load(decoded)
    assert stage.transform(valid).count() == 3
    with pytest.raises(PythonException, match=r"column 'image', row \d: .*Spark's reader could not decode"):
        stage.transform(images).collect()
    nulls = spark.createDataFrame([(None,)], images.schema)
    with pytest.raises(PythonException, match="column 'image', row 0: is null"):
        stage.transform(nulls).collect()


def test_columns_that_do_not_fit(spark):
    df = spark.createDataFrame([("a", b"b")], "name string, `the.data` binary")
    with pytest.raises(InvalidInputError, match="no column 'data'"):
        assembler().transform(df)
    with pytest.raises(InvalidInputError, match="of type string"):
        assembler(inputCol="name").transform(df)
    with pytest.raises(InvalidInputError, match="of type struct"):
        assembler(inputCol="s").transform(df.selectExpr("struct(`the.data` as data) as s"))
    with pytest.raises(InvalidInputError, match="in the DataFrame already"):
        assembler(inputCol="the.data", outputCol="name").transform(df)
    with pytest.raises(InvalidInputError, match="width is not set"):
        ImageAssembler(height=8).transform(df)
    for invalid, rows in (("keep", 1), ("skip", 0)):
        stage = assembler(inputCol="the.data", outputCol="the.image", handleInvalid=invalid)
        assert len(stage.transform(df).collect()) == rows


def test_vectors_in_other_columns_of_parquet(spark, photos, tmp_path):
    rows = [(bytes(row.data), Vectors.dense(1.0)) for row in read_images(spark, str(photos), pattern="1.JPG").collect()]
    spark.createDataFrame(rows, ["data", "vector"]).write.parquet(str(tmp_path / "rows"))
    assert len(assembler().transform(spark.read.parquet(str(tmp_path / "rows"))).collect()) == 2


@pytest.mark.once
def test_saved_and_loaded(spark, tmp_path):
    stage = assembler(channels=1, resize="crop", handleInvalid="skip")
    stage.save(str(tmp_path / "stage"))
    loaded = ImageAssembler.load(str(tmp_path / "stage"))
    assert loaded.uid == stage.uid
    values = [{param.name: value for param, value in one.extractParamMap().items()} for one in (stage, loaded)]
    assert values[0] == values[1]


@pytest.mark.once
def test_from_a_folder_to_a_trained_and_saved_pipeline(spark, photos, tmp_path):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((8, 8, 3), dtype="uint8"),
        *preprocessing_layers(size=(8, 8), crop=6, mirror=True, mean=[128.0] * 3, scale=1 / 128),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, activation="softmax"),
    ]
    estimator = DeepNetEstimator(
        model=keras.Sequential(layers), featuresCol="image", loss="sparse_categorical_crossentropy",
        optimizer="sgd", learningRate=1.0, batchSize=8, epochs=5, progress=False,
    )  # fmt: skip
    train = read_images(spark, str(photos), classes=CLASSES)
    stage = assembler()
    PipelineModel([stage, estimator.fit(stage.transform(train))]).save(str(tmp_path / "model"))
    scored = PipelineModel.load(str(tmp_path / "model")).transform(train).select("label", "prediction").collect()
    assert len(scored) == 24
    assert all(row.label == row.prediction for row in scored)


# ── SequenceFiles ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sequence_files_hold_what_was_written(spark, tmp_path):
    rows = [(f"{index} ä", bytes(range(index))) for index in range(50)]
    path = str(tmp_path / "rows.seq")
    df = spark.createDataFrame(rows, "name string, image binary").repartition(3)
    write_sequence_file(df, path, idCol="name", dataCol="image")
    found = read_sequence_file(spark, path)
    assert found.dtypes == [("id", "string"), ("data", "binary")]
    assert sorted((row.id, bytes(row.data)) for row in found.collect()) == sorted(rows)


@pytest.mark.once
def test_their_keys_may_be_numbers(spark, tmp_path):
    path = str(tmp_path / "rows.seq")
    spark.sparkContext.parallelize([(7, bytearray(b"x"))]).saveAsSequenceFile(path)
    assert read_sequence_file(spark, path).collect()[0].id == "7"


def test_sequence_files_of_other_records(spark, tmp_path):
    path = str(tmp_path / "rows.seq")
    spark.sparkContext.parallelize([("a", "text")]).saveAsSequenceFile(path)
    with pytest.raises((Py4JJavaError, PythonException), match="the values as str: expected Text"):
        read_sequence_file(spark, path).collect()


@pytest.mark.once
def test_what_can_not_be_written(spark, tmp_path):
    df = spark.createDataFrame([("a", "b")], "id string, data string")
    with pytest.raises(InvalidInputError, match="no column 'image'"):
        write_sequence_file(df, str(tmp_path / "rows.seq"), dataCol="image")
    with pytest.raises(InvalidInputError, match="expected binary"):
        write_sequence_file(df, str(tmp_path / "rows.seq"))


@pytest.mark.once
def test_spark_connect_is_refused():
    session = type("SparkSession", (), {"__module__": "pyspark.sql.connect.session"})()
    with pytest.raises(InvalidInputError, match="Spark Connect can't read SequenceFiles"):
        read_sequence_file(session, "rows.seq")
