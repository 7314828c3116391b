"""The commands of ``cos-ml``, in the tests' session."""

import io
import json

import keras
import numpy as np
import pytest
from PIL import Image

from cos_ml import DeepNetModel, cli
from cos_ml.caffe import prototxt
from cos_ml.commands import caffe_data
from cos_ml.network.keras_import import import_keras
from cos_ml.sources import convert, register
from tests.support import reference
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once
import_keras()


def network():
    """What ``--network tests.local.test_commands:network`` names."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="x")
    hidden = keras.layers.Dense(4, "relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="predictions")(hidden))


@pytest.fixture(scope="module")
def trained(spark, tmp_path_factory):
    """A folder with rows as Parquet and what ``cos-ml train`` has made of them."""
    folder = tmp_path_factory.mktemp("commands")
    x, y, *_ = reference.data(80)
    frame(spark, [rows_of(x[:40], y[:40]), rows_of(x[40:], y[40:])]).write.parquet(str(folder / "rows.parquet"))
    (folder / "job.json").write_text(
        json.dumps({"epochs": 9, "batch-size": 8, "metrics": ["accuracy"], "network": "nowhere:at_all"})
    )
    status = cli.main(
        ["train", "--data", str(folder / "rows.parquet"), "--network", "tests.local.test_commands:network",
         "--validation", str(folder / "rows.parquet"), "--job", str(folder / "job.json"), "--epochs", "2",
         "--loss", "sparse_categorical_crossentropy", "--numTrainWorkers", "2", "--progress", "false",
         "--save", str(folder / "model"), "--save-keras", str(folder / "net.keras"),
         "--metrics-file", str(folder / "metrics.json"), "--summary", str(folder / "plot.png")]
    )  # fmt: skip
    assert status == 0
    return folder


def test_train_writes_model_metrics_and_plot(trained):
    found = json.loads((trained / "metrics.json").read_text())
    assert (found["rows"], found["validationRows"], found["epochs"], found["ranks"]) == (80, 80, 2, 2)
    assert set(found["history"]) >= {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert keras.saving.load_model(trained / "net.keras").get_layer("hidden").units == 4
    assert (trained / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_test_evaluates_the_saved_model(trained, capsys):
    assert cli.main(["test", "--model", str(trained / "model"), "--data", str(trained / "rows.parquet")]) == 0
    history = json.loads((trained / "metrics.json").read_text())["history"]
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(found["loss"], history["val_loss"][-1], rtol=1e-5)


def test_means_of_columns_and_layers(trained, capsys):
    arguments = ["test", "--model", str(trained / "model"), "--data", str(trained / "rows.parquet"), "--mean"]
    assert cli.main([*arguments, "hidden,predictions,prediction,probability"]) == 0
    found = json.loads(capsys.readouterr().out)
    x, *_ = reference.data(80)
    saved = keras.saving.load_model(trained / "net.keras")
    hidden, scores = keras.Model(saved.inputs[0], [saved.get_layer("hidden").output, saved.output])(x)
    np.testing.assert_allclose(found["hidden"], np.mean(hidden, axis=0), rtol=1e-4)
    for name in ("predictions", "probability"):
        np.testing.assert_allclose(found[name], np.mean(scores, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["prediction"], np.argmax(scores, axis=1).mean(), rtol=1e-6)
    assert cli.main([*arguments, "nothing"]) == 1
    assert "has no layer 'nothing'" in capsys.readouterr().err


def test_an_existing_model_is_refused_before_the_training(trained, capsys):
    arguments = ["train", "--data", str(trained / "rows.parquet"), "--network", str(trained / "net.keras")]
    assert cli.main([*arguments, "--loss", "nothing-that-trains", "--save", str(trained / "model")]) == 1
    assert "it already exists" in capsys.readouterr().err
    assert cli.main([*arguments, "--save-keras", "network.txt"]) == 1
    assert "ends with .keras" in capsys.readouterr().err


def offset():
    """A network that gives 0 for every image until it is trained, so that its loss is the mean squared label."""
    image = keras.Input((4, 5, 1), name="image")
    return keras.Model(image, keras.layers.Dense(1, kernel_initializer="zeros")(keras.layers.Flatten()(image)))


def test_train_reads_images_and_validates_with_their_classes(spark, tmp_path):
    for name in ("train/cat", "train/dog", "held/dog"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (5, 4)).save(tmp_path / name / f"{index}.png")
    status = cli.main(
        ["train", "--data", str(tmp_path / "train"), "--format", "images", "--image-size", "4x5x1",
         "--validation", str(tmp_path / "held"), "--network", "tests.local.test_commands:offset",
         "--featuresCol", "image", "--loss", "mse", "--learningRate", "1e-9", "--epochs", "1",
         "--metrics-file", str(tmp_path / "new/metrics.json")]
    )  # fmt: skip
    assert status == 0
    found = json.loads((tmp_path / "new/metrics.json").read_text())
    assert (found["rows"], found["validationRows"]) == (8, 4)
    np.testing.assert_allclose([found["history"]["loss"][0], found["history"]["val_loss"][0]], [0.5, 1.0], rtol=1e-5)


def test_features_writes_layers_beside_columns(spark, trained):
    output = str(trained / "features")
    arguments = ["features", "--network", str(trained / "net.keras"), "--data", str(trained / "rows.parquet")]
    arguments += ["--layers", "hidden", "--id", "label", "--keep", "weight", "--output", output]
    assert cli.main([*arguments, "--output-format", "json"]) == 0
    found = spark.read.json(output)
    assert found.columns == ["hidden", "label", "weight"]
    assert {len(row.hidden) for row in found.collect()} == {4}


def test_errors_are_one_message_and_a_status(trained, capsys):
    arguments = ["features", "--network", str(trained / "net.keras"), "--data", str(trained / "rows.parquet")]
    arguments += ["--output", str(trained / "rows.parquet")]
    assert cli.main(arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert cli.main([*arguments[:-2], "--data", str(trained / "none.parquet"), "--output", "x"]) == 1
    assert "PATH_NOT_FOUND" in capsys.readouterr().err


# --- CaffeOnSpark's command line

NET = """
name: "small"
layer { name: "data" type: "MemoryData" top: "data" top: "label" include { phase: TRAIN }
  source_class: "com.yahoo.ml.caffe.LMDB"
  memory_data_param { source: "file:train_lmdb" batch_size: 8 channels: 1 height: 4 width: 5 share_in_parallel: false }
  transform_param { scale: 0.00390625 } }
