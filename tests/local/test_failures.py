"""What reaches the driver when something goes wrong, and what is left behind: nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import threading
from functools import partial
from typing import Any

import keras
import psutil
import pytest

from cos_ml import DeepNetEstimator
from cos_ml.data.columns import Column
from cos_ml.errors import ClusterError, RankError, SetupError
from cos_ml.job import barrier
from cos_ml.spec import TrainSpec
from tests.support import barrier_tasks, reference
from tests.support.layers import Misbehaving
from tests.support.processes import assert_nothing_left, rank_processes, running
from tests.support.sessions import ROOT, frame, rows_of

pytestmark = pytest.mark.once


def network(what: str, **options: Any) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((12,)), Misbehaving(what, **options), keras.layers.Dense(3, activation="softmax")]
    )


def estimator(model: Any, **params: Any) -> DeepNetEstimator:
    defaults = {"loss": "sparse_categorical_crossentropy", "numTrainWorkers": 2, "progress": False}
    return DeepNetEstimator(model=model, **defaults | params)


@pytest.fixture
def data(spark):
    rows = rows_of(*reference.data(128))
    return frame(spark, [rows[:64], rows[64:]])


@pytest.mark.processes
def test_a_failing_rank_is_named_with_its_traceback_and_output(spark, data):
    with pytest.raises(RankError) as caught:
        estimator(network("raise")).fit(data)
    message = str(caught.value)
    assert message.startswith("Rank 1 on ")
    assert "this layer broke on purpose" in message
    assert "tests/support/layers.py" in message  # its own traceback
    assert "about to misbehave" in message  # its own output
    assert_nothing_left(spark)


@pytest.mark.processes
def test_a_rank_that_dies_every_time_is_named_with_its_signal(spark, data):
    with pytest.raises(RankError) as caught:
        estimator(network("die")).fit(data)
    message = str(caught.value)
    assert message.startswith("The fit failed after 2 attempts (spark.stage.maxConsecutiveAttempts). ")
    assert "Attempt 1: Rank 1 on " in message
    assert "Attempt 2: Rank 1 on " in message
    assert message.count("SIGKILL") == 2
    assert "about to misbehave" in message
    assert "\tat org.apache" not in str(caught.value)
    assert "SQLSTATE" not in str(caught.value)
    assert_nothing_left(spark)


def test_a_rank_that_dies_once_is_tried_again_by_spark(spark, data, tmp_path, capsys):
    options = {"epochs": 2, "shuffle": False}
    model = estimator(network("die", marker=str(tmp_path / "died")), progress=True, **options).fit(data)
    assert "The ranks were lost; training restarts from the first epoch: Param checkpointDir is not set" in (
        capsys.readouterr().err
    )
    assert len(model.summary.failures) == 1
    assert "was killed by SIGKILL" in model.summary.failures[0]
    undisturbed = estimator(network("die", rank="none"), **options).fit(data)
    assert (tmp_path / "died").exists()
    for one, other in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_ranks_that_lose_each_other_try_again(spark, data, tmp_path):
    """No rank reports an error of its own, and no task fails: Spark would not retry."""
    options = {"epochs": 3, "batchSize": 16, "shuffle": False, "stepsPerExecution": 1}
    marker = {"marker": str(tmp_path / "done"), "call": 6}
    model = estimator(network("hang up", **marker), checkpointDir=str(tmp_path / "states"), **options).fit(data)
    assert (tmp_path / "done").exists()
    assert model.summary.failures == [barrier.PEERS_LOST]
    assert model.summary.resumedAt == (1, 0)
    undisturbed = estimator(network("die", rank="none"), **options).fit(data)
    for one, other in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    with pytest.raises(RankError, match="Horovod has been shut down"):
        estimator(network("hang up"), **options).fit(data)  # every time
    assert_nothing_left(spark)


@pytest.mark.processes
def test_a_task_that_is_stopped_is_found_by_its_rank_and_named(spark, data, tmp_path):
    """Spark waits for its Python worker for ever, and the rank itself trains to the end."""
    options = {"shuffle": False, "stallTimeout": 4.0}
    model = estimator(network("stop worker", marker=str(tmp_path / "stopped")), **options).fit(data)
    assert len(model.summary.failures) == 1
    assert re.match(r"The task of rank 1 on \S+ gave no sign of life for 4 s \(Param stall", model.summary.failures[0])
    undisturbed = estimator(network("die", rank="none"), **options).fit(data)
    for one, other in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert_nothing_left(spark)


@pytest.mark.processes
def test_cancelling_the_job_ends_every_rank(spark, data, tmp_path):
    marker = tmp_path / "hangs"
    failure: list[BaseException] = []

    def fit() -> None:
        spark.sparkContext.setJobGroup("doomed", "a fit that is cancelled", interruptOnCancel=True)
        try:
            estimator(network("hang", marker=str(marker))).fit(data)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    ended = threading.Event()
    while not marker.exists() and thread.is_alive():  # a rank has stopped in the middle of a step
        ended.wait(0.05)
    processes = rank_processes()
    assert len(processes) == 2
    spark.sparkContext.cancelJobGroup("doomed")
    _, alive = psutil.wait_procs(processes, timeout=30)
    thread.join(timeout=30)
    assert not alive
    assert failure
    assert_nothing_left(spark)


class TooLong(Exception):
    """What a program raises when its time is up."""


@pytest.mark.processes
@pytest.mark.parametrize("barrier", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_exception_of_a_signal_handler_ends_every_rank_and_is_what_the_user_sees(spark, data, tmp_path, barrier):
    """A time limit, for example: Py4J makes another exception of it, for which nobody cancelled the job."""

    def ring(number: int, frame: Any) -> None:
        raise TooLong("it took too long")

    def strike() -> None:
        while not (tmp_path / "hangs").exists() and not over.wait(0.05):
            pass
        ranks.extend(rank_processes())
        os.kill(os.getpid(), signal.SIGUSR1)

    ranks: list[psutil.Process] = []
    before, over = signal.signal(signal.SIGUSR1, ring), threading.Event()
    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    try:
        with pytest.raises(TooLong):
            estimator(network("wait", marker=str(tmp_path / "hangs")), useBarrier=barrier).fit(data)
    finally:
        signal.signal(signal.SIGUSR1, before)
        over.set()
    assert len(ranks) == 2
    assert not spark.sparkContext.statusTracker().getActiveJobsIds()
    _, alive = psutil.wait_procs(ranks, timeout=30)  # a rank is killed once its task, which fit awaits, has ended
    assert not alive
    assert_nothing_left(spark)


def test_too_few_slots_is_an_error_at_once(spark, data):
    with pytest.raises(ClusterError, match=r"numTrainWorkers=3 .*slots for 2.*local\[3\]"):
        estimator(reference.network(), numTrainWorkers=3).fit(data)


def test_several_ranks_without_horovod_are_an_error_before_the_job(spark, data, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "horovod" else find(name, *rest)
    )
    with pytest.raises(SetupError, match="cos-ml install-horovod"):
        estimator(reference.network()).fit(data)


@pytest.mark.processes
def test_one_rank_needs_no_horovod(spark, data, tmp_path, monkeypatch):
    blocked = tmp_path / "horovod"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('Horovod is blocked by the test')")
    monkeypatch.setitem(spark.sparkContext.environment, "PYTHONPATH", f"{tmp_path}:{ROOT}")
    assert estimator(reference.network(), numTrainWorkers=1).fit(data).summary.rows == 128
    with pytest.raises(Exception, match="Horovod is blocked by the test"):  # two do, and did not find it
        estimator(reference.network()).fit(data)


def test_progress_reaches_the_driver(spark, data, capsys):
    estimator(reference.network(), epochs=2, progress=True, metrics=["accuracy"]).fit(data)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "accuracy: " in lines[0]
    assert "loss: " in lines[0]
    assert "rows/s" in lines[0]


def run(spark: Any, function: str) -> list[dict[str, bytes]]:
    columns = Column("id", "x0", dtype="int64"), Column("id", "y0", dtype="int64")
    job = barrier.Job(f"tests.support.rank_functions:{function}", (TrainSpec(columns[:1], columns[1:]),), (b"",))
    return barrier.run(spark.range(4).selectExpr("id x0", "id y0"), job, 2).results


def test_a_rank_that_fails_before_the_others_join_is_named_at_once(spark):
    """By the first attempt, and not by Horovod's words when its time to join is over."""
    with pytest.raises(RankError, match=r"(?s)^Rank 1 on \S+ failed\..*ValueError: this one can't load"):
        run(spark, "fail_before_the_others")
    assert_nothing_left(spark)


