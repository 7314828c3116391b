"""What a model offers besides transform, beside Spark's own models with the same weights."""

from __future__ import annotations

import json
import pickle
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import Model, Pipeline, PredictionModel, Predictor
from pyspark.ml.classification import LogisticRegression, OneVsRest
from pyspark.ml.feature import IndexToString, OneHotEncoder, StringIndexer
from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.ml.param import shared
from pyspark.ml.regression import LinearRegression
from pyspark.sql import functions as F

from cos_ml import DeepNetEstimator, DeepNetModel
from cos_ml.errors import InvalidInputError

pytestmark = pytest.mark.once

ANIMALS = ["cat", "dog", "eel"]
MIXINS = ("FeaturesCol", "LabelCol", "PredictionCol", "ProbabilityCol", "RawPredictionCol", "Thresholds", "WeightCol")


@pytest.fixture(scope="module")
def df(spark) -> Any:
    """Rows whose classes a linear model half knows: label of 3 classes from StringIndexer, odd of 2, size a number."""
    random = np.random.default_rng(0)
    features = random.normal(size=(120, 4))
    classes = (features[:, :3] + random.normal(size=(120, 3))).argmax(axis=1)
    rows = [
        (Vectors.dense(row), ANIMALS[one], float(one % 2), float(row.sum() + one), float(1 + one))
        for row, one in zip(features, classes, strict=True)
    ]
    frame = spark.createDataFrame(rows, ["features", "animal", "odd", "size", "weight"])
    indexer = StringIndexer(inputCol="animal", outputCol="label", stringOrderType="alphabetAsc")
    return indexer.fit(frame).transform(frame).coalesce(1).cache()


def dense(kernel: Any, bias: Any, activation: str | None, compiled: dict[str, Any]) -> Any:
    """A network of one layer with the weights of a linear model of Spark."""
    kernel, bias = np.atleast_2d(np.asarray(kernel)).T, np.atleast_1d(np.asarray(bias))
    network = keras.Sequential([keras.Input((len(kernel),)), keras.layers.Dense(len(bias), activation=activation)])
    network.set_weights([kernel, bias])
    network.compile(**compiled)
    return network


@pytest.fixture(scope="module")
def multinomial(df) -> tuple[Any, DeepNetModel]:
    native = LogisticRegression(maxIter=5).fit(df)
    compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    network = dense(native.coefficientMatrix.toArray(), native.interceptVector, "softmax", compiled)
    return native, DeepNetModel(model=network)


@pytest.fixture(scope="module")
def binomial(df) -> tuple[Any, DeepNetModel]:
    native = LogisticRegression(maxIter=5, labelCol="odd", weightCol="weight").fit(df)
    network = dense(native.coefficients, native.intercept, "sigmoid", {"loss": "binary_crossentropy"})
    return native, DeepNetModel(model=network, labelCol="odd", weightCol="weight")


@pytest.fixture(scope="module")
def regression(df) -> tuple[Any, DeepNetModel]:
    native = LinearRegression(labelCol="size", maxIter=5, regParam=0.5).fit(df)
    network = dense(native.coefficients, native.intercept, None, {"loss": "mse"})
    return native, DeepNetModel(model=network, labelCol="size")


@pytest.fixture(scope="module")
def fitted(df) -> tuple[DeepNetEstimator, DeepNetModel]:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    estimator = DeepNetEstimator(
        model=network, loss="sparse_categorical_crossentropy", predictedLabelCol="kind", thresholds=[0.2, 0.5, 0.3],
        epochs=2, progress=False,
    )  # fmt: skip
    return estimator, estimator.fit(df)


def column(df: Any, name: str) -> np.ndarray:
    return np.array([row[0].toArray() if hasattr(row[0], "toArray") else row[0] for row in df.select(name).collect()])


# ── one row ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["multinomial", "binomial"])
def test_a_row_is_predicted_as_by_a_native_classifier_and_by_transform(request, df, kind):
    native, model = request.getfixturevalue(kind)
    for row in model.transform(df.limit(10)).collect():
        assert model.predict(row.features) == native.predict(row.features) == row.prediction
        assert type(model.predict(row.features)) is float
        expected = native.predictProbability(row.features).toArray()
        np.testing.assert_allclose(model.predictProbability(row.features).toArray(), expected, atol=1e-6)
        np.testing.assert_allclose(
            model.predictProbability(row.features).toArray(), row.probability.toArray(), atol=1e-6
        )
        raw, expected = model.predictRaw(row.features).toArray(), native.predictRaw(row.features).toArray()
        np.testing.assert_allclose(raw - raw[0], expected - expected[0], atol=1e-5)
        np.testing.assert_allclose(raw, row.rawPrediction.toArray(), atol=1e-5)
    assert isinstance(model.predictRaw(row.features), DenseVector)
    sparse = Vectors.sparse(4, [1], [2.0])
    assert model.predict(sparse) == native.predict(sparse)
    assert (model.numClasses, model.numFeatures) == (native.numClasses, native.numFeatures)


