"""Saved models, loaded in a fresh process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression

from cos_ml import DeepNetEstimator, DeepNetModel, callback, callbacks, persistence
from cos_ml.errors import InvalidInputError, SavedModelError
from cos_ml.network.archive import Network, load_model
from tests.support import reference
from tests.support.archives import layer, rebuilt
from tests.support.layers import Counting
from tests.support.sessions import FORKED, ROOT, frame, rows_of

FRESH = """
import json, sys
from pyspark.sql import SparkSession
folder, data = sys.argv[1:]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
import numpy as np
from pyspark.ml import Pipeline, PipelineModel
from cos_ml import DeepNetEstimator, DeepNetModel
df = spark.read.parquet(data)
for loaded in (DeepNetModel.load(f"{folder}/model"), PipelineModel.load(f"{folder}/pipeline model")):
    out = loaded.transform(df).orderBy("id")
    print(json.dumps([[*row.probability, *row.hidden, row.prediction] for row in out.collect()]))
models = DeepNetEstimator.load(f"{folder}/estimator").fit(df), Pipeline.load(f"{folder}/pipeline").fit(df).stages[0]
for index, model in enumerate(models):
    np.savez(f"{folder}/{index}.npz", *model.toKeras().get_weights())
"""


def run_fresh(program: str, *arguments: Any, **environment: str) -> str:
    """Run a program in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "oneDNN" not in done.stderr  # nor the other things that TensorFlow says when it starts
    return done.stdout


def outputs(scored: Any) -> np.ndarray:
    rows = scored.orderBy("id").collect()
    return np.array([[*row.probability, *row.hidden, row.prediction] for row in rows])


def folder_of(df: Any) -> str:
    return str(df.inputFiles()[0]).rsplit("/", 1)[0]


@pytest.fixture(scope="module")
def df(spark, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "rows")
    frame(spark, [rows_of(*reference.data(60))]).selectExpr("*", "monotonically_increasing_id() id").write.parquet(path)
    return spark.read.parquet(path)


@pytest.fixture(scope="module")
def fresh(df, tmp_path_factory):
    """Stages of each kind, and the folder that has what a fresh process made of them when they had been saved."""
    folder = tmp_path_factory.mktemp("fresh")
    fitted = DeepNetEstimator(
        model=reference.network(), loss="sparse_categorical_crossentropy", featureLayers=["hidden"], progress=False
    ).fit(df)
    network = DeepNetModel(model=reference.network(), featureLayers=["hidden"])
    regression = LogisticRegression(
        featuresCol="hidden", predictionCol="p", probabilityCol="pp", rawPredictionCol="rp", maxIter=3
    )
    estimator = DeepNetEstimator(
        model=reference.network(),
        loss=keras.losses.SparseCategoricalCrossentropy(),
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
        metrics=["accuracy"],
        callbacks=[callback("TerminateOnNaN")],
        epochs=2,
        seed=5,
        progress=False,
    )
    stages = {
        "model": fitted,
        "pipeline model": Pipeline(stages=[network, regression]).fit(df),
        "estimator": estimator,
        "pipeline": Pipeline(stages=[estimator]),
    }
    for name, stage in stages.items():
        stage.write().overwrite().save(str(folder / name))
    stages["pipeline model"].write().overwrite().save(str(folder / "pipeline model"))  # over itself
    (folder / "printed").write_text(run_fresh(FRESH, folder, folder_of(df), **FORKED))
    return stages, folder


@pytest.mark.processes
def test_models_and_pipelines_give_the_same_outputs_in_a_fresh_process(df, fresh):
    stages, folder = fresh
    lines = (folder / "printed").read_text().splitlines()
    for line, name in zip(lines, ("model", "pipeline model"), strict=True):
        np.testing.assert_allclose(np.array(json.loads(line)), outputs(stages[name].transform(df)), atol=1e-6)


@pytest.mark.processes
def test_estimators_and_pipelines_fit_to_the_same_weights_in_a_fresh_process(df, fresh):
    stages, folder = fresh
    expected = stages["estimator"].fit(df).toKeras().get_weights()
    for index in range(2):
        with np.load(folder / f"{index}.npz") as found:
            for name, array in zip(found.files, expected, strict=True):
                np.testing.assert_array_equal(found[name], array)


def test_params_come_back(spark, tmp_path):
    model = DeepNetModel(
        model=reference.network(), featuresCol="f", predictionCol="", featureLayers=["hidden"], outputCols=["code"]
    )
    model.save(str(tmp_path / "model"))
    loaded = DeepNetModel.load(str(tmp_path / "model"))
    assert loaded.uid == model.uid
    assert loaded.getFeaturesCol() == "f"
    assert loaded.getPredictionCol() == ""
    assert loaded.getOutputCols() == ["code"]
    assert loaded.getModel().get_config() == model.getModel().get_config()


