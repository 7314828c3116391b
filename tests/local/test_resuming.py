"""Fits that are interrupted, and resume from their checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import keras
import psutil
import pytest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

from cos_ml.errors import InvalidInputError, RankError
from tests.support import reference
from tests.support.disturbed import EPOCHS, INTERRUPTED, estimator, network
from tests.support.processes import assert_nothing_left, kill_task, rank_processes
from tests.support.reference import assert_same_weights
from tests.support.sessions import ROOT, frame, rows_of

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def data(spark):
    """Of an uncached shuffle: a retry reads it again, in whatever order its blocks come."""
    rows = rows_of(*reference.data(300))
    return frame(spark, [rows[at::5] for at in range(5)])


@pytest.fixture(scope="module")
def undisturbed(data):
    return estimator(network("die", rank="none")).fit(data).toKeras()


@pytest.mark.processes
@pytest.mark.parametrize("what", ["die", "hang", pytest.param("kill worker", marks=pytest.mark.long)])
def test_the_retry_goes_on_and_ends_with_the_same_weights(spark, data, undisturbed, tmp_path, capsys, what):
    """A rank dies, or is stopped, in the third of its epochs of ten steps."""
    patience = {"stallTimeout": 12.0} if what == "hang" else {}
    model = estimator(
        network(what, marker=str(tmp_path / "done"), call=25), checkpointDir=str(tmp_path / "states"), progress=True,
        **patience,
    ).fit(data)  # fmt: skip
    assert (tmp_path / "done").exists()
    assert model.summary.resumedAt == (2, 0)
    assert len(model.summary.history["loss"]) == EPOCHS
    (failure,) = model.summary.failures
    expected = {"die": "was killed by SIGKILL", "hang": "stopped (SIGSTOP)", "kill worker": "Python worker exited"}
    assert failure.startswith("Rank 1 on ") == (what != "kill worker")
    assert expected[what] in failure
    assert "Resuming from the checkpoint after epoch 2." in capsys.readouterr().err
    assert_same_weights(model.toKeras(), undisturbed, 1e-6)
    assert_nothing_left(spark)


@pytest.mark.processes
def test_a_rank_that_loops_is_named_with_its_stack(spark, data, tmp_path):
    model = estimator(
        network("loop", marker=str(tmp_path / "done"), call=5), stallTimeout=12.0, epochs=1
    ).fit(data)  # fmt: skip
    (failure,) = model.summary.failures
    assert failure.startswith("Rank 1 on ")
    assert "made no progress for 12 s (Param stallTimeout)" in failure
    assert "training, epoch 1" in failure
    assert "tests/support/layers.py" in failure
    assert_nothing_left(spark)


def test_a_finished_fit_is_not_trained_again_and_another_one_is_refused(data, tmp_path, capsys):
    options = {"checkpointDir": str(tmp_path), "progress": True, "epochs": 2}
    # A new network has other names of layers, and a new optimizer another name.
    first = estimator(reference.network(), **options, optimizer=keras.optimizers.SGD(0.1)).fit(data)
    capsys.readouterr()
    options["optimizer"] = keras.optimizers.SGD(0.1)
    again = estimator(reference.network(), **options).fit(data)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Resuming from the checkpoint after epoch 2."]
    assert_same_weights(first.toKeras(), again.toKeras(), 0)
    assert again.summary.history == first.summary.history
    with pytest.raises(InvalidInputError, match=r"another fit: epochs was 2 and is 3 now\. .*resume=\"never\""):
        estimator(reference.network(), **options | {"epochs": 3}).fit(data)
    afresh = estimator(reference.network(), **options | {"epochs": 1}, resume="never").fit(data)
    assert afresh.summary.resumedAt == (0, 0)


@pytest.mark.more
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(data, tmp_path):
    """Also where nobody watches."""
    options = {"checkpointDir": str(tmp_path), "epochs": 2}
    first = estimator(reference.network(), **options).fit(data)
    (newest,) = tmp_path.rglob("checkpoint-auto-000002-*")
    newest.write_bytes(newest.read_bytes()[:-9])
    again = estimator(reference.network(), **options).fit(data)
    assert again.summary.resumedAt == (1, 0)
    told = [note.split(" (")[0] for note in again.summary.notes]
    assert told == [f"The checkpoint {newest.name} is damaged or not of this training"]
    assert_same_weights(first.toKeras(), again.toKeras(), 1e-6)


@pytest.mark.more
def test_networks_of_a_grid_that_differ_in_their_weights_alone(data, tmp_path):
    other = reference.network()
    other.set_weights([weights + 1 for weights in other.get_weights()])
    one = estimator(reference.network(), checkpointDir=str(tmp_path), epochs=1, optimizer="sgd", learningRate=1e-6)
    models = one.fit(data, ParamGridBuilder().addGrid(one.model, [reference.network(), other]).build())
    assert_same_weights(models[0].toKeras(), reference.network(), 1e-3)
    assert_same_weights(models[1].toKeras(), other, 1e-3)


@pytest.mark.more
def test_folds_and_candidates_do_not_meet_in_one_folder(data, tmp_path):
    one = estimator(reference.network(), checkpointDir=str(tmp_path), epochs=1)
    grid = ParamGridBuilder().addGrid(one.learningRate, [0.001, 0.1]).build()
    tuning = {"estimatorParamMaps": grid, "evaluator": MulticlassClassificationEvaluator(), "numFolds": 2, "seed": 1}
    worse, better = CrossValidator(estimator=one, **tuning).fit(data).avgMetrics
    assert worse < better
    assert len(list(tmp_path.glob("candidate-*/rows-*/checkpoint-*"))) == 4  # two candidates, on two folds
    assert len(list(tmp_path.glob("rows-*/checkpoint-*"))) == 1  # the best one, on all rows


DRIVER = """
import sys
from pathlib import Path
from tests.support import reference
from tests.support.disturbed import estimator, network
from tests.support.sessions import frame, rows_of, session