def test_a_regressor_has_no_classes(regression):
    native, model = regression
    vector = Vectors.dense([1.0, 2.0, 3.0, 4.0])
    assert model.predict(vector) == pytest.approx(native.predict(vector), rel=1e-6)
    assert model.numFeatures == native.numFeatures == 4
    assert not hasattr(native, "numClasses")
    assert not hasattr(model, "numClasses")
    for method in (model.predictRaw, model.predictProbability):
        with pytest.raises(InvalidInputError, match=f"{method.__name__} needs a classifier: output 'dense"):
            method(vector)


def test_a_row_that_does_not_fit(multinomial):
    native, model = multinomial
    short = Vectors.dense([1.0, 2.0])
    with pytest.raises(Exception, match="requirement failed"):
        native.predict(short)
    with pytest.raises(InvalidInputError, match=r"'features', row 0: .*2 .*4"):
        model.predict(short)
    bad = [1.0, float("nan"), 0.0, 0.0]
    with pytest.raises(InvalidInputError, match="NaN"):
        model.predict(Vectors.dense(bad))
    with pytest.raises(InvalidInputError, match="Expected a Vector or numbers for 'features'"):
        model.predict("cat")
    keeps = model.copy({model.handleInvalid: "keep"})
    assert np.isnan(keeps.predict(bad))
    assert np.isnan(keeps.predictProbability(bad).toArray()).all()


def test_other_inputs_and_outputs():
    left, right = keras.Input((2, 2), name="left"), keras.Input((), dtype="int32", name="right")
    merged = keras.layers.Concatenate()([keras.layers.Flatten()(left), keras.layers.Reshape((1,))(right)])
    model = DeepNetModel(model=keras.Model([left, right], keras.layers.Dense(3, kernel_initializer="ones")(merged)))
    assert model.numFeatures == 5
    assert model.predict((np.ones((2, 2)), 3)) == Vectors.dense([7.0] * 3)
    with pytest.raises(InvalidInputError, match=r"a tuple of values for the network's inputs \['left', 'right'\]"):
        model.predict(Vectors.dense([1.0]))
    with pytest.raises(InvalidInputError, match="'right', row 0"):
        model.predict((np.ones(4), 1.5))
    words = keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    text = keras.Sequential([keras.Input((), dtype="string"), words, keras.layers.Dense(1, kernel_initializer="ones")])
    assert DeepNetModel(model=text).predict("b") == 1.0
    index = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(5, 2), keras.layers.Flatten()])
    with pytest.raises(InvalidInputError, match=r"'features', row 0.*5"):
        DeepNetModel(model=index).predict([4, 5])
    steps = keras.Sequential([keras.Input((None, 2)), keras.layers.GlobalAveragePooling1D()])
    assert DeepNetModel(model=steps).numFeatures == -1
    assert DeepNetModel(model=steps).predict([[1.0, 2.0], [3.0, 4.0]]) == Vectors.dense([2.0, 3.0])
    assert DeepNetModel().numFeatures == -1


# ── what it is ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_says_what_it_is(multinomial, regression, fitted):
    for native, model in (multinomial, regression):
        expected = str(native).replace(type(native).__name__, "DeepNetModel").replace(native.uid, model.uid)
        assert str(model) == repr(model) == expected
    estimator, model = fitted
    assert model.uid == estimator.uid
    assert repr(estimator) == estimator.uid  # as Spark's estimators
    assert repr(DeepNetModel()).startswith("DeepNetModel: uid=DeepNetModel_")


def test_tools_find_the_classes_and_mixins_that_they_look_for(multinomial, fitted):
    assert isinstance(fitted[0], Predictor)
    for native, model in (multinomial, (LogisticRegression(), fitted[0]), (multinomial[0], fitted[1])):
        for mixin in (getattr(shared, f"Has{name}") for name in MIXINS):
            assert isinstance(native, mixin)
            assert isinstance(model, mixin)
    assert isinstance(fitted[1], PredictionModel)
    assert isinstance(fitted[1], Model)


def test_summaries(multinomial, fitted):
    model = fitted[1]
    assert model.hasSummary
    assert multinomial[0].hasSummary
    assert model.summary.objectiveHistory == model.summary.history["loss"]
    assert model.summary.totalIterations == 2
    assert not multinomial[1].hasSummary
    with pytest.raises(RuntimeError, match="No training summary"):
        _ = multinomial[1].summary