@pytest.mark.more
@pytest.mark.once
def test_a_large_network_goes_through_in_pieces(spark, tmp_path):
    inputs = keras.Input((1,), dtype="int32")
    table = keras.layers.Embedding(250_000, 30, embeddings_initializer="uniform")  # 30 MB
    network = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(table(inputs))))
    DeepNetModel(model=network).write().overwrite().save(str(tmp_path / "model"))
    pieces = spark.read.parquet(str(tmp_path / "model" / "data")).selectExpr("length(data) size").collect()
    assert len(pieces) > 3
    assert max(row["size"] for row in pieces) <= 8 << 20
    loaded = DeepNetModel.load(str(tmp_path / "model"))
    scored = loaded.transform(spark.createDataFrame([(7,), (249_999,)], "features int")).collect()
    expected = network(np.array([[7], [249_999]])).numpy()[:, 0]
    np.testing.assert_allclose([row.prediction for row in scored], expected, atol=1e-6)


@pytest.mark.once
def test_a_path_that_exists_is_an_error_that_says_how_to_replace_it(spark, tmp_path):
    model = DeepNetModel(model=reference.network())
    model.save(str(tmp_path / "model"))
    with pytest.raises(SavedModelError, match=r"write\(\).overwrite\(\).save"):
        model.save(str(tmp_path / "model"))


def test_a_path_with_a_scheme_is_sparks_to_open(spark, tmp_path):
    model = DeepNetModel(model=reference.network())
    model.write().overwrite().save(f"file://{tmp_path}/model")
    assert DeepNetModel.load(f"file://{tmp_path}/model").uid == model.uid


@pytest.mark.once
def test_custom_layers_name_the_module_to_import(spark, tmp_path, monkeypatch):
    network = keras.Sequential([keras.Input((2,)), Counting(str(tmp_path / "loads")), keras.layers.Dense(1)])
    DeepNetModel(model=network).save(str(tmp_path / "model"))
    assert DeepNetModel.load(str(tmp_path / "model")).getModel().layers[0].file == str(tmp_path / "loads")
    monkeypatch.delitem(sys.modules, "tests.support.layers")
    with pytest.raises(SavedModelError, match=r"import tests.support.layers before"):
        DeepNetModel.load(str(tmp_path / "model"))


def test_a_loaded_pipeline_model_is_one(df, tmp_path):
    model = Pipeline(stages=[DeepNetModel(model=reference.network())]).fit(df)
    model.save(str(tmp_path / "pipeline"))
    (stage,) = PipelineModel.load(str(tmp_path / "pipeline")).stages
    assert isinstance(stage, DeepNetModel)
    assert not stage.hasSummary


# ── stages that are not fitted, and scoring alone ─────────────────────────────────────────────────────────────────


@pytest.mark.once
def test_an_estimator_without_a_network_comes_back(spark, tmp_path):
    DeepNetEstimator(epochs=7, metrics=["mae"]).save(str(tmp_path / "estimator"))
    loaded = DeepNetEstimator.load(str(tmp_path / "estimator"))
    assert loaded.getEpochs() == 7
    assert loaded.getMetrics() == ["mae"]
    assert not loaded.isSet(loaded.model)


SCORE_ALONE = """
import sys
from pyspark.sql import SparkSession
path, data, out = sys.argv[1:]
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
from pyspark.ml import PipelineModel
PipelineModel.load(path).transform(spark.read.parquet(data)).write.parquet(out)
allowed = spark.sparkContext.parallelize([0], 1).map(lambda _: __import__("sitecustomize").BLOCKED).collect()
assert "horovod" in allowed[0], "the workers had these packages"
"""
WITHOUT_TRAINING_STACK = """
import importlib.abc, sys
BLOCKED = ("horovod", "petastorm", "psutil", "tqdm", "fsspec")
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.processes
def test_scoring_without_the_training_stack(spark, df, tmp_path):
    """Neither the driver nor a Python worker can import Horovod or petastorm."""
    network = DeepNetModel(model=reference.network(), featureLayers=["hidden"])
    model = Pipeline(stages=[network]).fit(df)
    model.write().overwrite().save(str(tmp_path / "pipeline"))
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(WITHOUT_TRAINING_STACK)
    out = tmp_path / "out"
    blocked = f"{tmp_path / 'blocked'}{os.pathsep}{ROOT}"
    run_fresh(SCORE_ALONE, tmp_path / "pipeline", folder_of(df), out, PYTHONPATH=blocked)
    np.testing.assert_allclose(outputs(spark.read.parquet(str(out))), outputs(model.transform(df)), atol=1e-6)


# ── golden rows, damage ───────────────────────────────────────────────────────────────────────────────────────────────


def metadata_of(path: Any) -> tuple[Any, dict[str, Any]]:
    (file,) = (path / "metadata").glob("part-*")
    return file, json.loads(file.read_text())


def rewrite(path: Any, change: Any) -> None:
    """Change a saved stage's metadata, as a person with an editor would."""
    file, metadata = metadata_of(path)
    change(metadata)
    file.write_text(json.dumps(metadata))
    (file.parent / f".{file.name}.crc").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def saved(spark, tmp_path_factory):
    """A saved model, of which tests damage copies."""
    path = tmp_path_factory.mktemp("saved") / "model"
    DeepNetModel(model=reference.network()).save(str(path))
    return path


