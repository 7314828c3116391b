"""MLflow: what fits log, and models that are loaded and served."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StandardScaler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit

import cos_ml.mlflow
from cos_ml import DeepNetEstimator, callback, listeners
from cos_ml.errors import InvalidInputError
from cos_ml.network.keras_import import import_keras
from tests.support.sessions import frame, rows_of

LONGEST = 240  # seconds

pytestmark = [
    # MLflow's own, and those of what it imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def data(spark):
    x = np.random.default_rng(0).normal(size=(40, 3))
    rows = rows_of(x, (x.sum(axis=1) > 0).astype(float))
    return frame(spark, [rows[:20], rows[20:]]).cache()


@pytest.fixture(autouse=True)
def _stop_logging():
    yield
    cos_ml.mlflow.autolog(disable=True)
    mlflow.pyspark.ml.autolog(disable=True)
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The file of a tracking store; it takes 10 s to make one."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def experiment(database, tmp_path):
    """The ID of an experiment of its own."""
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    found = mlflow.create_experiment(tmp_path.name, str(tmp_path / "artifacts"))
    mlflow.set_experiment(experiment_id=found)
    return found


def evaluator():
    return MulticlassClassificationEvaluator(metricName="accuracy")


def deep(**arguments):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    defaults = {"loss": "sparse_categorical_crossentropy", "batchSize": 4, "epochs": 2, "progress": False}
    return DeepNetEstimator(**{"model": net, **defaults, **arguments})


def runs():
    """The runs of the experiment by name, oldest first; those of the same name in a list."""
    found = {}
    for run in reversed(mlflow.search_runs(output_format="list")):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def history(run, metric):
    values = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
    return {one.step: one.value for one in values}


def artifacts(run, path=None):
    for one in mlflow.MlflowClient().list_artifacts(run.info.run_id, path):
        yield from artifacts(run, one.path) if one.is_dir else [one.path]


def all_runs():
    return [run for several in runs().values() for run in several]


def parent(run):
    return run.data.tags.get("mlflow.parentRunId")


def watch(database, experiment, folder, epochs, over):
    """Make the file of each epoch once its validation loss is in the store, as SQLite and not MLflow reads it."""
    query = """
        select count(*) from metrics join runs on metrics.run_uuid = runs.run_uuid
        where experiment_id = ? and key = 'val_loss' and step = ?
    """
    for epoch in range(1, epochs + 1):
        while not over.is_set():
            with contextlib.closing(sqlite3.connect(database, timeout=LONGEST)) as connection:
                if connection.execute(query, (experiment, epoch)).fetchone()[0]:
                    break
            over.wait(0.02)
        (folder / f"epoch-{epoch}").touch()


def test_metrics_of_an_epoch_are_in_the_store_before_the_next_one_begins(data, database, experiment, tmp_path):
    """Each epoch waits for a file that is made when the store has the metrics of the epoch before; so fits log them."""
    metrics = ["accuracy", keras.metrics.F1Score()]
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax", name="out")])
    hot = data.selectExpr("features", "array(float(label), float(1 - label)) as label")
    est = deep(
        model=net, epochs=3, metrics=metrics, loss="categorical_crossentropy", validationFraction=0.3,
        callbacks=[callback("tests.support.waiting:WaitForFile", folder=str(tmp_path))],
    )  # fmt: skip
    cos_ml.mlflow.autolog(log_input_examples=True, extra_tags={"team": "a"})
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(database, experiment, tmp_path, 3, over))
    watcher.start()
    try:
        model = est.fit(hot)
    finally:
        over.set()
        watcher.join()

    [run] = runs()["DeepNetEstimator"]
    assert mlflow.last_active_run().info.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    for name, values in model.summary.history.items():
        if name.endswith("f1_score"):
            for index in range(2):
                assert history(run, f"{name}_{index}") == {at: one[index] for at, one in enumerate(values, 1)}
        else:
            assert history(run, name) == dict(enumerate(values, 1))
    assert list(history(run, "rows_per_second")) == [1, 2, 3]
    assert run.data.metrics["rows"] == model.summary.rows
    assert run.data.params["epochs"] == "3"
    assert json.loads(run.data.params["callbacks"])[0]["class"] == "tests.support.waiting:WaitForFile"
    assert run.data.tags["team"] == "a"
    assert run.data.tags["keras.version"] == import_keras().version()
    assert run.data.tags["cos_ml.hosts"]
    assert {"summary.png", "summary.json", "logs/rank_0.txt", "model/MLmodel"} <= set(artifacts(run))

    again = mlflow.spark.load_model(f"runs:/{run.info.run_id}/model")
    scorer = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert [one.name for one in scorer.metadata.signature.inputs.inputs] == ["features"]
    folder = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model")
    requirements = Path(folder, "requirements.txt").read_text()
    assert f"cos-ml=={cos_ml.__version__}" in requirements
    expected = [row.prediction for row in model.transform(hot).collect()]
    assert [row.prediction for row in again.transform(hot).collect()] == expected
    rows = hot.select("features").toPandas()
    rows["features"] = rows["features"].map(lambda vector: vector.toArray())
    assert scorer.predict(rows) == expected
    assert scorer.predict(scorer.input_example) == expected[:5]


def test_candidates_of_a_search_have_runs_below_its_own(data, experiment):
    est = deep(featuresCol="scaled", metrics=["accuracy"])
    pipeline = Pipeline(stages=[StandardScaler(inputCol="features", outputCol="scaled"), est])
    grid = ParamGridBuilder().addGrid(est.learningRate, [0.1, 1e-9]).build()
    search = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator(), numFolds=2, parallelism=2, seed=1
    )
    cos_ml.mlflow.autolog(log_models=False)
    model = search.fit(data)
    found = runs()
    [whole], first, second = found["CrossValidator"], *found["candidate 1 of 2"], *found["candidate 2 of 2"]
    assert len(all_runs()) == 3
    assert [parent(one) for one in (first, second)] == [whole.info.run_id] * 2
    assert {one.info.status for one in (whole, first, second)} == {"FINISHED"}
    assert [one.data.params["DeepNetEstimator.learningRate"] for one in (first, second)] == ["0.1", "1e-09"]
    assert [one.data.metrics["avg_accuracy"] for one in (first, second)] == model.avgMetrics
    for one in (first, second):
        assert list(history(one, "fold_1/loss")) == list(history(one, "fold_2/accuracy")) == [1, 2]
    assert history(first, "fold_1/loss") != history(first, "fold_2/loss")
    assert whole.data.params["best_DeepNetEstimator.learningRate"] == "0.1"
    best = model.bestModel.stages[-1]
    assert history(whole, "loss") == dict(enumerate(best.summary.history["loss"], 1))


def test_a_search_over_a_network_trains_a_grid_and_logs_each_candidate_alone(data, experiment):
    est = deep()
    grid = [{est.epochs: 2}, {est.epochs: 3}]
    search = TrainValidationSplit(estimator=est, estimatorParamMaps=grid, evaluator=evaluator(), collectSubModels=True)
    cos_ml.mlflow.autolog(log_models=False)
    with mlflow.start_run(run_name="mine") as mine:
        model = search.fit(data)
        deep(epochs=1).fit(data)
    found = runs()
    candidates = [*found["candidate 1 of 2"], *found["candidate 2 of 2"]]
    assert [parent(one) for one in candidates] == [mine.info.run_id] * 2
    for run, sub_model, metric in zip(candidates, model.subModels, model.validationMetrics, strict=True):
        assert history(run, "loss") == dict(enumerate(sub_model.summary.history["loss"], 1))
        assert run.data.metrics["accuracy"] == metric
    assert history(found["mine"][0], "loss") == dict(enumerate(model.bestModel.summary.history["loss"], 1))
    [another] = found["DeepNetEstimator"]  # whose metrics would be mixed with those of the search
    assert parent(another) == mine.info.run_id


def test_networks_of_a_pipeline_are_told_apart_and_a_list_of_maps_is_a_run_for_each(data, experiment):
    first = deep(predictionCol="p", probabilityCol="q", rawPredictionCol="r", epochs=1)
    second = deep(epochs=1)
    cos_ml.mlflow.autolog(log_models=False)
    Pipeline(stages=[first, second]).fit(data)
    second.fit(data, [{second.epochs: 2}, {second.seed: 3}])
    found = runs()
    [run] = found["Pipeline"]
    assert {"DeepNetEstimator_1/loss", "DeepNetEstimator_2/loss"} <= set(run.data.metrics)
    assert run.data.params["DeepNetEstimator_1.predictionCol"] == "p"
    grid, [one], [other] = found["DeepNetEstimator"][0], found["candidate 1"], found["candidate 2"]
    assert {parent(one), parent(other)} == {grid.info.run_id}
    assert (one.data.params["epochs"], other.data.params["seed"]) == ("2", "3")
    assert (len(history(one, "loss")), len(history(other, "loss"))) == (2, 1)


@pytest.mark.parametrize("first", ["mlflow", "cos_ml"])
def test_with_mlflows_own_autologging_a_fit_has_one_run(data, experiment, first, caplog):
    enable = [lambda: mlflow.pyspark.ml.autolog(log_models=False), lambda: cos_ml.mlflow.autolog(log_models=False)]
    for one in enable if first == "mlflow" else enable[::-1]:
        one()
    est = deep(epochs=1)
    pipeline = Pipeline(stages=[est, LogisticRegression(predictionCol="p", probabilityCol="q", rawPredictionCol="r")])
    search = TrainValidationSplit(estimator=est, estimatorParamMaps=[{}, {est.epochs: 2}], evaluator=evaluator())
    model = pipeline.fit(data)
    evaluator().evaluate(model.transform(data))
    search.fit(data)
    LogisticRegression(maxIter=2).fit(data)
    found = runs()
    [run] = found.pop("Pipeline")
    assert "loss" in run.data.metrics
    assert any(name.startswith("accuracy_") for name in run.data.metrics)  # which MLflow has logged
    assert len(found.pop("TrainValidationSplit")) == 1
    assert [len(found.pop(f"candidate {number} of 2")) for number in (1, 2)] == [1, 1]
    [[other]] = found.values()  # MLflow's
    assert other.data.params["maxIter"] == "2"
    assert [one for one in caplog.messages if "rror" in one] == []


def test_mlflows_own_autologging_alone_logs_params(data, experiment, caplog):
    mlflow.pyspark.ml.autolog()
    est = deep(epochs=1)
    est.fit(data)
    [run] = all_runs()
    assert run.data.params["epochs"] == "1"
    assert "loss" not in run.data.metrics
    assert [one for one in caplog.messages if "rror" in one] == []


def test_a_fit_that_fails_ends_its_run_as_failed(data, experiment):
    cos_ml.mlflow.autolog()
    with pytest.raises(InvalidInputError, match="label") as raised:
        deep().fit(data.selectExpr("features", "label + 5 as label"))
    [run] = runs()["DeepNetEstimator"]
    assert run.info.status == "FAILED"
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/error.txt") == str(raised.value)
    assert mlflow.active_run() is None


def test_fits_are_not_logged_once_that_is_off(data, experiment):
    cos_ml.mlflow.autolog(exclusive=True)
    pipeline = Pipeline(stages=[deep(epochs=1)])
    with mlflow.start_run(run_name="mine"):  # also of fits in other threads
        TrainValidationSplit(estimator=pipeline, estimatorParamMaps=[{}], evaluator=evaluator()).fit(data)
    cos_ml.mlflow.autolog(disable=True)
    pipeline.fit(data)
    [run] = all_runs()
    assert (run.info.run_name, run.data.metrics, run.data.params) == ("mine", {}, {})
    assert [one for one in (Pipeline, CrossValidator, DeepNetEstimator) if "fit" in vars(one)] == []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def process(command, url, log):
    """A program of MLflow's that answers at ``url``; killed with all that it has started."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(LONGEST), "PATH": path}
    command = [sys.executable, "-m", "mlflow", *command]
    with log.open("wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)
    try:
        end = time.monotonic() + LONGEST
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


class Killer(listeners.FitListener):
    """Kills the tracking server once it has the first epoch, and lets the ranks go on."""

    def __init__(self, server, folder, run_id):
        self.server, self.folder, self.run_id = server, folder, run_id

    def on_epoch_end(self, fit, progress):
        end = time.monotonic() + LONGEST
        while progress.epoch == 1 and "loss" not in mlflow.get_run(self.run_id).data.metrics:
            assert time.monotonic() < end
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        (self.folder / f"epoch-{progress.epoch}").touch()


def test_a_server_that_goes_down_in_a_fit_costs_a_warning(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(listeners, "PATIENCE", 1.0)
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/s.db", "--artifacts-destination", str(tmp_path / "a")]
    wait = callback("tests.support.waiting:WaitForFile", folder=str(tmp_path))
    with process(["server", "--port", port, "--workers", "1", *stores], f"{url}/health", tmp_path / "log") as server:
        mlflow.set_tracking_uri(url)
        mlflow.set_experiment("tests")
        cos_ml.mlflow.autolog()
        deep(epochs=1).fit(data)
        assert "model/MLmodel" in set(artifacts(mlflow.last_active_run()))  # by way of the server
        run_id = mlflow.start_run().info.run_id
        listeners.add(killer := Killer(server, tmp_path, run_id))
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "cos_ml"):
            model = deep(epochs=3, callbacks=[wait]).fit(data)
        took = time.monotonic() - began
        listeners.remove(killer)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with contextlib.suppress(mlflow.MlflowException):
        mlflow.end_run()
    assert len(model.summary.history["loss"]) == 3
    assert took < LONGEST  # which is how long MLflow's client tries a single call
    assert [one.levelname for one in caplog.records if one.name.startswith("cos_ml")] == ["WARNING"]


def test_a_served_model_answers(data, experiment, tmp_path):
    """In a process that has not imported cos_ml before it loads the model."""
    narrow = data.select(vector_to_array("features", "float32").alias("features"), "label")  # JSON has doubles
    model = Pipeline(stages=[deep(epochs=1)]).fit(narrow)
    with mlflow.start_run() as run:
        cos_ml.mlflow.log_model(model, dataset=narrow)
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model", dst_path=str(tmp_path))
    url, rows = f"http://127.0.0.1:{free_port()}", narrow.select("features").limit(6)
    values = [[row.features] for row in rows.collect()]
    request = json.dumps({"dataframe_split": {"columns": ["features"], "data": values}}).encode()
    serve = ["models", "serve", "-m", path, "--env-manager", "local", "--port", url.rpartition(":")[2]]
    with process(serve, f"{url}/ping", tmp_path / "log"):
        asked = urllib.request.Request(f"{url}/invocations", request, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=LONGEST) as answer:
            predictions = json.load(answer)["predictions"]
    assert predictions == [row.prediction for row in model.transform(rows).collect()]


@pytest.mark.parametrize("kind", ["mlflow.keras:MlflowCallback", "mlflow.tensorflow:MlflowCallback"])
def test_mlflows_callback_is_refused(kind):
    for what in (lambda: callback(kind), lambda: DeepNetEstimator(callbacks=[kind])):
        with pytest.raises(InvalidInputError, match=re.escape("cos_ml.mlflow.autolog()")):
            what()