folder = Path(sys.argv[1])
spark = next(session("local[2]", folder / "spark"))
rows = rows_of(*reference.data(300))
data = frame(spark, [rows[at::5] for at in range(5)])
model = estimator(
    network("kill driver", marker=str(folder / "done"), call=25), checkpointDir=str(folder / "states")
).fit(data)
model.toKeras().save_weights(folder / "trained.weights.h5")
print(model.summary.resumedAt)
"""


@pytest.mark.processes
def test_a_killed_driver_is_started_again(undisturbed, tmp_path):
    run = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"env": environment, "capture_output": True, "check": False, "timeout": 300}
    assert subprocess.run(run, **options).returncode == -signal.SIGKILL
    again = subprocess.run(run, **options, text=True)
    assert again.stdout.splitlines()[-1:] == ["(2, 0)"], again.stderr[-2000:]
    model = network("die", rank="none")
    model.load_weights(tmp_path / "trained.weights.h5")
    assert_same_weights(model, undisturbed, 1e-6)


@pytest.mark.processes
def test_ctrl_c_ends_every_rank(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    with subprocess.Popen(run, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True) as driver:
        ended = threading.Event()
        while not (tmp_path / "hangs").exists() and driver.poll() is None:
            ended.wait(0.05)
        ranks = rank_processes(driver.pid)
        driver.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(ranks, timeout=30)
        assert len(ranks) == 2
        assert not alive
        out, err = driver.communicate("")
        assert out == "interrupted\n", err[-2000:]


@pytest.mark.processes
def test_spark_kills_a_task_and_the_fit_goes_on(spark, data, undisturbed, tmp_path):
    """Somebody presses "kill" at one task in Spark's user interface."""
    marker, found, over = tmp_path / "hangs", [], threading.Event()

    def kill() -> None:
        while not marker.exists() and not over.wait(0.05):
            pass
        ranks = rank_processes()
        kill_task(spark, 1, "killed by the test")  # its rank is stopped
        found.extend([len(ranks), psutil.wait_procs(ranks, timeout=30)[1]])

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = {"checkpointDir": str(tmp_path / "states"), "stallTimeout": 60.0}  # where the killer fails
    try:
        model = estimator(network("hang", marker=str(marker), call=25), **options).fit(data)
    finally:
        over.set()
        killer.join()
    assert found == [2, []]
    assert "killed by the test" in model.summary.failures[0]
    assert_same_weights(model.toKeras(), undisturbed, 1e-6)
    assert_nothing_left(spark)


def test_a_loss_that_is_no_number_is_one_error(spark, data, tmp_path):
    with pytest.raises(RankError, match=r"^The loss is NaN or infinite in epoch \d at step \d+\."):
        estimator(
            reference.network(), optimizer="sgd", learningRate=1e30, checkpointDir=str(tmp_path)
        ).fit(data)  # fmt: skip
    assert_nothing_left(spark)


def test_a_checkpoint_folder_that_can_not_be_written_is_found_before_the_job(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"Param checkpointDir: .* can't be used"):
        estimator(reference.network(), checkpointDir=f"{tmp_path}/file/states").fit(data)