@pytest.mark.once
def test_tasks_that_do_not_reach_task_0_directly_meet_by_all_gather(spark, monkeypatch):
    monkeypatch.setattr(barrier, "run_task", barrier_tasks.not_reached)
    found = [json.loads(one["environment"]) for one in run(spark, "environment")]
    assert [one["HOROVOD_RANK"] for one in found] == ["0", "1"]
    assert_nothing_left(spark)


@pytest.mark.processes
def test_a_rank_that_dies_before_the_others_join_is_named_by_each_attempt(spark):
    """And not by whoever finds nobody to meet, because the task with the rendezvous server has ended."""
    with pytest.raises(RankError) as caught:
        run(spark, "die_before_the_others")
    causes = [line for line in str(caught.value).splitlines() if "Rank" in line]
    assert len(causes) == 2
    assert all("Rank 0 on " in cause and "was killed by SIGKILL" in cause for cause in causes)
    assert_nothing_left(spark)


@pytest.mark.processes
def test_tasks_that_spark_repeats_without_the_others_are_no_attempt(spark, data, tmp_path, monkeypatch):
    """It does so when a task ends in the moment in which another one's failure is dealt with."""
    options = {"epochs": 1, "shuffle": False}
    undisturbed = estimator(reference.network(), **options).fit(data)
    monkeypatch.setattr(barrier, "run_task", partial(barrier_tasks.repeated_in_part, str(tmp_path / "repeated")))
    model = estimator(reference.network(), **options).fit(data)
    # 2 where the second attempt had a Python worker that Spark was about to end.
    assert len((tmp_path / "repeated").read_text().splitlines()) in (2, 3)
    assert model.summary.failures == ["Rank 0 is gone."]
    for one, other in zip(model.toKeras().get_weights(), undisturbed.toKeras().get_weights(), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.long
@pytest.mark.processes
def test_the_attempts_of_two_jobs_are_no_more_than_the_limit(spark, data, tmp_path, monkeypatch):
    """The second job follows tasks that Spark repeated without the others, and Spark would count its attempts anew."""
    monkeypatch.setattr(barrier, "run_task", partial(barrier_tasks.repeated_in_part, str(tmp_path / "repeated")))
    with pytest.raises(RankError) as caught:
        estimator(network("die")).fit(data)
    message = str(caught.value)
    assert message.startswith("The fit failed after 2 attempts (spark.stage.maxConsecutiveAttempts). ")
    assert "Attempt 1: Rank 0 is gone.\nAttempt 2: Rank 1 on " in message
    assert message.count("SIGKILL") == 1
    assert_nothing_left(spark)


@pytest.mark.long
@pytest.mark.processes
def test_jobs_of_one_attempt_follow_each_other(spark, data, tmp_path, monkeypatch):
    monkeypatch.setattr(barrier, "run_task", partial(barrier_tasks.repeated_in_part, str(tmp_path / "repeated")))
    monkeypatch.setattr(barrier.retries, "max_attempts", lambda spark: 3)
    model = estimator(network("die", marker=str(tmp_path / "died"))).fit(data)
    assert model.summary.failures[0] == "Rank 0 is gone."
    assert "was killed by SIGKILL" in model.summary.failures[1]
    assert len(model.summary.failures) == 2
    assert_nothing_left(spark)


@pytest.mark.processes
def test_what_a_rank_forks_ends_with_it(spark):
    processes = [int(result["process"]) for result in run(spark, "leave_a_process")]
    assert not any(running(process) for process in processes)
    assert_nothing_left(spark)