@pytest.mark.once
def test_what_is_recorded(spark, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    _, metadata = metadata_of(tmp_path / "model")
    assert metadata["format"] == 1
    assert metadata["versions"]["keras"] == keras.version()
    assert set(metadata["versions"]) == {"cos_ml", "python", "tensorflow", "keras", "numpy", "pyspark"}
    assert metadata["network"]["inputs"][0]["shape"] == [12]
    assert metadata["network"]["outputs"] == [
        {
            "name": "out",
            "shape": [3],
            "dtype": "float32",
            "activation": "softmax",
            "key": None,
            "below": None,
            "padding": None,
            "values": None,
        }
    ]
    names = {row["name"] for row in spark.read.parquet(str(tmp_path / "model" / "data")).collect()}
    assert names == {"network", "golden"}


@pytest.mark.once
@pytest.mark.parametrize("handling", ["warn", "error", "ignore"])
def test_a_network_that_computes_something_else_here(spark, tmp_path, monkeypatch, handling):
    golden = persistence.golden_rows
    monkeypatch.setattr(
        persistence, "golden_rows", lambda network: golden(Network.of(other_weights(network)))
    )  # as another TensorFlow would have made them
    DeepNetModel(model=reference.network(), handleMismatch=handling).save(str(tmp_path / "model"))
    rewrite(tmp_path / "model", lambda metadata: metadata["versions"].update(tensorflow="2.16.0"))
    path, message = str(tmp_path / "model"), r"outputs differ from those recorded at save time.*tensorflow 2.16.0 then"
    if handling == "error":
        with pytest.raises(SavedModelError, match=message):
            DeepNetModel.load(path)
    elif handling == "warn":
        with pytest.warns(UserWarning, match=message):
            DeepNetModel.load(path)
    else:
        assert DeepNetModel.load(path).getHandleMismatch() == "ignore"


def other_weights(network: Network) -> Any:
    model = load_model(network.archive)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    return model


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: metadata.update(format=99), r"format 99"),
        (
            lambda metadata: metadata.update({"class": "cos_ml.estimator.DeepNetEstimator"}),
            r"contains cos_ml.estimator",
        ),
        (lambda metadata: metadata.pop("network"), r"damaged: KeyError: 'network'"),
        (lambda metadata: metadata["network"].update(sha256="0"), r"SHA-256"),
        (lambda metadata: metadata["network"].pop("inputs"), r"damaged: KeyError: 'inputs'"),
        (lambda metadata: metadata["network"].update(colour=3), r"damaged: TypeError"),
        (lambda metadata: metadata["paramMap"].update(predictBatchSize=-1), r"predictBatchSize: expected an integer"),
        (lambda metadata: metadata["paramMap"].update(colour=3), r"damaged: .*colour"),
        (lambda metadata: metadata.pop("sparkVersion"), r"damaged: KeyError: 'sparkVersion'"),
    ],
)
def test_damaged_metadata(spark, saved, tmp_path, change, message):
    shutil.copytree(saved, tmp_path / "model")
    rewrite(tmp_path / "model", change)
    with pytest.raises((SavedModelError, InvalidInputError), match=message):
        DeepNetModel.load(str(tmp_path / "model"))


def replaced(spark: Any, path: Any, **items: bytes) -> None:
    """Put other bytes into a saved stage, and let the metadata agree, as somebody would who means harm."""
    old = {row["name"]: row["data"] for row in spark.read.parquet(str(path / "data")).collect()}
    rows = [(name, 0, bytes(data)) for name, data in (old | items).items()]
    shutil.rmtree(path / "data")
    spark.createDataFrame(rows, "name string, part int, data binary").write.parquet(str(path / "data"))
    if "network" in items:
        digest = hashlib.sha256(items["network"]).hexdigest()
        rewrite(path, lambda metadata: metadata["network"].update(sha256=digest))


def a_part(path: Any) -> Any:
    return next((path / "data").glob("*.parquet"))


def cut(path: Any) -> None:
    part = a_part(path)
    part.write_bytes(part.read_bytes()[:-100])
    (part.parent / f".{part.name}.crc").unlink()


