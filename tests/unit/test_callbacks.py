import json

import pytest

from cos_ml import DeepNetEstimator, callback
from cos_ml.callbacks import make
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from tests.support.layers import StopAfter

pytestmark = pytest.mark.once

keras = import_keras()


@pytest.mark.parametrize("kind", ["ReduceLROnPlateau", keras.callbacks.ReduceLROnPlateau])
def test_a_keras_callback(kind):
    plain = callback(kind, monitor="loss", factor=0.5)
    assert json.loads(json.dumps(plain)) == plain
    made = make(plain)
    assert type(made) is keras.callbacks.ReduceLROnPlateau
    assert (made.monitor, made.factor) == ("loss", 0.5)


@pytest.mark.parametrize("kind", [StopAfter, "tests.support.layers:StopAfter"])
def test_a_custom_callback(kind):
    plain = callback(kind, epochs=2)
    assert plain == {"class": "tests.support.layers:StopAfter", "ranks": "all", "arguments": {"epochs": 2}}
    assert make(plain).epochs == 2


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("CSVLogger", "first"), ("TensorBoard", "first"), ("ModelCheckpoint", "first"), ("EarlyStopping", "all")],
)
def test_writers_run_on_the_first_rank(kind, ranks):
    required = {"CSVLogger": {"filename": "f"}, "ModelCheckpoint": {"filepath": "f.keras"}}.get(kind, {})
    assert callback(kind, **required)["ranks"] == ranks
    assert callback(kind, ranks="all", **required)["ranks"] == "all"


def test_the_param_takes_callbacks_and_classes():
    plain = callback("CSVLogger", filename="log.csv")
    estimator = DeepNetEstimator(callbacks=[plain, "TerminateOnNaN", StopAfter])
    assert [one["class"] for one in estimator.getCallbacks()[:2]] == [
        "keras.callbacks:CSVLogger",
        "keras.callbacks:TerminateOnNaN",
    ]
    estimator.getCallbacks().clear()
    assert len(estimator.getCallbacks()) == 3
    assert DeepNetEstimator(callbacks=estimator.getCallbacks()).getCallbacks() == estimator.getCallbacks()


OfMlflow = type("OfMlflow", (keras.callbacks.Callback,), {"__module__": "mlflow.keras.callback"})
SAVED_WITH_MLFLOW = {"class": "mlflow.keras.callback:MlflowCallback", "ranks": "all", "arguments": {}}


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: callback("NoSuch"), r"there is no 'NoSuch'"),
        (lambda: callback("no_such_module:Thing"), r"there is no 'no_such_module:Thing'"),
        (lambda: callback(keras.layers.Dense), r"expected a class of keras.callbacks"),
        (lambda: callback("CSVLogger"), r"CSVLogger with \{\}: missing a required argument"),
        (lambda: callback("CSVLogger", filename="x", colour=3), r"unexpected keyword argument 'colour'"),
        (lambda: callback("BackupAndRestore", backup_dir="x"), r"would take different steps"),
        (lambda: callback("EarlyStopping", ranks="second"), r"'all' or 'first'"),
        (lambda: callback(type("Local", (keras.callbacks.Callback,), {"__module__": "__main__"})), r"can't import L"),
        (lambda: callback(OfMlflow), r"OfMlflow would log from the ranks.*cos_ml.mlflow.autolog\(\)"),
        (lambda: DeepNetEstimator(callbacks=[OfMlflow()]), r"would log from the ranks"),
        (lambda: DeepNetEstimator(callbacks=[SAVED_WITH_MLFLOW]), r"would log from the ranks"),
        (lambda: DeepNetEstimator(callbacks=[keras.callbacks.TerminateOnNaN()]), r"cos_ml.callback\('TerminateOnNaN'"),
        (lambda: DeepNetEstimator(callbacks=[{"class": "x:y"}]), r"expected what cos_ml.callback"),
    ],
)
def test_what_is_refused(attempt, message):
    with pytest.raises(InvalidInputError, match=message):
        attempt()