# ── thresholds ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "thresholds"),
    [
        ("multinomial", [0.2, 0.5, 0.3]),
        ("multinomial", [0.9, 0.0, 0.1]),
        ("multinomial", [1.0, 1e-3, 1.0]),
        ("binomial", [0.3, 0.7]),
        ("binomial", [0.9, 0.2]),
        ("binomial", [0.5, 0.0]),
    ],
)
def test_thresholds_choose_the_class_as_in_a_native_classifier(request, df, kind, thresholds):
    native, model = (stage.copy() for stage in request.getfixturevalue(kind))
    native.setThresholds(thresholds)
    model.setThresholds(thresholds)
    assert model.getThresholds() == native.getThresholds() == thresholds
    found, expected = model.transform(df), native.transform(df)
    assert column(found, "prediction").tolist() == column(expected, "prediction").tolist()
    np.testing.assert_allclose(column(found, "probability"), column(expected, "probability"), atol=1e-6)
    vector = df.first().features
    assert model.predict(vector) == found.first().prediction


@pytest.mark.parametrize("thresholds", [[0.0, 0.0, 1.0], [-1.0, 1.0, 1.0], [float("nan"), 1.0, 1.0]])
def test_thresholds_out_of_range(thresholds):
    with pytest.raises(InvalidInputError, match="Param thresholds: expected a list of numbers >= 0"):
        DeepNetEstimator(thresholds=thresholds)


def test_thresholds_and_labels_are_one_for_each_class(df, multinomial, regression, fitted):
    native, model = multinomial
    with pytest.raises(Exception, match="thresholds"):
        native.copy({native.thresholds: [0.5, 0.5]}).transform(df)
    for name, value in (("thresholds", [0.5, 0.5]), ("labels", ["cat", "dog"])):
        expected = f"Param {name}: expected one for each of the 3 classes of output 'dense[_0-9]*', received 2: "
        wrong = model.copy({model.getParam(name): value})
        for call in (lambda m: m.transform(df), lambda m: m.predict(df.first().features), lambda m: m.evaluate(df)):
            with pytest.raises(InvalidInputError, match=expected):
                call(wrong)
        with pytest.raises(InvalidInputError, match=expected):
            fitted[0].fit(df, {fitted[0].getParam(name): value})
        number = regression[1].copy({regression[1].getParam(name): value})
        with pytest.raises(InvalidInputError, match=f"Param {name}: expected a classifier, but output"):
            number.transform(df)
    for name, value in (("thresholds", "0.5"), ("thresholds", [None]), ("labels", "cat"), ("labels", [1, 2])):
        with pytest.raises(TypeError, match=f"Param {name}: "):
            DeepNetModel(**{name: value})


# ── names of classes ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_labels_come_from_the_label_column_and_go_to_a_column(tmp_path, df, fitted):
    estimator, model = fitted
    assert model.getLabels() == ANIMALS
    assert not estimator.isSet("labels")
    assert model.getThresholds() == [0.2, 0.5, 0.3]
    out = model.transform(df)
    assert out.columns == [*df.columns, "rawPrediction", "probability", "prediction", "kind"]
    native = IndexToString(inputCol="prediction", outputCol="native", labels=ANIMALS).transform(out)
    assert native.where("kind is null or kind != native").count() == 0
    assert out.schema["kind"].dataType.simpleString() == "string"
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = DeepNetModel.load(str(tmp_path / "model"))
    assert loaded.getLabels() == ANIMALS
    assert loaded.transform(df).select("kind").collect() == out.select("kind").collect()


def test_labels_in_a_pipeline_and_without_the_prediction_column(df, multinomial):
    named = multinomial[1].copy({multinomial[1].labels: ["x", "", "ä b"], multinomial[1].predictedLabelCol: "kind"})
    named.setParams(predictionCol="", probabilityCol="", rawPredictionCol="")
    out = Pipeline(stages=[named]).fit(df).transform(df)
    assert out.columns == [*df.columns, "kind"]
    expected = column(multinomial[1].transform(df), "prediction")
    assert [row.kind for row in out.collect()] == [["x", "", "ä b"][int(one)] for one in expected]
    with pytest.raises(InvalidInputError, match="'label' is in the DataFrame already"):
        named.copy({named.predictedLabelCol: "label"}).transform(df)