def no_json(path: Any) -> None:
    file, _ = metadata_of(path)
    file.write_text("{")
    (file.parent / f".{file.name}.crc").unlink(missing_ok=True)


@pytest.mark.once
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is damaged"),
        (lambda path: a_part(path).unlink(), r"is damaged: KeyError: 'network'|Unable to infer schema|is damaged"),
        (lambda path: shutil.rmtree(path / "data"), "There is no saved DeepNetModel|is damaged"),
        (lambda path: shutil.rmtree(path / "metadata"), "There is no saved DeepNetModel at"),
        (no_json, "is damaged: JSONDecodeError"),
    ],
)
def test_damaged_files(spark, saved, tmp_path, damage, message):
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(SavedModelError, match=message) as caught:
        DeepNetModel.load(str(tmp_path / "model"))
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_nothing_is_there(spark, tmp_path):
    with pytest.raises(SavedModelError, match=r"There is no saved DeepNetEstimator at .*nowhere"):
        DeepNetEstimator.load(str(tmp_path / "nowhere"))


@pytest.mark.once
def test_the_files_of_two_models_are_swapped(spark, tmp_path):
    DeepNetModel(model=reference.network()).save(str(tmp_path / "one"))
    DeepNetModel(model=reference.network(classes=4)).save(str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "one" / "data")
    shutil.copytree(tmp_path / "other" / "data", tmp_path / "one" / "data")
    with pytest.raises(SavedModelError, match="SHA-256"):
        DeepNetModel.load(str(tmp_path / "one"))


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda archive: rebuilt(archive, layer(class_name="Lambda", config={})), "contains a Lambda"),
        (lambda archive: rebuilt(archive, **{"model.weights.h5": b"no HDF5"}), "does not load the network"),
        (lambda archive: rebuilt(archive, layer(module="os", class_name="system")), r"names os\.system"),
        (lambda archive: rebuilt(archive, **{"../../job": b"x"}), r"unexpected archive member '\.\./\.\./job'"),
        (lambda archive: rebuilt(archive, **{"assets/zeros": bytes(200 << 20)}), "would unpack to"),
        (lambda archive: archive[:-50], "not a zip archive"),
        (lambda archive: b"", "not a zip archive"),
    ],
)
def test_a_network_that_somebody_made(spark, saved, tmp_path, make, message):
    shutil.copytree(saved, tmp_path / "model")
    replaced(spark, tmp_path / "model", network=make(Network.of(reference.network()).archive))
    with pytest.raises(SavedModelError, match=message):
        DeepNetModel.load(str(tmp_path / "model"))


@pytest.mark.once
def test_golden_rows_that_somebody_made(spark, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    pickled = io.BytesIO()
    np.savez(pickled, x0=np.array([print], dtype=object), allow_pickle=True)
    for golden in (b"no archive", pickled.getvalue()):
        replaced(spark, tmp_path / "model", golden=golden)
        digest = hashlib.sha256(golden).hexdigest()
        rewrite(tmp_path / "model", lambda metadata, digest=digest: metadata.update(golden=digest))
        with pytest.raises(SavedModelError, match=r"golden rows|pickle"):
            DeepNetModel.load(str(tmp_path / "model"))


@pytest.mark.once
@pytest.mark.parametrize("there", [True, False])
def test_golden_rows_of_another_model(spark, saved, tmp_path, there):
    """They would say that this machine computes something else."""
    other = Network.of(reference.network(classes=4))
    shutil.copytree(saved, tmp_path / "model")
    replaced(spark, tmp_path / "model", golden=persistence.golden_rows(other) if there else b"")
    with pytest.raises(SavedModelError, match=r"golden rows at .* is damaged, or of another stage"):
        DeepNetModel.load(str(tmp_path / "model"))


@pytest.mark.once
@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (
            {"module": "os", "class_name": "system", "config": "echo", "registered_name": "function"},
            r"names os\.system",
        ),
        ({"class_name": "__lambda__", "config": {"value": ["4wA=", None, None]}}, "contains a __lambda__"),
    ],
)
def test_a_saved_estimator_calls_nothing(spark, tmp_path, evil, message):
    """Whoever can write the file could name any function, or add one, as a loss or a callback."""
    DeepNetEstimator(model=reference.network(), loss="mse").save(str(tmp_path / "estimator"))
    rewrite(tmp_path / "estimator", lambda metadata: metadata["paramMap"].update(loss=evil))
    with pytest.raises(SavedModelError, match=message):
        DeepNetEstimator.load(str(tmp_path / "estimator"))
    with pytest.raises(InvalidInputError, match=r"expected a class of keras\.callbacks"):
        callbacks.make({"class": "subprocess:Popen", "ranks": "all", "arguments": {"args": ["true"]}})
