"""Exported models in their own runtimes, beside plain Keras."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.linalg import Vectors

import cos_ml
from cos_ml import DeepNetModel, ImageAssembler, exporting
from cos_ml.errors import ExportError, InvalidInputError, SavedModelError
from cos_ml.exports import formats
from cos_ml.layers import EmbeddingBag, sparse_inputs
from tests.support.layers import MonteCarloDropout

FORMATS = ("saved_model", "onnx", "litert")
LABELS = ["plum", "rye", "ötzi"]
layers = keras.layers


def serve(path: Path, form: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of an exported file, as a server computes them."""
    if form == "saved_model":
        found = tf.saved_model.load(str(path)).signatures["serving_default"]
        return {name: one.numpy() for name, one in found(**{k: tf.constant(v) for k, v in inputs.items()}).items()}
    if form == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        return dict(zip([one.name for one in session.get_outputs()], session.run(None, inputs), strict=True))
    return dict(Interpreter(str(path)).get_signature_runner("serving_default")(**inputs))


def metadata(path: Path, form: str) -> dict:
    """What a file says of itself, read as docs/export.md says."""
    if form == "saved_model":
        return json.loads((path / "assets.extra/cos_ml.json").read_text())
    if form == "onnx":
        return json.loads(onnx.load(path).metadata_props[0].value)
    return json.loads(zipfile.ZipFile(path).read("cos_ml.json"))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Several inputs and outputs, convolutions, masks, recurrent layers, and a model inside the model."""
    keras.utils.set_random_seed(0)
    photo, words = keras.Input((8, 8, 3), name="photo"), keras.Input((6,), dtype="int32", name="words")
    x = layers.Rescaling(1 / 255)(photo)
    x = layers.SeparableConv2D(4, 3, activation="relu")(x)
    x = layers.BatchNormalization(beta_initializer="ones")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    y = layers.Embedding(20, 5, mask_zero=True)(words)
    y = layers.Bidirectional(layers.GRU(3, unroll=True))(y)
    joined = layers.Concatenate(name="joined")([x, y])
    inner = keras.Input(joined.shape[1:])
    hidden = layers.Dense(7, activation="gelu", name="hidden")(inner)
    head = keras.Model(inner, layers.LayerNormalization()(hidden), name="head")(joined)
    kind = layers.Dense(3, activation="softmax", name="kind")(head)
    return keras.Model([photo, words], [kind, layers.Dense(1, name="price")(head)])


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_computes_what_keras_computes(spark, network, tmp_path, form, capfd):
    model = DeepNetModel(
        model=network,
        inputCols=["photo", "words"],
        featureLayers=["head/hidden"],
        outputCols=["features"],
        labels=LABELS,
        thresholds=[0.2, 0.5, 0.3],
        predictedLabelCol="name",
    )
    path = tmp_path / "new" / "exported"
    exported = model.export(path, form)
    assert "W0000" not in (printed := capfd.readouterr()).err
    assert not printed.out
    photo = np.random.default_rng(1).uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)
    words = np.array(
        [[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [19] * 6], np.int32
    )
    found = serve(path, form, photo=photo, words=words)
    kind, price = network.predict([photo, words], verbose=0)
    joined = keras.Model(network.inputs, network.get_layer("joined").output).predict([photo, words], verbose=0)
    head = network.get_layer("head")
    assert set(found) == {"prediction", "probability", "rawPrediction", "prediction_price", "features", "name"}
    close(found["probability"], kind)
    close(found["rawPrediction"], np.log(kind))
    close(found["prediction_price"], price[:, 0])
    chosen = (kind / [0.2, 0.5, 0.3]).argmax(1)
    assert found["prediction"].tolist() == chosen.tolist()
    close(found["features"], keras.Model(head.inputs, head.get_layer("hidden").output).predict(joined, verbose=0))
    texts = [one.decode() if isinstance(one, bytes) else one for one in found["name"]]
    assert texts == [LABELS[one] for one in chosen]
    told = metadata(path, form)
    assert told["labels"] == LABELS
    assert told["cos_ml"] == cos_ml.__version__
    assert [one["column"] for one in told["inputs"]] == ["photo", "words"]
    assert exported.rows == 3
    assert exported.difference < 1e-5
    assert exported.inputs[0].shape == (None, 8, 8, 3)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_any_length(spark, tmp_path, form):
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((None, 2)), layers.Masking(), layers.LSTM(3, return_sequences=True)])
    model, path = DeepNetModel(model=net, featuresCol="steps"), tmp_path / "exported"
    rows = spark.createDataFrame([([1.0, 2.0] * n,) for n in (1, 4, 2)], "steps array<float>")
    exported = model.export(path, form, rows=rows)
    assert exported.rows == 3
    given = random(1, 7, 2)
    close(serve(path, form, steps=given)["prediction"], net.predict(given, verbose=0))
    batch = 1 if form == "litert" else None  # its loops need a fixed number of rows
    assert exported.inputs[0].shape == (batch, None, 2)


@pytest.mark.parametrize("form", FORMATS)
def test_preprocessing_and_joined_columns(spark, tmp_path, form):
    keras.utils.set_random_seed(2)
    sizes, town = keras.Input((3,), name="sizes"), keras.Input((1,), dtype="string", name="town")
    known = layers.StringLookup(vocabulary=["Rome", "Łódź"], output_mode="one_hot")(town)
    bins = [] if form == "litert" else [layers.Discretization([0.0, 0.5, 1.0])(sizes)]
    x = layers.Concatenate()([layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 4, 9])(sizes), known])
    out = layers.Dense(1, activation="sigmoid")(x)
    net = keras.Model([sizes, town], [out, *bins])
    one = keras.Sequential([keras.Input((3,)), layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 4, 9])])
    joined = tmp_path / "joined"
    DeepNetModel(model=one, inputCols=["petal length (cm)", "b", "c"]).export(joined, form)
    values = random(4, 3)
    found = serve(joined, form, petal_length__cm_=values[:, 0], b=values[:, 1], c=values[:, 2])
    close(found["prediction"], one.predict(values, verbose=0))
    path = tmp_path / "exported"
    DeepNetModel(model=net, inputCols=["sizes", "town"]).export(path, form)
    towns = np.array([["Rome"], ["Oslo"], ["Łódź"], [""]], object)
    found = serve(path, form, sizes=values, town=towns)
    expected = net([tf.constant(values), tf.constant(towns)])
    positive = np.asarray(expected[0] if bins else expected)
    close(found["probability"], np.hstack([1 - positive, positive]))
    if bins:
        np.testing.assert_array_equal(found["prediction_" + net.output_names[1]], expected[1])


def flowers(n: int) -> list[bytes]:
    files = []
    for place in range(n):
        pixels = np.random.default_rng(place).integers(0, 256, (20 + place, 30, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize("form", FORMATS)
def test_a_pipeline_with_images(spark, tmp_path, form):
    keras.utils.set_random_seed(3)
    net = keras.Sequential(
        [keras.Input((12, 10, 3)), layers.Rescaling(1 / 127.5, -1), layers.Conv2D(2, 3), layers.GlobalMaxPooling2D()]
    )
    rows = spark.createDataFrame([(file, "a") for file in flowers(4)], "data binary, species string")
    indexer = StringIndexer(inputCol="species", outputCol="label").fit(rows)
    assembler = ImageAssembler(height=12, width=10, resize="crop")
    model = DeepNetModel(model=net, featuresCol="image")
    path = tmp_path / "exported"
    pipeline = PipelineModel([indexer, assembler, model])
    decodes = form == "saved_model"
    if not decodes:
        with pytest.raises(ExportError, match=rf"can't hold the stage {assembler.uid}: .*Pass pixels=True.* 'image'"):
            cos_ml.export(pipeline, path, form)
    exported = cos_ml.export(pipeline, path, form, rows=rows, pixels=not decodes)
    shown = {"saved_model": "data string[?]"}.get(form, "image uint8[?, 12, 10, 3]")
    assert str(exported.inputs[0]) == shown
    pixels = np.array([np.frombuffer(row.image, np.uint8) for row in assembler.transform(rows).collect()])
    pixels = pixels.reshape(4, 12, 10, 3)
    given = {"data": np.array(flowers(4), object)} if form == "saved_model" else {"image": pixels}
    close(serve(path, form, **given)["prediction"], net.predict(pixels, verbose=0))
    assert metadata(path, form)["images"]["image"]["resize"] == "crop"
    if form == "saved_model":  # without rows of the user's, files are made
        assert model.export(tmp_path / "alone", form, images=assembler).rows == 3


@pytest.mark.parametrize("form", FORMATS)
def test_sparse_vectors_and_a_layer_that_is_not_kerass(spark, tmp_path, form):
    keras.utils.set_random_seed(4)
    inputs = sparse_inputs("words")
    net = keras.Model(inputs, EmbeddingBag(9, 2, "mean")(inputs))
    model, path = DeepNetModel(model=net, featuresCol="words"), tmp_path / "exported"
    rows = spark.createDataFrame([(Vectors.sparse(9, {1: 2.0, 5: 1.0}),), (Vectors.sparse(9, {8: 1.0}),)], ["words"])
    assert model.export(path, form, rows=rows).rows == 2
    model.export(path, form, overwrite=True)
    given = [np.array([[1, 5, -1], [0, 7, 8]], np.int32), np.array([[2, 1, 0], [1, 1, 3]], np.float32)]
    found = serve(path, form, words_indices=given[0], words_values=given[1])
    close(found["prediction"], net.predict(given, verbose=0))


def test_what_a_format_can_not_hold_is_named(spark, tmp_path):
    text = layers.TextVectorization(10, output_sequence_length=3, name="text")
    text.adapt(["a b c"])
    inner = keras.Sequential([keras.Input((), dtype="string"), text], name="inner")
    net = keras.Sequential([keras.Input((), dtype="string"), inner, layers.Embedding(10, 2), layers.Flatten()])
    model = DeepNetModel(model=net, featuresCol="words")
    for form, title in (("onnx", "ONNX"), ("litert", "LiteRT")):
        with pytest.raises(ExportError, match=rf"^{title} can't hold this network. layer 'inner/text' \(TextVector"):
            model.export(tmp_path / form, form)
    model.export(tmp_path / "saved_model")
    words = np.array(["a c", "b"], object)
    found = serve(tmp_path / "saved_model", "saved_model", words=words)
    close(found["prediction"], net(tf.constant(words)))
    double = keras.Sequential([keras.Input((2,), dtype="float64"), layers.Dense(2, dtype="float64", name="wide")])
    with pytest.raises(ExportError, match=r"layer 'wide' \(Dense\): no operator MatMul"):
        DeepNetModel(model=double).export(tmp_path / "x", "litert")
    assert {one.name for one in tmp_path.iterdir()} == {"saved_model"}


def test_what_is_refused_before_anything_is_computed(spark, tmp_path):
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model, path = DeepNetModel(model=net), tmp_path / "exported"
    rows = spark.createDataFrame([(1.0, 2.0)], "a double, b double")
    assembler = VectorAssembler(inputCols=["a", "b"], outputCol="features")
    indexer = StringIndexer(inputCol="prediction", outputCol="index").fit(model.transform(assembler.transform(rows)))
    noisy = keras.Sequential([keras.Input((2,)), MonteCarloDropout(0.5, name="random_units")])
    cases = {
        "VectorAssembler_.* makes inputs of the DeepNetModel.*set its inputCols": PipelineModel([assembler, model]),
        "StringIndexer_.* comes after the DeepNetModel": PipelineModel([model, indexer]),
        "received a PipelineModel with 0 of them": PipelineModel([assembler]),
        "Layers .*random_units.* are random": DeepNetModel(model=noisy),
        "Param attributionsCol": DeepNetModel(model=net, attributionsCol="why"),
        "only rows tell the size of each": DeepNetModel(
            model=keras.Sequential([keras.Input((3,)), layers.Dense(1)]), inputCols=["a", "v"]
        ),
    }
    for message, stage in cases.items():
        with pytest.raises(ExportError, match=message):
            cos_ml.export(stage, path)
    with pytest.raises(InvalidInputError, match="expected one of the formats"):
        model.export(path, "pickle")
    path.mkdir()
    with pytest.raises(SavedModelError, match="already exists"):
        model.export(path)
    with pytest.raises(SavedModelError, match="is a folder without a SavedModel"):
        model.export(path, overwrite=True)
    bad = spark.createDataFrame([([float("nan"), 1.0],)], "features array<float>")
    with pytest.raises(InvalidInputError, match="column 'features', row 0: has NaN"):
        model.setHandleInvalid("keep").export(tmp_path / "x", rows=bad)


def test_other_numbers_are_an_error_and_leave_what_was_there(spark, tmp_path, monkeypatch):
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model, path = DeepNetModel(model=net), "memory://exports/digits/1"  # no file system of the operating system
    first = model.export(path)
    filesystem, folder = exporting.stores.open_filesystem(path)
    before = {name: filesystem.cat_file(name) for name in filesystem.find(folder)}
    assert any(name.endswith("variables.index") for name in before)
    assert first.path == path
    run = formats.run_exported
    monkeypatch.setattr(formats, "run_exported", lambda *given: {"prediction": run(*given)["prediction"] * 1.01})
    with pytest.raises(ExportError, match=r"column 'prediction' differs by 0\.01 of its"):
        model.export(path, overwrite=True)
    assert {name: filesystem.cat_file(name) for name in filesystem.find(folder)} == before
    filesystem.rm(folder, recursive=True)
