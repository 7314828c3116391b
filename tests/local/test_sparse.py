"""Vectors of a million entries reach a network as indices and values: training, scoring, bad rows."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import DenseVector, SparseVector, Vectors
from pyspark.sql import Row

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError
from cos_ml.layers import EmbeddingBag, sparse_inputs
from tests.support.reference import assert_same_weights

SIZE = 2**20
LOSS = "binary_crossentropy"


def network(size: int = SIZE, **options: Any) -> Any:
    """Sparse words and two dense numbers in, a probability out."""
    keras.utils.set_random_seed(2)
    words, price = sparse_inputs("words"), keras.Input((2,), name="price")
    bag = EmbeddingBag(size, 2, name="bag", embeddings_initializer="normal", **options)(words)
    out = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Concatenate()([bag, price]))
    return keras.Model([*words, price], out)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Vectors of any number of entries: none, some that are 0, and a few dense ones, whose size is smaller."""
    random, found = np.random.default_rng(0), []
    for row in range(40):
        entries = sorted(random.choice(SIZE, row % 6, replace=False).tolist())
        values = random.normal(size=len(entries))
        values[: row % 2] = 0
        words = Vectors.sparse(SIZE, entries, values)
        if row % 10 == 9:
            words = Vectors.dense(random.integers(0, 2, 5).tolist())
        found.append(Row(id=row, words=words, price=random.normal(size=2).tolist(), label=float(random.integers(2))))
    return found


@pytest.fixture(scope="module")
def df(spark, rows):
    halves = [row for rank in range(2) for row in rows[rank::2]]
    return spark.createDataFrame(spark.sparkContext.parallelize(halves, 2)).cache()


def arrays(rows: list[Row]) -> list[np.ndarray]:
    """The rows as plain Keras takes them."""
    indices, values = np.full((len(rows), 6), -1, np.int32), np.zeros((len(rows), 6), np.float32)
    for row, given in enumerate(rows):
        dense = isinstance(given.words, DenseVector)
        entries = (
            dict(enumerate(given.words)) if dense else dict(zip(given.words.indices, given.words.values, strict=True))
        )
        entries = {index: value for index, value in entries.items() if value}
        indices[row, : len(entries)], values[row, : len(entries)] = [*entries], [*entries.values()]
    return [indices, values, np.array([row.price for row in rows], np.float32)]


@pytest.fixture(scope="module")
def trained(df, rows):
    options = {"loss": LOSS, "metrics": ["accuracy"]}
    est = DeepNetEstimator(
        model=network(), inputCols=["words", "price"], optimizer="sgd", learningRate=0.5, epochs=3, batchSize=4,
        shuffle=False, numTrainWorkers=2, progress=False, predictBatchSize=7, **options,
    )  # fmt: skip
    plain = network()
    plain.compile(keras.optimizers.SGD(0.5), **options)
    labels = np.array([row.label for row in rows], np.float32)
    plain.fit(arrays(rows), labels, batch_size=8, epochs=3, shuffle=False, verbose=0)
    return est, est.fit(df), plain


@pytest.mark.once
def test_a_fit_is_that_of_plain_keras(df, rows, trained):
    est, model, plain = trained
    assert_same_weights(model.toKeras(), plain)
    assert "'words.indices' (any number of int32)" in est.explain(df)
    labels = np.array([row.label for row in rows], np.float32)
    expected = plain.evaluate(arrays(rows), labels, verbose=0, return_dict=True)
    assert model.evaluate(df) == pytest.approx(expected, rel=1e-5)


def test_rows_are_scored_as_plain_keras_does(df, rows, trained, tmp_path):
    _, model, plain = trained
    expected = plain.predict(arrays(rows), verbose=0)[:, 0]
    model.write().overwrite().save(str(tmp_path / "model"))
    for one in (model, DeepNetModel.load(str(tmp_path / "model"))):
        found = one.transform(df).orderBy("id").collect()
        np.testing.assert_allclose([row.probability[1] for row in found], expected, rtol=1e-4)
    for row, probability in list(zip(rows, expected, strict=True))[:10]:
        assert model.predictProbability((row.words, row.price))[1] == pytest.approx(probability, rel=1e-4)


@pytest.mark.more
@pytest.mark.once
def test_parquet_files_train_the_same(df, trained, tmp_path):
    est, model, _ = trained
    other = est.copy({est.feed: "parquet", est.cacheDir: str(tmp_path / "cache")}).fit(df)
    df.write.parquet(str(tmp_path / "rows"))
    for found in (other, est.fitParquet(str(tmp_path / "rows"))):
        for name, values in model.summary.history.items():
            np.testing.assert_allclose(found.summary.history[name], values, rtol=1e-4)