def test_invalid_rows_have_no_class(df, multinomial):
    named = multinomial[1].copy({multinomial[1].labels: ANIMALS, multinomial[1].predictedLabelCol: "kind"})
    bad = df.limit(3).withColumn("features", F.when(F.col("size") == df.first()["size"], None).otherwise(df.features))
    kept = named.copy({named.handleInvalid: "keep"}).transform(bad).select("prediction", "kind").collect()
    assert [row.kind is None for row in kept] == [np.isnan(row.prediction) for row in kept] == [True, False, False]
    assert named.copy({named.handleInvalid: "skip"}).transform(bad).where("kind is null").count() == 0


def test_a_label_column_without_names(df, multinomial, fitted):
    named = {fitted[0].predictedLabelCol: "kind"}
    plain = df.withColumn("label", F.col("label") + 0)
    assert plain.schema["label"].metadata == {}
    with pytest.raises(InvalidInputError, match="predictedLabelCol: there are no names of 3 classes"):
        fitted[0].fit(plain, named)
    with pytest.raises(InvalidInputError, match="predictedLabelCol: there are no names of 3 classes"):
        multinomial[1].copy({multinomial[1].predictedLabelCol: "kind"}).transform(df)


def test_one_hot_labels_have_names(df):
    encoded = OneHotEncoder(inputCols=["label"], outputCols=["hot"], dropLast=False).fit(df).transform(df)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    estimator = DeepNetEstimator(model=network, labelCol="hot", loss="categorical_crossentropy", progress=False)
    assert estimator.fit(encoded).getLabels() == ANIMALS


# ── evaluate ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MULTICLASS = ("accuracy", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate", "labels",
              "weightedFalsePositiveRate", "truePositiveRateByLabel", "falsePositiveRateByLabel", "precisionByLabel",
              "recallByLabel")  # fmt: skip
REGRESSION = ("meanSquaredError", "rootMeanSquaredError", "meanAbsoluteError", "r2", "explainedVariance")
NAMES = {"multinomial": MULTICLASS, "binomial": (*MULTICLASS, "areaUnderROC", "weightCol"), "regression": REGRESSION}


@pytest.mark.parametrize("kind", NAMES)
def test_a_summary_beside_the_dict(request, df, kind):
    native, model = request.getfixturevalue(kind)
    found, expected = model.evaluate(df), native.evaluate(df)
    assert isinstance(found, dict)
    assert found["loss"] > 0
    for name in (*NAMES[kind], "labelCol", "featuresCol", "predictionCol"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4)), name
        assert name in dir(found)
    assert {"prediction"} <= set(found.predictions.columns)
    assert found.predictions.count() == expected.predictions.count()
    if kind == "regression":
        assert found.meanSquaredError == pytest.approx(found["loss"], rel=1e-5)
        assert not hasattr(expected, "accuracy")
        assert not hasattr(found, "accuracy")
        assert not hasattr(found, "probabilityCol")
    else:
        assert found.probabilityCol == expected.probabilityCol
        assert found.weightedFMeasure() == pytest.approx(expected.weightedFMeasure())
        assert found.fMeasureByLabel(2.0) == pytest.approx(expected.fMeasureByLabel(2.0))
    assert hasattr(found, "areaUnderROC") == (kind == "binomial")


def test_a_summary_of_one_hot_labels(df, multinomial):
    hot = F.transform(F.array(*map(F.lit, range(3))), lambda one: (one == F.col("label")).cast("double"))
    network = multinomial[1].toKeras()
    network.compile(loss="categorical_crossentropy")
    found = DeepNetModel(model=network, labelCol="hot").evaluate(df.withColumn("hot", hot))
    assert found.recallByLabel == multinomial[1].evaluate(df).recallByLabel


def test_a_summary_is_a_dict_like_any_other(df, multinomial):
    model = multinomial[1].copy({multinomial[1].predictionCol: "", multinomial[1].thresholds: [1.0, 0.0, 1.0]})
    found = model.evaluate(df)
    assert json.loads(json.dumps(found)) == found
    assert pickle.loads(pickle.dumps(found)) == dict(found)
    assert found.accuracy == pytest.approx(df.where("label = 1").count() / df.count())  # of what is predicted
    assert found.predictionCol == f"prediction_{model.uid}"
    assert "prediction" not in model.transform(df).columns


# ── beside others ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.more
def test_one_vs_rest(df, fitted):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
    binary = DeepNetEstimator(model=network, loss="binary_crossentropy", learningRate=0.1, batchSize=8, progress=False)
    rows = OneVsRest(classifier=binary).fit(df).transform(df).select("label", "prediction").collect()
    assert {row.prediction for row in rows} <= {0.0, 1.0, 2.0}
    assert np.mean([row.label == row.prediction for row in rows]) > 0.5
