"""The metadata of output columns, beside that of Spark's own stages."""

import pytest
from pyspark.ml.classification import DecisionTreeClassifier, LogisticRegression
from pyspark.ml.feature import PCA, IndexToString, OneHotEncoder, StringIndexer, VectorAssembler, VectorSizeHint
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegression
from pyspark.sql import functions as F

from cos_ml import DeepNetModel
from cos_ml.network.keras_import import import_keras

keras = import_keras()
layers = keras.layers


@pytest.fixture(scope="module")
def df(spark):
    rows = [(Vectors.dense([float(i), i % 3.0]), "abc"[i % 3]) for i in range(12)]
    return StringIndexer(inputCol="word", outputCol="label").fit(
        spark.createDataFrame(rows, ["features", "word"])
    ).transform(spark.createDataFrame(rows, ["features", "word"])).coalesce(1)  # fmt: skip


def classifier(**params):
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, name="hidden"), layers.Dense(3, "softmax", name="classes")]
    )
    return DeepNetModel(model=net, **params)


def metadata(df):
    return {field.name: field.metadata for field in df.schema.fields}


def names(metadata):
    return [one["name"] for one in metadata["ml_attr"]["attrs"]["numeric"]]


def test_columns_of_a_classifier(df):
    native = metadata(LogisticRegression(maxIter=1).fit(df).transform(df))
    found = metadata(classifier(featureLayers=["hidden"]).transform(df))
    assert found["prediction"] == native["prediction"] == {"ml_attr": {"type": "nominal", "num_vals": 3}}
    for name in ("rawPrediction", "probability"):
        assert found[name]["ml_attr"]["num_attrs"] == native[name]["ml_attr"]["num_attrs"] == 3
        assert names(found[name]) == ["0", "1", "2"]
    assert found["hidden"]["ml_attr"]["num_attrs"] == 4
    assert names(found["hidden"]) == ["hidden_0", "hidden_1", "hidden_2", "hidden_3"]
    assert found["label"] == metadata(df)["label"]


@pytest.mark.once
def test_columns_of_two_classes_in_one_unit_and_of_a_regressor(df):
    one = keras.Sequential([keras.Input((2,)), layers.Dense(1, "sigmoid")])
    found = metadata(DeepNetModel(model=one).transform(df))
    assert found["probability"]["ml_attr"]["num_attrs"] == 2
    assert found["prediction"] == {"ml_attr": {"type": "nominal", "num_vals": 2}}
    linear = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    native = metadata(LinearRegression(maxIter=1).fit(df).transform(df))
    assert metadata(DeepNetModel(model=linear).transform(df))["prediction"] == native["prediction"]


def test_a_vector_has_its_size_as_that_of_pca(df):
    net = keras.Sequential([keras.Input((2,)), layers.Dense(6, name="code"), layers.Reshape((2, 3), name="grid")])
    found = metadata(DeepNetModel(model=net, featureLayers=["code"]).transform(df))
    native = metadata(PCA(k=2, inputCol="features", outputCol="pca").fit(df).transform(df))
    assert native["pca"]["ml_attr"]["num_attrs"] == 2
    assert found["code"]["ml_attr"]["num_attrs"] == found["prediction"]["ml_attr"]["num_attrs"] == 6
    assert names(found["prediction"]) == [f"grid_{index}" for index in range(6)]


@pytest.mark.once
def test_labels_name_the_classes(df):
    out = classifier(labels=["cat", "dog", "cow"]).transform(df)
    assert metadata(out)["prediction"] == {"ml_attr": {"type": "nominal", "vals": ["cat", "dog", "cow"]}}
    assert names(metadata(out)["probability"]) == ["cat", "dog", "cow"]
    words = IndexToString(inputCol="prediction", outputCol="found").transform(out)
    assert {row.found for row in words.collect()} <= {"cat", "dog", "cow"}


@pytest.mark.once
def test_a_wide_layer_has_a_size_and_no_names(df):
    net = keras.Sequential([keras.Input((2,)), layers.Dense(1001, name="wide"), layers.Dense(1)])
    assert metadata(DeepNetModel(model=net, featureLayers=["wide"]).transform(df))["wide"] == {
        "ml_attr": {"num_attrs": 1001}
    }


@pytest.mark.once
def test_what_only_rows_can_tell_has_no_size(spark):
    net = keras.Sequential([keras.Input((None, 1)), layers.Dense(2, name="steps"), layers.GlobalAveragePooling1D()])
    df = spark.createDataFrame([([1.0, 2.0],)], ["features"])
    found = metadata(DeepNetModel(model=net, featureLayers=["steps"]).transform(df))
    assert found["steps"] == {}
    assert found["prediction"]["ml_attr"]["num_attrs"] == 2


@pytest.mark.more
def test_assemblers_encoders_and_trees_know_the_columns(df):
    out = classifier(featureLayers=["hidden"], predictionCol="guess").transform(df)
    keep = VectorAssembler(inputCols=["hidden", "guess", "probability"], outputCol="all", handleInvalid="keep")
    for frame in (out, out.limit(0)):
        all_ = keep.transform(frame)
        assert all_.schema["all"].metadata["ml_attr"]["num_attrs"] == 8
    assert names(all_.schema["all"].metadata)[:2] == ["hidden_hidden_0", "hidden_hidden_1"]
    encoded = OneHotEncoder(inputCol="guess", outputCol="code", dropLast=False).fit(out.limit(1)).transform(out)
    assert encoded.first().code.size == 3
    tree = DecisionTreeClassifier(featuresCol="all", predictionCol="p", probabilityCol="pp", rawPredictionCol="rp")
    assert tree.fit(keep.transform(out)).numFeatures == 8
    only = out.select("features", F.col("guess").alias("target"))
    assert DecisionTreeClassifier(labelCol="target").fit(only).numClasses == 3


@pytest.mark.more
def test_on_a_stream_and_after_a_round_trip(spark, df, tmp_path):
    path = str(tmp_path / "model")
    classifier(featureLayers=["hidden"]).save(path)
    model = DeepNetModel.load(path)
    df.select("features").write.parquet(str(tmp_path / "rows"))
    stream = spark.readStream.schema(df.select("features").schema).parquet(str(tmp_path / "rows"))
    out = VectorAssembler(inputCols=["hidden", "prediction"], outputCol="all").transform(model.transform(stream))
    query = out.select("all").writeStream.format("memory").queryName("native_metadata").start()
    try:
        query.processAllAvailable()
    finally:
        query.stop()
    assert [len(row["all"]) for row in spark.table("native_metadata").collect()] == [5] * 12
    batch = model.transform(df)
    batch.write.parquet(str(tmp_path / "scored"))
    again = spark.read.parquet(str(tmp_path / "scored"))
    assert metadata(again)["hidden"] == metadata(batch)["hidden"]
    VectorSizeHint(inputCol="hidden", size=4).transform(batch)