layer { name: "data" type: "MemoryData" top: "data" top: "label" include { phase: TEST }
  source_class: "com.yahoo.ml.caffe.LMDB"
  memory_data_param { source: "test_lmdb" batch_size: 10 channels: 1 height: 4 width: 5 }
  transform_param { scale: 0.00390625 } }
layer { name: "conv/1" type: "Convolution" bottom: "data" top: "conv/1"
  convolution_param { num_output: 3 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "ip1" type: "InnerProduct" bottom: "conv/1" top: "ip1"
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 12 test_interval: 6 test_iter: 2
random_seed: 1 solver_mode: CPU
"""


@pytest.fixture(scope="module")
def directory(spark, tmp_path_factory):
    """A CaffeOnSpark directory, trained by its command line."""
    folder = tmp_path_factory.mktemp("caffe")
    random = np.random.default_rng(0)
    for name, rows in (("train_lmdb", 96), ("test_lmdb", 20)):
        labels = random.integers(0, 2, rows)
        pixels = random.integers(0, 100, (rows, 20)) + 120 * labels[:, None]
        columns = [
            (f"{row:08d}", int(labels[row]), 1, 4, 5, bytes(pixels[row].astype(np.uint8))) for row in range(rows)
        ]
        df = spark.createDataFrame(columns, "id string, label int, channels int, height int, width int, data binary")
        register(spark)
        df.write.format("lmdb").mode("overwrite").save(str(folder / name))
    (folder / "net.prototxt").write_text(NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    arguments = ["-conf", str(folder / "solver.prototxt"), "-train", "-test", "-features", "ip1,conv/1"]
    arguments += ["-output", f"file:{folder / 'features'}", "-model", f"file:{folder / 'model'}", "-devices", "2"]
    arguments += ["-label", "label"]
    assert cli.main(["caffe", *arguments]) == 0
    return folder


def test_features_are_what_caffe_on_spark_wrote(spark, directory):
    rows = {row.SampleID: row for row in spark.read.json(str(directory / "features")).collect()}
    assert sorted(rows) == [f"{row:08d}" for row in range(20)]
    source = {row.id: row for row in spark.read.format("lmdb").load(str(directory / "test_lmdb")).collect()}
    network = DeepNetModel.load(str(directory / "model")).toKeras()
    kernel, bias = network.get_layer("conv_1").get_weights()
    ip1 = network.get_layer("ip1").get_weights()
    for key, row in rows.items():
        assert row.label == [source[key].label]
        image = np.frombuffer(source[key].data, np.uint8).reshape(4, 5) / 256
        windows = np.lib.stride_tricks.sliding_window_view(image, (2, 2))
        convolved = np.einsum("yxij,ijc->cyx", windows, kernel[:, :, 0]) + bias[:, None, None]
        np.testing.assert_allclose(row["conv/1"], convolved.ravel(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row.ip1, np.maximum(convolved.ravel() @ ip1[0] + ip1[1], 0), rtol=1e-4, atol=1e-5)


def test_test_writes_loss_and_accuracy(directory, capsys):
    arguments = ["-conf", str(directory / "solver.prototxt"), "-test", "-model", str(directory / "model")]
    assert cli.main(["caffe", *arguments, "-output", str(directory / "test.json")]) == 0
    printed = capsys.readouterr()
    assert "-test: DeepNetModel.evaluate" in printed.err
    found = json.loads((directory / "test.json").read_text())
    assert found == json.loads(printed.out)
    assert found["accuracy"] >= 0.9
    assert found["loss"] < 0.5


def test_layers_by_the_names_of_caffe(spark, directory, capsys):
    arguments = ["--model", str(directory / "model"), "--data", str(directory / "test_lmdb")]
    output = str(directory / "layers")
    assert cli.main(["features", *arguments, "--layers", "ip2,conv/1", "--id", "id", "--output", output]) == 0
    rows = spark.read.parquet(output)
    assert rows.columns == ["id", "ip2", "conv/1"]
    written = rows.collect()
    assert len(written) == 20
    assert cli.main(["test", *arguments, "--mean", "ip2,conv/1"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("ip2", "conv/1"):
        np.testing.assert_allclose(found[name], np.mean([row[name] for row in written], axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.more
def test_train_reads_sequence_files(spark, directory, tmp_path):
    convert.lmdb_to_sequence_file(directory / "train_lmdb", tmp_path / "train.seq")
    arguments = ["--data", str(tmp_path / "train.seq"), "--solver", str(directory / "solver.prototxt")]
    arguments += ["--featuresCol", "data", "--save", str(tmp_path / "model"), "--metrics-file", str(tmp_path / "m")]
    assert cli.main(["train", *arguments]) == 0
    found = json.loads((tmp_path / "m").read_text())
    assert (found["rows"], found["steps"]) == (96, 12)
    assert DeepNetModel.load(str(tmp_path / "model")).toKeras().get_layer("conv_1").filters == 3


COS_DATA = """
layer { name: "data" type: "CoSData" top: "pixels" top: "words" source_class: "com.yahoo.ml.caffe.DataFrameSource"
  cos_data_param { source: "SOURCE" batch_size: 2
    top { name: "data" type: ENCODED_IMAGE_WITH_DIM channels: 3 height: 6 width: 8 out_height: 5 out_width: 5
      transform_param { crop_size: 5 } }
    top { name: "input_sentence" type: INT_ARRAY channels: 4 sample_num_axes: 1 transpose: true } } }
"""


def test_rows_of_captions_are_read_as_caffe_on_spark_wrote_them(spark, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    signed = np.frombuffer(file.getvalue(), np.int8).tolist()
    schema = "id string, data struct<height: int, width: int, image: array<tinyint>>, input_sentence array<int>"
    path = str(tmp_path / "captions")
    spark.createDataFrame([("7", (6, 8, signed), [0, 5, 2, -1])], schema).write.parquet(path)
    (layer,) = prototxt.network(COS_DATA.replace("SOURCE", path)).layer
    source = caffe_data.read(spark, layer, "net.prototxt", resize=False, partitions=None)
    (row,) = source.rows.collect()
    assert (row.SampleID, row.words) == ("7", [0, 5, 2, -1])
    assert source.shapes == {"pixels": (3, 6, 8)}  # as large as the crop's images, not as what it leaves
    assert bytes(row.pixels) == pixels[:, :, ::-1].transpose(2, 0, 1).tobytes()
