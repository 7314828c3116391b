"""Bad input: one clear error, before any rank trains, and nothing left behind."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from pyspark.ml.linalg import Vectors

from cos_ml import DeepNetEstimator, callback
from cos_ml.errors import InvalidInputError
from tests.support import reference
from tests.support.processes import assert_nothing_left
from tests.support.sessions import frame

pytestmark = pytest.mark.once

GOOD = [1.0] * 12
NAN = float("nan")
SCHEMA = "features array<double>, label double, weight double, text string"


def estimator(**params: Any) -> DeepNetEstimator:
    defaults = {"loss": "sparse_categorical_crossentropy", "progress": False}
    return DeepNetEstimator(**{"model": reference.network()} | defaults | params)


@pytest.fixture(scope="module")
def good(spark):
    return spark.createDataFrame([(GOOD, 1.0, 1.0, "a")] * 4, SCHEMA).coalesce(1)


@pytest.fixture
def no_job(spark, monkeypatch):
    """Fails the test when a barrier job starts: what it tests is to be found before."""
    from cos_ml.job import barrier

    def run(*_: Any) -> None:
        raise AssertionError("the job started")

    monkeypatch.setattr(barrier, "run", run)


# ── before any job ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"featuresCol": "fetures"},
            r"no column 'fetures'. The DataFrame has columns \['features', 'label', 'weight', 'text'\]",
        ),
        ({"labelCol": "target"}, r"no column 'target'"),
        ({"weightCol": "w"}, r"no column 'w'"),
        ({"featuresCol": "text"}, r"Column 'text' is of type string: expected a Vector"),
        ({"labelCol": "text"}, r"Column 'text' is of type string"),
        ({"loss": "no_such_loss"}, r"Param loss: Keras .* knows no 'no_such_loss'"),
        ({"optimizer": "no_such_optimizer"}, r"Param optimizer: Keras .* knows no"),
        ({"metrics": ["no_such_metric"]}, r"Param metrics: Keras .* knows no"),
        ({"loss": None}, r"Param loss is not set"),
        ({"model": None}, r"Param model is not set"),
        ({"featureLayers": ["hiden"]}, r"no layer 'hiden'. It has \['hidden', 'out'\]"),
        ({"featureLayers": ["hidden"], "outputCols": ["a", "b"]}, r"outputCols: expected one name for each"),
        ({"predictionCol": "label"}, r"Output column 'label' is in the DataFrame already"),
        (
            {"inputCols": ["weight", "label"]},
            r"inputCols: the columns \['weight', 'label'\] make 2 values per row; the network expects 12",
        ),
        (
            {"labelCols": ["label", "weight"]},
            r"one label column for each of the network's outputs \['out'\], received \['label', 'weight'\]",
        ),
        ({"loss": "binary_crossentropy", "model": None}, r"Param model"),
    ],
)
def test_params_that_do_not_fit(good, no_job, params, message):
    with pytest.raises(InvalidInputError, match=message):
        estimator(**params).fit(good)


SCHEDULED = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"loss": "categorical_crossentropy"},
            r"received one number. For class ids use sparse_categorical_crossentropy",
        ),
        ({"labelCol": "one_hot"}, r"received a Vector. For one-hot labels use categorical_crossentropy"),
        ({"featuresCol": "day"}, r"Column 'day' is of type date: .* unix_timestamp or datediff .* month"),
        ({"featuresCol": "time"}, r"Column 'time' is of type timestamp: .* hour"),
        (
            {"optimizer": SCHEDULED, "learningRate": 0.1},
            r"Param learningRate: the optimizer has the schedule CosineDecay",
        ),
        (
            {"optimizer": SCHEDULED, "callbacks": [callback("ReduceLROnPlateau", monitor="loss")]},
            r"Param callbacks: ReduceLROnPlateau sets the learning rate, but",
        ),
        (
            {"frozenLayers": ["hidden", "out"]},
            r"frozenLayers: \['hidden', 'out'\] are all layers with trainable weights",
        ),
        (
            {"loss": keras.losses.SparseCategoricalCrossentropy(reduction=None)},
            r"SparseCategoricalCrossentropy has the reduction None",
        ),
        (
            {
                "loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=0),
                "jitCompile": True,
                "numTrainWorkers": 2,
            },
            r"Param jitCompile: SparseCategoricalCrossentropy ignores a class .*XLA has none",
        ),
    ],
)
def test_what_is_refused_by_name_in_a_few_lines_and_explained_alike(spark, no_job, params, message):
    rows = spark.createDataFrame([(GOOD, 1.0, Vectors.dense(0, 1, 0))], ["features", "label", "one_hot"])
    df = rows.selectExpr("*", "current_date() day", "now() time")
    est = estimator(**params)
    with pytest.raises(InvalidInputError, match=message) as error:
        est.fit(df)
    assert len(str(error.value).splitlines()) <= 8
    assert str(error.value) in est.explain(df)


def dense(*sizes: int, activation: str) -> Any:
    layers = [keras.layers.Dense(size, activation=activation) for size in sizes]
    return keras.Sequential([keras.Input((12,)), *layers])


@pytest.mark.parametrize(
    ("network", "loss", "message"),
    [
        (lambda: dense(1, activation="sigmoid"), "sparse_categorical_crossentropy", r"one unit per class.*with 1 unit"),
        (
            lambda: dense(3, activation="linear"),
            "sparse_categorical_crossentropy",
            r"expects probabilities.*from_logits",
        ),
        (lambda: dense(1, activation="linear"), "binary_crossentropy", r"activation='sigmoid'.*BinaryCrossentropy"),
    ],
)
def test_a_loss_that_does_not_fit_the_output(good, no_job, network, loss, message):
    with pytest.raises(InvalidInputError, match=message):
        estimator(model=network(), loss=loss).fit(good)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
def test_num_train_workers_is_a_whole_number_of_one_or_more(workers):
    with pytest.raises(InvalidInputError, match=f"numTrainWorkers: expected an integer >= 1, received {workers!r}"):
        estimator(numTrainWorkers=workers)


@pytest.mark.filterwarnings("ignore:.*lambda")
def test_a_lambda_layer_says_what_to_do_instead():
    network = keras.Sequential([keras.Input((12,)), keras.layers.Lambda(lambda x: x * 2, name="twice")])
    with pytest.raises(InvalidInputError, match=r"'twice' is a Lambda.*register_keras_serializable"):
        estimator(model=network)


def test_a_layer_defined_in_the_program_itself_says_where_to_move_it(monkeypatch):
    from tests.support.layers import Misbehaving

    monkeypatch.setattr(Misbehaving, "__module__", "__main__")
    network = keras.Sequential([keras.Input((12,)), Misbehaving("raise"), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match="Misbehaving is defined in the program"):
        estimator(model=network)


def test_a_streaming_frame_is_refused(spark, no_job):
    stream = spark.readStream.format("rate").load().selectExpr("array(value) features", "1.0 label")
    with pytest.raises(InvalidInputError, match="streaming"):
        estimator().fit(stream)


# ── while rows are read, before any rank trains ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((GOOD, 3.0, 1.0, ""), r"column 'label', row 2: is 3; expected an integer from 0 to 2, because .*3 classes"),
        ((GOOD, -1.0, 1.0, ""), r"column 'label', row 2: is -1"),
        ((GOOD, 0.5, 1.0, ""), r"column 'label', row 2: is 0.5"),
        ((GOOD, None, 1.0, ""), r"column 'label', row 2: is null"),
        ((None, 1.0, 1.0, ""), r"column 'features', row 2: is null"),
        (([*GOOD[:5], NAN, *GOOD[6:]], 1.0, 1.0, ""), r"column 'features', row 2: has NaN at position 5"),
        (([*GOOD[:5], None, *GOOD[6:]], 1.0, 1.0, ""), r"column 'features', row 2: contains an element that is null"),
        ((GOOD[:7], 1.0, 1.0, ""), r"column 'features', row 2: has 7 numbers; the network expects 12"),
        ((GOOD, 1.0, -2.0, ""), r"column 'weight', row 2: is -2; must be >= 0"),
    ],
)
def test_a_bad_row_is_named(spark, row, message):
    good = (GOOD, 1.0, 1.0, "")
    df = spark.createDataFrame([good, good, row], SCHEMA).coalesce(1)
    with pytest.raises(InvalidInputError, match=message):
        estimator(weightCol="weight").fit(df)
    assert_nothing_left(spark)


def test_bad_rows_are_skipped_when_asked(spark):
    rows = [
        (GOOD, 1.0, 1.0, ""),
        (None, 1.0, 1.0, ""),
        (GOOD[:3], 1.0, 1.0, ""),
        (GOOD, None, 1.0, ""),
        (GOOD, 0.0, 1.0, ""),
    ]
    model = estimator(handleInvalid="skip").fit(spark.createDataFrame(rows, SCHEMA).coalesce(1))
    assert model.summary.rows == 2


@pytest.mark.parametrize("bad", [NAN, *(pytest.param(one, marks=pytest.mark.more) for one in (3e10, None))])
def test_what_is_no_whole_number_is_a_bad_row_of_a_network_that_takes_them(spark, bad):
    network = keras.Sequential(
        [keras.Input((2,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    rows = [([1.0, 2.0], 1.0), ([1.0, bad], 1.0), ([3.0, 4.0], 0.0)]
    df = spark.createDataFrame(rows, "features array<double>, label double").coalesce(1)
    est = estimator(model=network, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(InvalidInputError, match="'features', row 1: contains an element that is null or not an int32"):
        est.fit(df)
    model = est.fit(df, {est.handleInvalid: "skip"})
    assert model.summary.rows == 2
    assert model.transform(df).count() == 2


def test_a_null_vector_is_a_bad_row(spark):
    df = frame(spark, [[(Vectors.dense(GOOD), 1.0, 1.0), (None, 1.0, 1.0)]])
    with pytest.raises(InvalidInputError, match="column 'features', row 1: is null"):
        estimator().fit(df)
    assert estimator(handleInvalid="skip").fit(df).transform(df).count() == 1


def test_no_rows_at_all(spark):
    with pytest.raises(InvalidInputError, match="The DataFrame is empty"):
        estimator(numTrainWorkers=2).fit(spark.createDataFrame([], SCHEMA))
    assert_nothing_left(spark)


def test_no_rows_left_to_train_on(spark, good):
    from pyspark.sql import functions as F

    with pytest.raises(InvalidInputError, match="4 are marked for validation"):
        estimator(validationIndicatorCol="held_out").fit(good.withColumn("held_out", F.lit(True)))


def test_vectors_of_the_wrong_size(spark):
    rows = [(Vectors.dense([1.0] * 100), 0.0)]
    df = spark.createDataFrame(rows, ["features", "label"]).coalesce(1)
    with pytest.raises(InvalidInputError, match="has 100 numbers; the network expects 12"):
        estimator().fit(df)
