"""Names of columns, several columns for one input: beside Spark's own stages on the same frame."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.mllib.linalg import Vectors as OldVectors
from pyspark.mllib.util import MLUtils
from pyspark.sql import Row
from pyspark.sql import functions as F
from pyspark.sql import types as T

from cos_ml import DeepNetEstimator, DeepNetModel, ImageAssembler
from cos_ml.errors import InvalidInputError
from cos_ml.sources import register
from cos_ml.sources.images import read_sequence_file, write_sequence_file
from tests.support.reference import assert_same_weights

layers = keras.layers


def network(size: int = 2, names: tuple[str, ...] = ("hidden",), **more: Any) -> Any:
    keras.utils.set_random_seed(3)
    hidden = [layers.Dense(2, activation="tanh", name=name) for name in names]
    return keras.Sequential([keras.Input((size,), **more), *hidden, layers.Dense(2, activation="softmax", name="out")])


@pytest.fixture(scope="module")
def df(spark):
    random = np.random.default_rng(0)
    rows = [(Vectors.dense(x.tolist()), float(x[0] > 0), float(1 + i % 3), i % 4 == 0)
            for i, x in enumerate(random.normal(size=(40, 2)).round(3))]  # fmt: skip
    return spark.createDataFrame(rows, ["features", "label", "weight", "held"]).coalesce(1).cache()


@pytest.fixture(scope="module")
def regression(df):
    return LogisticRegression(maxIter=1).fit(df)


@pytest.fixture
def case_sensitive(spark):
    spark.conf.set("spark.sql.caseSensitive", "true")
    yield
    spark.conf.unset("spark.sql.caseSensitive")


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

FRAMES = {
    "upper": ["features as Features", "label"],
    "struct": ["struct(features as Features) as S", "label"],
    "dot": ["features as `a.b`", "label"],
    "dot and struct": ["label as `a.b`", "struct(features as b) as a"],
    "tick": ["features as `a``b`"],
    "twice": ["features", "features as Features"],
    "the same twice": ["features", "features"],
    "twice in a struct": ["struct(features, features as Features) as s"],
}


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ("upper", "features"),
        ("upper", "FEATURES"),
        ("upper", "`features`"),
        ("struct", "s.features"),
        ("struct", "`s`.FEATURES"),
        ("dot", "`a.b`"),
        ("dot", "`A.B`"),
        ("dot and struct", "a.b"),
        ("tick", "`a``b`"),
    ],
)
def test_a_name_is_found_as_spark_finds_it(df, regression, frame, name):
    renamed = df.selectExpr(*FRAMES[frame])
    model = DeepNetModel(model=network(), featuresCol=name)
    native = regression.copy({regression.featuresCol: name}).transform(renamed)
    assert native.columns == model.transform(renamed).columns
    assert native.count() == 40
    expected = DeepNetModel(model=network()).transform(df).select("prediction", "probability").collect()
    assert model.transform(renamed).select("prediction", "probability").collect() == expected


@pytest.mark.parametrize(
    ("frame", "name", "message"),
    [
        ("upper", "feature", r"no column 'feature'. The DataFrame has columns \['Features', 'label'\]"),
        ("struct", "s.x", r"no column 's.x': 's' has the fields \['Features'\]"),
        ("upper", "label.x", "'label' is of type double"),
        ("twice", "features", r"'features' is ambiguous: it means each of \['features', 'Features'\]"),
        ("the same twice", "Features", r"'Features' is ambiguous: it means each of \['features', 'features'\]"),
        ("twice in a struct", "s.features", "ambiguous.* of struct 's'"),
    ],
)
def test_a_name_that_spark_does_not_find(df, regression, frame, name, message):
    renamed = df.selectExpr(*FRAMES[frame])
    with pytest.raises(Exception, match=r"FIELD_NOT_FOUND|AMBIGUOUS|INVALID_FIELD_NAME"):
        regression.copy({regression.featuresCol: name}).transform(renamed)
    with pytest.raises(InvalidInputError, match=message):
        DeepNetModel(model=network(), featuresCol=name).transform(renamed)
    with pytest.raises(InvalidInputError, match=message):
        estimator(featuresCol=name, labelCol=name).fit(renamed)
    with pytest.raises(InvalidInputError, match=message):
        ImageAssembler(height=2, width=2, inputCol=name).transform(renamed)


def test_upper_and_lower_case_differ_where_the_session_says_so(df, regression, case_sensitive):
    upper, both = df.selectExpr(*FRAMES["upper"]), df.withColumn("Features", F.lit("no features"))
    model = DeepNetModel(model=network())
    with pytest.raises(Exception, match="FIELD_NOT_FOUND"):
        regression.transform(upper)
    with pytest.raises(InvalidInputError, match="no column 'features'"):
        model.transform(upper)
    assert regression.transform(both).count() == model.transform(both).count() == 40
    named = DeepNetModel(model=network(names=("Hidden", "hidden")), featureLayers=["Hidden", "hidden"])
    scored = named.transform(df.withColumn("Prediction", F.lit(1)))
    assert scored.columns[-5:] == ["Hidden", "hidden", "rawPrediction", "probability", "prediction"]
    assert scored.where("Hidden = hidden or Prediction = prediction").count() < 40
    assert regression.transform(df.withColumn("Prediction", F.lit(1))).columns[-1] == "prediction"


def estimator(**params: Any) -> DeepNetEstimator:
    defaults = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "optimizer": "sgd", "epochs": 2}
    return DeepNetEstimator(**{"model": network(), "shuffle": False, "progress": False} | defaults | params)


PLAIN = {"featuresCol": "features", "labelCol": "label", "weightCol": "weight", "validationIndicatorCol": "held"}
OTHER = {"featuresCol": "S.Features", "labelCol": "LABEL", "weightCol": "s.w", "validationIndicatorCol": "`held.out`"}


@pytest.fixture(scope="module")
def trained(df):
    return estimator(**PLAIN).fit(df)


@pytest.fixture(scope="module")
def renamed(df):
    return df.selectExpr("struct(features, weight as W) s", "label as Label", "held as `Held.Out`", "label as other")


@pytest.mark.parametrize("feed", ["arrow", pytest.param("parquet", marks=pytest.mark.more)])
def test_every_param_of_a_fit_finds_its_column(df, trained, renamed, feed, tmp_path):
    model = estimator(**OTHER, feed=feed, cacheDir=str(tmp_path)).fit(renamed)
    assert_same_weights(model.toKeras(), trained.toKeras())
    for metric, values in trained.summary.history.items():
        assert model.summary.history[metric] == pytest.approx(values)
    assert model.evaluate(renamed) == pytest.approx(trained.evaluate(df))
    scored, expected = (
        one.select("rawPrediction").collect() for one in (model.transform(renamed), trained.transform(df))
    )
    assert scored == expected
    assert estimator(**OTHER).explain(renamed).startswith("ok")


def test_columns_of_parquet_files(spark, df, trained, tmp_path):
    features, labels = vector_to_array("features").alias("Features"), F.col("label").alias("LABEL")
    df.select(features, labels, "weight", "held", F.struct("label").alias("s")).write.parquet(str(tmp_path / "rows"))
    model = estimator(**PLAIN | {"labelCol": "s.label"}).fitParquet(str(tmp_path / "rows"))
    assert_same_weights(model.toKeras(), trained.toKeras())


@pytest.mark.once
def test_inputs_and_outputs_are_matched_by_the_names_of_columns_in_any_case(spark):
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    outs = [layers.Dense(1, name="low")(left), layers.Dense(3, activation="softmax", name="high")(right)]
    model = keras.Model([left, right], outs)
    df = spark.createDataFrame([([1.0, 2.0], 3.0, 0, 0.5)], "Left array<double>, RIGHT double, High int, Low double")
    df = df.select(F.struct("Left", "RIGHT").alias("s"), "High", "Low")
    est = DeepNetEstimator(
        model=model, inputCols=["s.RIGHT", "s.Left"], labelCols=["High", "Low"],
        loss=["mse", "sparse_categorical_crossentropy"],
    )  # fmt: skip
    text = est.explain(df.withColumn("Low", F.lit(0.5)))
    assert "inputs 's.Left' (2 float32), 's.RIGHT' (1 float32); labels 'Low', 'High' (classes 0 to 2)" in text


# ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_output_columns_replace_nothing(df, regression):
    with pytest.raises(Exception, match="Column prediction already exists"):
        regression.transform(df.withColumn("prediction", F.lit(1)))
    with pytest.raises(InvalidInputError, match="'prediction' is in the DataFrame already"):
        DeepNetModel(model=network()).transform(df.withColumn("Prediction", F.lit(1)))
    for name, column in (("Features", "features"), ("LABEL", "label")):
        model = DeepNetModel(model=network(names=(name,)), featureLayers=[name])
        with pytest.raises(InvalidInputError, match=f"Output column '{name}' is in the DataFrame already"):
            model.transform(df)
        scored = model.setOutputCols(["h"]).transform(df)
        assert scored.select(column).collect() == df.select(column).collect()
    model = DeepNetModel(model=network(names=("Hidden", "hidden")), featureLayers=["Hidden", "hidden"])
    with pytest.raises(InvalidInputError, match=r"added twice, because upper and lower case.*outputCols"):
        model.transform(df)
    with pytest.raises(InvalidInputError, match=r"'Hidden' would be added twice"):
        estimator(**model_params(model)).fit(df)
    assert model.setOutputCols(["one", "two"]).transform(df).where("one = two").count() == 0
    with pytest.raises(InvalidInputError, match="'PREDICTION' would be added twice"):
        DeepNetModel(model=network(), probabilityCol="PREDICTION").transform(df)


def model_params(model: DeepNetModel) -> dict[str, Any]:
    return {"model": model, "featureLayers": model.getFeatureLayers()}


def test_other_columns_that_spark_can_not_tell_apart_do_not_matter(df, regression):
    joined = df.join(df.select("features", F.lit(1).alias("x"), F.lit(2).alias("X")).limit(1), "features")
    doubled = joined.select("*", F.lit(3).alias("x"))
    assert regression.transform(doubled).columns == DeepNetModel(model=network()).transform(doubled).columns
    assert DeepNetModel(model=network(), handleInvalid="skip").transform(doubled).count() == 1


# ── several columns for one input ─────────────────────────────────────────────────────────────────────────────────────

MIXED = ["age", "income", "s.rate", "member", "vec", "old.array", "sparse"]


@pytest.fixture(scope="module")
def mixed(spark):
    random = np.random.default_rng(1)
    rows = [
        (i, Decimal(i) / 4, (float(np.float32(random.normal())),), bool(i % 2), Vectors.dense(random.normal(size=2)),
         random.normal(size=3).tolist(), Vectors.sparse(4, [i % 4], [1.5]), float(i % 2), i % 5 == 0)
        for i in range(50)
    ]  # fmt: skip
    schema = T.StructType(
        [
            T.StructField("Age", T.IntegerType()),
            T.StructField("income", T.DecimalType(8, 2)),
            T.StructField("s", T.StructType([T.StructField("rate", T.FloatType())])),
            T.StructField("member", T.BooleanType()),
            T.StructField("vec", VectorUDT()),
            T.StructField("old.array", T.ArrayType(T.DoubleType())),
            T.StructField("sparse", VectorUDT()),
            T.StructField("label", T.DoubleType()),
            T.StructField("held", T.BooleanType()),
        ]
    )
    df = spark.createDataFrame(rows, schema).coalesce(1)
    wide = ["Age", "income", "s.rate", "member", "vec", "arrays", "sparse"]
    together = VectorAssembler(inputCols=wide, outputCol="features")
    vectors = df.withColumn("arrays", array_to_vector("`old.array`"))
    return together.transform(vectors).drop("arrays").cache()


@pytest.mark.parametrize("handle_invalid", ["error", "skip", "keep"])
def test_several_columns_are_one_input(mixed, handle_invalid):
    assembled = DeepNetModel(model=network(13), handleInvalid=handle_invalid).transform(mixed)
    joined = DeepNetModel(model=network(13), inputCols=MIXED, handleInvalid=handle_invalid).transform(mixed)
    assert joined.select("rawPrediction").collect() == assembled.select("rawPrediction").collect()
    row, model = assembled.first(), DeepNetModel(model=network(13), inputCols=MIXED)
    assert model.predict(row.features) == row.prediction
    assert model.numFeatures == 13


@pytest.mark.once
def test_a_fit_to_several_columns(spark, mixed, tmp_path):
    """Both feeds, evaluate, explain, and a Pipeline that is saved and loaded."""
    params = {"model": network(13), "validationIndicatorCol": "held"}
    expected = estimator(**params).fit(mixed)
    est = estimator(**params, inputCols=MIXED)
    assert f"'{', '.join(MIXED)}' (13 float32)" in est.explain(mixed)
    pipeline = Pipeline(stages=[StandardScaler(inputCol="vec", outputCol="scaled"), est]).fit(mixed)
    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    models = [pipeline.stages[-1], loaded.stages[-1]]
    try:
        import petastorm  # noqa: F401

        models.append(est.copy({est.feed: "petastorm", est.cacheDir: str(tmp_path / "cache")}).fit(mixed))
    except ImportError:
        pass
    for model in models:
        assert_same_weights(model.toKeras(), expected.toKeras())
        assert model.getInputCols() == MIXED
        assert model.evaluate(mixed) == pytest.approx(expected.evaluate(mixed))
    native = expected.transform(mixed).select("rawPrediction").collect()
    assert loaded.transform(mixed).select("rawPrediction").collect() == native


@pytest.mark.more
def test_two_thousand_columns(spark):
    """Doubles, integers and arrays side by side, in runs of several lengths; a row with a null is a bad one."""
    kinds = ["double", "int", "int", "array<float>", "float", "float", "bigint", "decimal(9,2)"]
    values = np.random.default_rng(0).integers(-9, 9, (3, 2000)).astype(float)
    columns = [
        F.expr(f"cast({f'array({number}D)' if 'array' in kind else f'{number}D'} as {kind}) as c{at}")
        for at, kind in enumerate(itertools.islice(itertools.cycle(kinds), 2000))
        for number in [values[0, at]]
    ]
    df = spark.range(1).select(*columns).cache()
    rows = df.unionByName(df.withColumn("c1", F.lit(None).cast("int")))
    model = DeepNetModel(model=network(2000), inputCols=df.columns, handleInvalid="keep")
    whole, bad = (row.probability.toArray() for row in model.transform(rows).select("probability").collect())
    assert whole == pytest.approx(model.toKeras().predict(values[:1], verbose=0)[0], abs=1e-6)
    assert np.isnan(bad).all()


@pytest.mark.once
@pytest.mark.parametrize(
    ("size", "names", "message"),
    [
        (4, ["Age", "income"], r"columns \['Age', 'income'\] make 2 values per row; the network expects 4"),
        (1, ["Age", "vec", "income"], "make 2 or more values per row; the network expects 1"),
        (16, ["Age", "features"], "make 14 values per row; the network expects 16"),  # VectorAssembler's metadata
        (5, ["features", "income"], "make 14 values per row; the network expects 5"),
        (2, ["Age", "nothing"], "no column 'nothing'"),
        (2, ["Age", "word"], "Column 'word' is of type string"),
        (2, ["Age", "bytes"], "column 'bytes' is binary, and can't be joined"),
    ],
)
def test_columns_that_can_not_be_joined(mixed, size, names, message):
    df = mixed.selectExpr("*", "'a' as word", "cast('a' as binary) as bytes")
    with pytest.raises(InvalidInputError, match=message):
        DeepNetModel(model=network(size), inputCols=names).transform(df)


@pytest.mark.once
def test_bad_rows_of_several_columns(spark):
    nan = float("nan")
    rows = [(1.0, [2.0, 3.0]), (None, [2.0, 3.0]), (1.0, None), (1.0, [2.0]), (nan, [2.0, 3.0]), (1.0, [None, 1.0])]
    df = spark.createDataFrame(rows, "a double, v array<double>").coalesce(1)
    model = DeepNetModel(model=network(3), inputCols=["a", "v"])
    hole, short = "contains an element that is null|has NaN at position", "has 2 numbers; the network expects 3"
    for bad, message in enumerate((hole, "is null", short, "has NaN at position 0", hole), start=1):
        with pytest.raises(Exception, match=f"column 'a, v', row 0: ({message})"):
            model.transform(spark.createDataFrame([rows[bad]], df.schema)).collect()
    assert model.setHandleInvalid("skip").transform(df).select("a", "v").collect() == [rows[0]]
    kept = model.setHandleInvalid("keep").transform(df).collect()
    assert [np.isnan(row.prediction) for row in kept] == [False] + [True] * 5
    est = estimator(model=network(3), inputCols=["a", "v"], handleInvalid="skip")
    assert "5 of them will be skipped" in est.explain(df.withColumn("label", F.lit(1.0)))


@pytest.mark.once
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("uint64", (3,)),
        ("float32", (None, 1)),
        *(pytest.param(*one, marks=pytest.mark.more) for one in (("int64", (3,)), ("bool", (3,)), ("float64", (3, 1)))),
    ],
)
def test_several_columns_of_any_type(spark, dtype, shape):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(shape, dtype=dtype)
    flat = layers.Flatten() if None not in shape else layers.GlobalAveragePooling1D()
    out = layers.Dense(1)(flat(inputs))
    model = keras.Model(inputs, out)
    df = spark.createDataFrame([(1, [True, False], [[1, 0]]), (0, [True, True], [[1, 1]])],
                               "a bigint, b array<boolean>, c array<array<int>>")  # fmt: skip
    joined = DeepNetModel(model=model, inputCols=["a", "b"]).transform(df).collect()
    nested = DeepNetModel(model=model, inputCols=["a", "c"]).transform(df).collect()
    one = df.select(F.expr("concat(array(a), cast(b as array<bigint>))").alias("features"))
    expected = [row.prediction for row in DeepNetModel(model=model).transform(one).collect()]
    assert [row.prediction for row in joined] == [row.prediction for row in nested] == expected


def test_strings_of_several_columns(spark):
    keras.utils.set_random_seed(1)
    words = keras.Input((3,), dtype="string")
    out = layers.Dense(1)(layers.Flatten()(layers.Embedding(5, 2)(layers.StringLookup(vocabulary=["a", "b"])(words))))
    model = keras.Model(words, out)
    df = spark.createDataFrame([("a", ["b", "c"]), ("b", ["a", None])], "one string, more array<string>").coalesce(1)
    together = df.select(F.expr("concat(array(one), more)").alias("words"))
    for invalid in ("skip", "keep"):
        expected = DeepNetModel(model=model, featuresCol="words", handleInvalid=invalid).transform(together).collect()
        joined = DeepNetModel(model=model, inputCols=["One", "more"], handleInvalid=invalid).transform(df).collect()
        np.testing.assert_equal([row.prediction for row in joined], [row.prediction for row in expected])


# ── other kinds of frames ─────────────────────────────────────────────────────────────────────────────────────────────


def test_old_vectors(spark, df):
    old = spark.createDataFrame([(OldVectors.dense([0.0, 1.0]), 0.0)], ["features", "label"])
    with pytest.raises(Exception, match="Column features must be of type"):
        LogisticRegression().fit(old)
    message = "old mllib Vector: convert it with pyspark.mllib.util.MLUtils.convertVectorColumnsToML"
    for refused in (
        lambda: DeepNetModel(model=network()).transform(old),
        lambda: estimator().fit(old),
        lambda: estimator(inputCols=["label", "features"], model=network(3)).fit(old),
        lambda: estimator(labelCol="features", featuresCol="label", model=network(1), loss="mse").fit(old),
        lambda: DeepNetModel(model=network(3), inputCols=["label", "features"]).transform(old),
    ):
        with pytest.raises(InvalidInputError, match=message):
            refused()
    assert DeepNetModel(model=network()).transform(MLUtils.convertVectorColumnsToML(old)).count() == 1


def test_a_stream(spark, df, trained, tmp_path):
    flat = df.select(vector_to_array("features").alias("v"), "label", "weight").select(
        F.col("v")[0].alias("a"), F.col("v")[1].alias("b"), "label"
    )
    flat.write.parquet(str(tmp_path / "source"))
    stream = spark.readStream.schema(flat.schema).parquet(str(tmp_path / "source"))
    model = DeepNetModel(model=trained.toKeras(), inputCols=["A", "B"])
    with pytest.raises(InvalidInputError, match=r"evaluate\(\) needs a batch DataFrame, but this one is streaming"):
        trained.copy({trained.inputCols: ["a", "b"]}).evaluate(stream)
    with pytest.raises(InvalidInputError, match=r"fit\(\) needs a batch DataFrame"):
        estimator(inputCols=["a", "b"]).fit(stream)
    query = model.transform(stream).writeStream.format("memory").queryName("scored_columns")
    query = query.trigger(availableNow=True).start()
    assert query.awaitTermination(60)
    found = spark.table("scored_columns").orderBy("a").select("prediction").collect()
    assert found == model.transform(flat).orderBy("a").select("prediction").collect()


@pytest.mark.more
@pytest.mark.parametrize("output_type", ["uint8", "float"])
def test_null_images_are_bad_rows(spark, output_type):
    """Of ImageAssembler, and of the network behind it: no black picture is trained on or scored."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2, 2, 3)), layers.Flatten(), layers.Dense(2, activation="softmax")])
    df = spark.createDataFrame([(None, 0.0), (b"", 1.0)], "Data binary, label double").coalesce(1)
    assembler = ImageAssembler(height=2, width=2, outputType=output_type, handleInvalid="keep")
    images = assembler.transform(df)
    with pytest.raises(Exception, match="column 'data', row 0: is null"):
        assembler.copy({assembler.handleInvalid: "error"}).transform(df).collect()
    for path in ("image", "s.image"):
        frame = images if path == "image" else images.select(F.struct("image").alias("s"), "label")
        scorer = DeepNetModel(model=model, featuresCol=path)
        with pytest.raises(Exception, match=f"column '{path}', row 0: is null"):
            scorer.transform(frame).collect()
        assert scorer.setHandleInvalid("skip").transform(frame).count() == 0
        assert all(np.isnan(row.prediction) for row in scorer.setHandleInvalid("keep").transform(frame).collect())
    with pytest.raises(InvalidInputError, match="column 'image', row 0: is null"):
        estimator(model=model, featuresCol="image").fit(images)
    with pytest.raises(InvalidInputError, match="'Image' is in the DataFrame already"):
        assembler.copy({assembler.outputCol: "Image"}).transform(images)


