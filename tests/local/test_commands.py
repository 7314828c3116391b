"""The commands of ``cos-ml``, in the tests' session."""

import json

import keras
import numpy as np
import pytest

from cos_ml import cli
from cos_ml.network.keras_import import import_keras
from tests.support import reference
from tests.support.sessions import frame, rows_of

pytestmark = pytest.mark.once
import_keras()


def network():
    """What ``--network tests.local.test_commands:network`` names."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="x")
    hidden = keras.layers.Dense(4, "relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax", name="scores")(hidden))


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