def test_bad_rows(spark):
    """An index that the bag does not have, NaN and null: named, skipped or kept, whatever lies beside them."""
    given = [Vectors.sparse(9, [2], [1.0]), Vectors.sparse(20, [1, 2, 12], [1.0, 1.0, 1.0]), None,
             Vectors.sparse(9, [0, 1, 2, 3], [1.0, float("nan"), 2.0, 2.0]), Vectors.sparse(9, [], [])]  # fmt: skip
    rows = [Row(id=row, words=words, price=[0.0, 1.0], label=1.0) for row, words in enumerate(given)]
    df = spark.createDataFrame(rows).coalesce(1)
    model = DeepNetModel(model=network(9), inputCols=["words", "price"])
    with pytest.raises(PythonException, match=r"'words.indices', row 1: is 12; expected an index from 0 to 8"):
        model.transform(df).collect()
    model.setHandleInvalid("skip")
    assert [row.id for row in model.transform(df).collect()] == [0, 4]
    model.setHandleInvalid("keep")
    for row in model.transform(df).collect():
        assert np.isnan(row.prediction) == (row.id not in (0, 4)), row
    assert np.isnan(model.predict((given[1], [0.0, 1.0])))
    assert not np.isnan(model.predict((given[0], [0.0, 1.0])))


@pytest.mark.once
def test_indices_and_values_of_arrays_have_equal_lengths(spark):
    rows = [Row(id=0, words_indices=[2, 3], words_values=[1.0, 2.0], price=[0.0, 1.0], label=1.0),
            Row(id=1, words_indices=[2, 3, 4], words_values=[1.0, 2.0], price=[0.0, 1.0], label=0.0)]  # fmt: skip
    df = spark.createDataFrame(rows).coalesce(1)
    columns = ["words_indices", "words_values", "price"]
    model = DeepNetModel(model=network(9), inputCols=columns)
    named = r"'words_values', row 1: has 2 numbers, but column 'words_indices' has 3; expected equally many"
    with pytest.raises(PythonException, match=named):
        model.transform(df).collect()
    with pytest.raises(InvalidInputError, match=r"row 0: has 2 numbers"):
        model.predict(tuple(rows[1])[1:4])
    est = DeepNetEstimator(model=network(9), inputCols=columns, loss=LOSS, progress=False)
    assert re.search(rf"PROBLEM.*{named}", est.explain(df))
    model.setHandleInvalid("skip")
    assert [row.id for row in model.transform(df).collect()] == [0]
    model.setHandleInvalid("keep")
    assert [bool(np.isnan(row.prediction)) for row in model.transform(df).collect()] == [False, True]


@pytest.mark.once
def test_what_is_not_as_the_network_takes_it_is_named(spark):
    inputs = keras.Input((None,), dtype="int32")
    alone = DeepNetModel(model=keras.Model(inputs, EmbeddingBag(9, 1)(inputs)), featuresCol="words")
    df = spark.createDataFrame([Row(words=SparseVector(30, {2: 5.0, 4: 1.0}), numbers=[1.0])])
    with pytest.raises(InvalidInputError, match=r"'words' is a Vector.*write 'words.indices'"):
        alone.transform(df)
    alone.setFeaturesCol("words.indices")
    table = alone.toKeras().get_weights()[0]
    assert alone.transform(df).head().prediction == pytest.approx(table[[2, 4]].sum(), rel=1e-5)
    assert alone.predict(df.head().words) == pytest.approx(table[[2, 4]].sum(), rel=1e-5)
    alone.setFeaturesCol("words.values")
    with pytest.raises(InvalidInputError, match=r"'words.values' has values.*takes indices"):
        alone.transform(df)
    pair = sparse_inputs()
    both = DeepNetModel(model=keras.Model(pair, EmbeddingBag(9, 1)(pair)), featuresCol="numbers")
    with pytest.raises(InvalidInputError, match=r"no column 'numbers.indices'.*array<double>, not a Vector"):
        both.transform(df)
    described = {"ml_attr": {"num_attrs": 30}}
    with pytest.raises(InvalidInputError, match=r"Vectors have 30 entries.*9 rows.*input_dim=30"):
        both.setFeaturesCol("words").transform(df.withMetadata("words", described))


@pytest.mark.more
@pytest.mark.once
def test_a_bag_of_one_unit_is_a_logistic_regression(spark):
    random = np.random.default_rng(1)
    rows = []
    for _ in range(80):
        entries = sorted(random.choice(12, 4, replace=False).tolist())
        label = float(sum(entries) + random.normal() * 5 > 22)
        rows.append((SparseVector(12, entries, random.uniform(0.5, 1.5, 4)), label))
    df = spark.createDataFrame(rows, ["features", "label"]).coalesce(1).cache()
    oracle = LogisticRegression(regParam=0.02, standardization=False, fitIntercept=False, tol=1e-10).fit(df)
    inputs = sparse_inputs()
    bag = EmbeddingBag(12, 1, embeddings_regularizer=keras.regularizers.L2(0.01))
    model = DeepNetEstimator(
        model=keras.Model(inputs, keras.layers.Activation("sigmoid")(bag(inputs))), loss=LOSS, batchSize=80,
        optimizer=keras.optimizers.SGD(2.0, momentum=0.9), epochs=200, progress=False,
    ).fit(df)  # fmt: skip
    np.testing.assert_allclose(model.toKeras().get_weights()[0][:, 0], oracle.coefficients.toArray(), atol=2e-3)