@pytest.mark.more
def test_lmdb(spark, tmp_path):
    """As Parquet, of which a schema that is given finds the columns in any case."""
    register(spark)
    df = spark.createDataFrame([("a", 3, b"x")], "ID string, Label int, DATA binary").coalesce(1)
    df.write.format("lmdb").mode("overwrite").save(str(tmp_path / "db"))
    given = "Id string, DATA binary, LABEL int"
    assert spark.read.format("lmdb").schema(given).load(str(tmp_path / "db")).collect() == [Row("a", b"x", 3)]
    df.write.parquet(str(tmp_path / "rows"))
    assert spark.read.schema(given).parquet(str(tmp_path / "rows")).collect() == [Row("a", b"x", 3)]
    twice = df.selectExpr("ID", "ID as id", "DATA")
    with pytest.raises(Exception, match=r"Expected each column once, received 'id' twice|COLUMN_ALREADY_EXISTS"):
        twice.write.format("lmdb").mode("overwrite").save(str(tmp_path / "twice"))


def test_sequence_files(spark, tmp_path):
    df = spark.createDataFrame([(1, (b"x",))], "ID int, s struct<Data: binary>")
    write_sequence_file(df, str(tmp_path / "records"), dataCol="s.data")
    assert read_sequence_file(spark, str(tmp_path / "records")).collect() == [("1", b"x")]
    with pytest.raises(InvalidInputError, match=r"no column 's\.nothing'"):
        write_sequence_file(df, str(tmp_path / "more"), dataCol="s.nothing")
