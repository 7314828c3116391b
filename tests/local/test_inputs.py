"""Networks of several inputs and outputs, strings, bytes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from pyspark.sql import Row

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from tests.support.reference import assert_same_weights

layers = keras.layers


def tagger() -> Any:
    """Rows of any number of steps in, a class for each step out."""
    keras.utils.set_random_seed(1)
    steps = keras.Input((None, 2), name="steps")
    inner = layers.LSTM(4, return_sequences=True, name="inner")(layers.Masking(mask_value=-9.0)(steps))
    return keras.Model(steps, layers.Dense(3, activation="softmax")(inner))


@pytest.mark.once
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.more), 2])
def test_rows_of_different_lengths(spark, ranks):
    """Training, evaluation and scoring as in plain Keras on batches that are padded by hand.

    Keras's own accuracy weighs a batch by its share of valid steps, so the length of each batch counts.
    """
    random = np.random.default_rng(0)
    lengths = np.append([8, 8], random.integers(1, 9, 20))
    x = np.full((22, 8, 2), -9.0, np.float32)
    y = np.zeros((22, 8), np.int64)
    for row, length in enumerate(lengths):
        x[row, :length], y[row, :length] = random.normal(size=(length, 2)), random.integers(0, 3, length)
    rows = [
        (x[row, :length].reshape(-1).tolist(), y[row, :length].tolist(), float(length))
        for row, length in enumerate(lengths)
    ]
    parts = spark.sparkContext.parallelize([row for rank in range(ranks) for row in rows[rank::ranks]], ranks)
    df = spark.createDataFrame(parts, "features array<float>, label array<bigint>, length double")
    options = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    model = DeepNetEstimator(
        model=tagger(), paddingValue=-9.0, optimizer="sgd", learningRate=0.5, epochs=3, shuffle=False,
        batchSize=8 // ranks, numTrainWorkers=ranks, predictBatchSize=5, progress=False, **options,
    ).fit(df)  # fmt: skip
    plain = tagger()
    plain.compile(keras.optimizers.SGD(0.5), **options)
    steps = [(slice(start, start + 8), lengths[start : start + 8].max()) for start in (0, 8, 16)]
    batches = ((x[rows, :length], y[rows, :length]) for rows, length in steps * 3)
    history = plain.fit(batches, steps_per_epoch=3, epochs=3, shuffle=False, verbose=0).history
    assert_same_weights(model.toKeras(), plain)
    for name, values in history.items():
        np.testing.assert_allclose(model.summary.history[name], values, rtol=1e-5)
    expected = plain.predict(x, verbose=0)
    by_row = {tuple(row[0]): expected[place, : lengths[place]].reshape(-1) for place, row in enumerate(rows)}
    for row in model.transform(df).collect():
        np.testing.assert_allclose(row.prediction, by_row[tuple(row.features)], atol=1e-5)
    accuracy = plain.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    model.setPredictBatchSize(64)  # each partition has one of the longest rows
    assert model.evaluate(df)["accuracy"] == pytest.approx(accuracy, rel=1e-5)


def two_in_two_out() -> Any:
    """Left and right in; their difference as a number, and which is larger as a class, out."""
    keras.utils.set_random_seed(1)
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    both = layers.Dense(8, activation="relu", name="both")(layers.Concatenate()([left, right]))
    return keras.Model(
        {"left": left, "right": right},
        [layers.Dense(1, name="difference")(both), layers.Dense(2, activation="softmax", name="larger")(both)],
    )


@pytest.fixture(scope="module")
def pairs(spark):
    random = np.random.default_rng(0)
    values = random.normal(size=(200, 3)).round(3)
    rows = [Row(right=float(c), left=[float(a), float(b)], gap=float(a + b - c), more=int(a + b > c), w=1.0 + i % 3)
            for i, (a, b, c) in enumerate(values)]  # fmt: skip
    return spark.createDataFrame(rows).repartition(2).cache()


@pytest.mark.once
@pytest.mark.parametrize("named", [True, pytest.param(False, marks=pytest.mark.more)])
def test_several_inputs_and_outputs(pairs, named):
    data = pairs if named else pairs.withColumnsRenamed({"left": "a", "right": "b"})
    est = DeepNetEstimator(
        model=two_in_two_out(),
        inputCols=["right", "left"] if named else ["a", "b"],  # by name in any order; else in the network's
        labelCols=["gap", "more"],
        loss=["mse", "sparse_categorical_crossentropy"],
        lossWeights=[1.0, 0.5],
        metrics=[["mae"], ["accuracy"]],
        weightCol="w",
        optimizer="adam",
        learningRate=0.02,
        epochs=12,
        batchSize=8,
        numTrainWorkers=2 if named else 1,
        progress=False,
    )
    model = est.fit(data)
    history = model.summary.history
    assert history["larger_accuracy"][-1] > 0.85
    rows = model.transform(data).collect()
    left = np.array([row[data.columns[1]] for row in rows])
    right = np.array([[row[data.columns[0]]] for row in rows])
    numbers, probabilities = (out.numpy() for out in model.toKeras()({"left": left, "right": right}))
    np.testing.assert_allclose([row.prediction for row in rows], numbers[:, 0], atol=1e-5)
    np.testing.assert_allclose([row.probability_larger.toArray() for row in rows], probabilities, atol=1e-5)
    assert [row.prediction_larger for row in rows] == probabilities.argmax(axis=1).tolist()
    assert "probability" not in rows[0]
    metrics = model.evaluate(data)
    assert set(metrics) == set(history)
    assert metrics["difference_loss"] + 0.5 * metrics["larger_loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    weights = np.array([row.w for row in rows])
    errors = (numbers[:, 0] - [row.gap for row in rows]) ** 2
    assert metrics["difference_loss"] == pytest.approx(np.average(errors, weights=weights), rel=1e-5)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=[pytest.mark.once, pytest.mark.more]), 2])
def test_strings(spark, ranks, tmp_path):
    """A column of words and one of texts, into StringLookup and TextVectorization."""
    words, lines = ["red", "green", "blue"], ["we like it", "they hate it", "it is"]
    rows = [Row(word=words[i % 3], text=lines[i % 3], label=float(i % 3 == 1)) for i in range(60)]
    df = spark.createDataFrame(rows).repartition(ranks)
    keras.utils.set_random_seed(1)
    word, text = keras.Input((1,), name="word", dtype="string"), keras.Input((), name="text", dtype="string")
    lookup = layers.StringLookup(vocabulary=words)
    vectorise = layers.TextVectorization(output_mode="int", output_sequence_length=4)
    vectorise.adapt(lines)
    a = layers.Flatten()(layers.Embedding(5, 3)(lookup(word)))
    b = layers.Flatten()(layers.Embedding(20, 3)(vectorise(text)))
    network = keras.Model([word, text], layers.Dense(1, activation="sigmoid", name="out")(layers.Concatenate()([a, b])))
    est = DeepNetEstimator(
        model=network, inputCols=["word", "text"], loss="binary_crossentropy", metrics=["accuracy"], learningRate=0.1,
        epochs=5, batchSize=8, numTrainWorkers=ranks, progress=False,
    )  # fmt: skip
    model = est.fit(df)
    assert model.summary.rows == 60
    assert model.summary.history["accuracy"][-1] == 1.0
    model.save(str(tmp_path / "model"))
    scored = DeepNetModel.load(str(tmp_path / "model")).transform(df).collect()
    assert [row.prediction for row in scored] == [row.label for row in scored]
    assert model.evaluate(df)["accuracy"] == 1.0
    with pytest.raises(InvalidInputError, match=r"Column 'label' is of type double: expected a string"):
        model.setInputCols(["label", "text"]).transform(df)
    holes = spark.createDataFrame([("red", None), ("blue", "it is")], "word string, text string")
    kept = model.setInputCols(["word", "text"]).setHandleInvalid("skip").transform(holes).collect()
    assert [row.word for row in kept] == ["blue"]


@pytest.mark.once
def test_bytes_are_pixels(spark):
    """A binary column is a uint8 tensor of the input's shape, in training and in scoring.

    Batches are of all rows: bytes and numbers are shuffled into orders of their own.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (80, 4, 4, 1), dtype=np.uint8)
    labels = (images[:, 0, 0, 0] > 127).astype(float)
    df = spark.createDataFrame([(image.tobytes(), float(label)) for image, label in zip(images, labels, strict=True)],
                               "image binary, label double")  # fmt: skip
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(1, activation="sigmoid")]
    )
    est = DeepNetEstimator(
        model=network,
        featuresCol="image",
        loss="binary_crossentropy",
        learningRate=0.1,
        epochs=3,
        batchSize=80,
        progress=False,
    )
    model = est.fit(df.coalesce(1))
    twin = DeepNetEstimator(
        model=network,
        featuresCol="pixels",
        loss="binary_crossentropy",
        learningRate=0.1,
        epochs=3,
        batchSize=80,
        progress=False,
    )
    numbers = spark.createDataFrame(
        [(image.reshape(-1).tolist(), float(label)) for image, label in zip(images, labels, strict=True)],
        "pixels array<int>, label double",
    )
    assert_same_weights(model.toKeras(), twin.fit(numbers.coalesce(1)).toKeras())
    expected = model.toKeras()(images.astype(np.float32)).numpy()[:, 0]
    rows = model.transform(df).collect()
    np.testing.assert_allclose([row.probability[1] for row in rows], expected, atol=1e-5)
