"""Barrier tasks and what they report, without Spark."""

import contextlib
import os
import signal
import subprocess
import types
from functools import partial

import psutil
import pytest
from pyspark import BarrierTaskContext
from pyspark.sql import Row

from cos_ml.data import blobs
from cos_ml.data.columns import Column
from cos_ml.errors import ClusterError, InvalidInputError, RankError, SetupError
from cos_ml.job import barrier, child, messages, task, watchdog
from cos_ml.job.child import ChildProcess
from cos_ml.job.messages import Job
from cos_ml.job.peers import Handshake, PeerInfo
from cos_ml.job.placement import assign_ranks
from cos_ml.processor import instruction_set
from cos_ml.spec import TrainSpec

pytestmark = pytest.mark.once

LOST = {"traceback": b"Traceback ...: Horovod has been shut down. This was caused by an exception on one of the ranks."}
BROKEN = {"traceback": b"ValueError: this layer broke", "host": b"a", "log": b"printed before\n"}
SPEC = TrainSpec(inputs=(Column("x", "x0", (1,)),), labels=(Column("y", "y0"),))


@pytest.mark.parametrize(
    ("results", "lost"),
    [
        ([LOST, LOST], True),
        ([LOST, {"0/summary": b"{}"}], True),  # the other one had just finished
        ([LOST, BROKEN], False),
        ([LOST, {"input_error": b"column 'label', row 3: is null"}], False),
        ([LOST, {"rank_error": b"The loss is NaN"}], False),
        ([{"cluster_error": b"other versions"}, {}], False),
        ([{}, {}], False),
    ],
)
def test_ranks_that_only_lost_their_peers_report_no_error_of_their_own(results, lost):
    assert messages.peers_lost(results) == lost


@pytest.mark.parametrize(
    ("results", "error", "message"),
    [
        (
            [LOST, BROKEN],
            RankError,
            r"Rank 1 on a failed\.\nValueError: this layer broke\nLast output:\nprinted before",
        ),
        ([BROKEN, {"input_error": b"row 3: is null"}], InvalidInputError, "row 3: is null"),
        ([{"input_error": b"row 3"}, {"cluster_error": b"other versions"}], ClusterError, "other versions"),
        ([{"rank_error": b"The loss is NaN"}, LOST], RankError, "^The loss is NaN$"),
    ],
)
def test_the_cause_is_raised_and_not_its_consequences(results, error, message):
    with pytest.raises(error, match=message):
        messages.raise_reported(results)


def test_nothing_is_raised_where_nothing_is_reported():
    messages.raise_reported([{"0/summary": b"{}"}, {}])


@pytest.fixture
def barrier_context(monkeypatch):
    """A function that makes this process a barrier task among others on some hosts, without an allGather."""

    def enter(*hosts):
        infos = [types.SimpleNamespace(address=f"{host}:1") for host in hosts]
        context = types.SimpleNamespace(getTaskInfos=lambda: infos, partitionId=lambda: 0, resources=dict)
        monkeypatch.setattr(BarrierTaskContext, "get", lambda: context)
        for module in (task, child):
            monkeypatch.setattr(module, "current_task", lambda: context)
        return context

    return enter


def test_a_task_without_the_others_does_not_train(barrier_context):
    """It would, as a fit of one rank on its part of the rows."""
    barrier_context("host")
    rows = iter([1, 2])
    with pytest.raises(RankError, match="Spark repeated only some of the tasks"):
        next(task.run_task(Job("", (SPEC,), ()), (), 2, rows))
    assert next(rows, None) is None  # or else Spark may report a lost connection instead


def spool(rows=3, **shapes):
    return types.SimpleNamespace(
        rows={"train": rows, "validation": 0}, digest={}, skipped=0, shapes=shapes, dtypes={}, close=lambda: None
    )


def test_one_rank_waits_for_nobody(barrier_context):
    """Spark's allGather takes up to a second."""
    handshake = Handshake(barrier_context("a"), Job("", (SPEC,), ()), ["a"], assign_ranks(["a"]))
    peers = handshake.wait(spool(), False)
    assert [one["rows"]["train"] for one in peers.tasks] == [3]
    assert peers.environment == {}
    assert peers.rendezvous is None
    assert peers.all_ready(0, True)
    assert not peers.all_ready(0, False)
    peers.close()
    handshake.close()


def test_the_secret_of_the_rendezvous_is_not_shown():
    assert "5ec2e7" not in repr(Job("", (SPEC,), (), secret="5ec2e7"))
    assert "5ec2e7" not in repr(PeerInfo([], {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "a:1/5ec2e7"}, None, "5ec2e7"))


class Rank:
    """Stands in for ``ChildProcess``; records what happens to it."""

    events: list[str]

    def __init__(self, job, rank_info, spool):
        self.rank_info = rank_info
        self.events.append("the rank starts")

    def close(self):
        self.events.append("the rank ends")

    def ready(self):
        self.events.append("the rank is ready")
        return True

    def train(self, peers, reporter, notes):
        return {"network": b"trained"}


@pytest.fixture
def run(monkeypatch, barrier_context):
    """A function that runs a task with a stand-in for its rank, and returns the names and the data of its result."""

    def run_task(events, *tasks, problem=""):
        def wait(*arguments):
            events.append("the tasks have met")
            return PeerInfo([{"invalid": False, "skipped": 0, "shapes": {}} | one for one in tasks], {}, None, "")

        barrier_context(*["host"] * len(tasks))
        monkeypatch.setattr(Rank, "events", events, raising=False)
        monkeypatch.setattr(task, "ChildProcess", Rank)
        monkeypatch.setattr(task, "Spool", lambda spec: spool())
        monkeypatch.setattr(task, "_fill", lambda spool, batches: problem)
        monkeypatch.setattr(task, "Handshake", lambda *_: types.SimpleNamespace(wait=wait, close=lambda: None))
        batches = task.run_task(Job("", (SPEC,), (), versions={"Keras": "3"}), (b"network",), len(tasks), [])
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert {row["rank"] for row in rows} == {0}
        found = {row["name"]: row["data"] for row in rows}
        assert found.pop("processor") == instruction_set().encode()
        return found

    return run_task


FACTS = {
    "rows": {"train": 1, "validation": 0}, "versions": {"Keras": "3"}, "host": "a", "memory": 1e12, "disk": 1e12,
    "folder": "/data", "processor": "", "byte order": "little", "ports": "",
}  # fmt: skip


def test_tasks_meet_while_their_ranks_import_tensorflow(run):
    events = []
    assert run(events, FACTS) == {"network": b"trained", "host": b"host"}
    assert events == ["the rank starts", "the tasks have met", "the rank is ready", "the rank ends"]


@pytest.mark.parametrize(
    ("tasks", "kind", "message"),
    [
        ([FACTS | {"versions": {"Keras": "2"}}], "cluster_error", "Keras 2 (the driver has 3)"),
        ([FACTS | {"rows": {"train": 0, "validation": 0}}], "input_error", "The DataFrame is empty: no rows to train"),
        (
            [FACTS | {"rows": {"train": 0, "validation": 2}, "skipped": 1}],
            "input_error", "No rows to train on: 1 were skipped as invalid, 2 are marked for validation.",
        ),
        (
            [FACTS | {"shapes": {"x0": [3]}}, FACTS | {"shapes": {"x0": [4]}}],
            "input_error", "Column 'x': inconsistent row shapes across partitions: (3,) and (4,).",
        ),
    ],
)  # fmt: skip
def test_what_makes_training_impossible_is_a_result_that_no_retry_follows(run, tasks, kind, message):
    events = []
    result = run(events, *tasks)
    assert message in result[kind].decode()
    assert "the rank is ready" not in events
    assert events[-1] == "the rank ends"


def test_only_the_task_whose_rows_are_invalid_reports_them(run):
    invalid = FACTS | {"invalid": True}
    assert run([], invalid, problem="row 3: is null") == {"input_error": b"row 3: is null", "host": b"host"}
    assert run([], invalid) == {"host": b"host"}


@pytest.mark.parametrize(
    ("text", "failures", "error", "message"),
    [
        ("cos_ml.errors.RankError: Rank 1 was killed.", ["Rank 1 was killed."], RankError, "^Rank 1 was killed.$"),
        (
            "cos_ml.errors.RankError: Rank 1 was killed.", ["Rank 0 was killed.", "Rank 1 was killed."], RankError,
            r"failed after 2 attempts \(spark\.stage.*Attempt 1: Rank 0 was killed\.\nAttempt 2: Rank 1",
        ),
        ("cos_ml.errors.InvalidInputError: row 3", ["row 3", "row 3"], InvalidInputError, "^row 3$"),
        ("cos_ml.errors.SetupError: Horovod 0.28.1", ["Horovod", "Horovod"], SetupError, "^Horovod 0.28.1$"),
        ("Job aborted", [], ValueError, "Job aborted"),
    ],
)  # fmt: skip
def test_a_job_that_spark_gave_up_raises_the_cause_of_each_attempt(monkeypatch, text, failures, error, message):
    """Spark's session and its job are stand-ins."""

    with pytest.raises(error, match=f"(?s){message}"):
        Jobs(monkeypatch, (text, failures)).run(4)


PARTIAL = f"cos_ml.errors.RankError: {messages.PARTIAL_RETRY}"
ALONE = "Could not recover from a failed barrier ResultStage. Reason: cos_ml.errors.RankError: z"
CLOSED = "java.nio.channels.ClosedChannelException"
UNKNOWN, PEERS_LOST = messages.UNKNOWN, messages.PEERS_LOST


@pytest.mark.parametrize(
    ("limit", "jobs", "causes"),
    [
        pytest.param(2, [(PARTIAL, ["a", PARTIAL]), (ALONE, ["b"])], "ab", id="partial"),
        pytest.param(4, [(ALONE, ["a", PARTIAL, "b", "c"]), (ALONE, ["d"])], "abcd", id="partial in between"),
        pytest.param(4, [(PARTIAL, ["a", PARTIAL]), *[(ALONE, [cause]) for cause in "bcd"]], "abcd", id="three alone"),
        pytest.param(3, [(LOST, ["a"]), (ALONE, ["b"])], ["a", PEERS_LOST, "b"], id="peers lost"),
        pytest.param(3, [(LOST, []), (ALONE, []), (ALONE, [])], [PEERS_LOST, "z", "z"], id="peers lost, on Connect"),
        pytest.param(3, [(PARTIAL, []), (ALONE, [])], [UNKNOWN, UNKNOWN, "z"], id="partial, on Connect"),
        pytest.param(4, [(PARTIAL, ["a", PARTIAL]), ("cancelled", ["b"])], "ab", id="cancelled"),
        pytest.param(2, [(PARTIAL, ["a", PARTIAL]), ("no block", ["b", "c"])], "ab", id="not the ranks' stage"),
        pytest.param(2, [(f"{CLOSED}\n\tat java", ["a", CLOSED]), (ALONE, ["b"])], "ab", id="ended worker"),
    ],
)
def test_all_jobs_together_make_no_more_attempts_than_the_limit(monkeypatch, limit, jobs, causes):
    """Spark counts the attempts of each job anew, and reports no causes to a session of Connect."""
    spark = Jobs(monkeypatch, *jobs)
    with pytest.raises(RankError) as caught:
        spark.run(limit)
    assert spark.alone == [False] + [True] * (len(jobs) - 1)
    expected = "\n".join(f"Attempt {number}: {cause}" for number, cause in enumerate(causes, 1))
    assert str(caught.value) == (
        f"The fit failed after {len(causes)} attempts (spark.stage.maxConsecutiveAttempts). {expected}"
    )


def test_ranks_that_lose_each_other_in_the_last_attempt_do_not_try_again(monkeypatch):
    with pytest.raises(RankError, match="Horovod has been shut down"):
        Jobs(monkeypatch, (LOST, ["a"])).run(2)


@pytest.mark.parametrize(
    ("jobs", "causes"),
    [
        pytest.param([("cancelled", "a"), ("cancelled", "b"), ("cancelled", "c")], "abc", id="limit"),
        pytest.param([("cancelled", "a"), (LOST, ""), ("cancelled", "")], ["a", PEERS_LOST, PEERS_LOST], id="unknown"),
    ],
)
def test_a_gang_that_loses_a_rank_is_started_again_by_the_driver(monkeypatch, jobs, causes):
    """As often as Spark starts a barrier stage again; whatever the error of a job that was cancelled says."""
    spark = Jobs(monkeypatch, *jobs, gangs=True)
    with pytest.raises(RankError) as caught:
        spark.run(3, use_barrier=False)
    assert spark.barriers == [False] * 3
    assert len(spark.checks) == 1  # executors that were lost come back in time or not: the tasks wait for them
    assert spark.alone == [False] * 3  # nothing of the result is kept on executors
    expected = "\n".join(f"Attempt {number}: {cause}" for number, cause in enumerate(causes, 1))
    assert str(caught.value).endswith(f"failed after 3 attempts (spark.stage.maxConsecutiveAttempts). {expected}")


def test_an_error_before_a_gang_has_met_is_raised_as_it_is(monkeypatch):
    """Such as one of the user's own function below the fit; Spark has repeated its task."""
    with pytest.raises(ValueError, match=r"^Job aborted$"):
        Jobs(monkeypatch, ("Job aborted", [])).run(4, use_barrier=False)


def test_a_gang_that_was_not_complete_in_time_is_an_error(monkeypatch):
    jobs = Jobs(monkeypatch, ("cancelled", []))
    jobs.server.expired = True
    with pytest.raises(ValueError, match=r"^cancelled$"):  # of which ``gathered`` makes a ClusterError
        jobs.run(4, use_barrier=False)


@pytest.mark.parametrize("use_barrier", [True, False])
def test_no_attempt_follows_one_that_lost_a_host_for_which_there_is_no_other(monkeypatch, use_barrier):
    """The watch has cancelled the job, or the gang's server has."""
    monkeypatch.setattr(barrier.retries.spark_internals, "slots_elsewhere", lambda spark, hosts: 0)
    lost = "Hosts lost each other: a can't reach b."
    causes = [lost, "The job has ended."] if use_barrier else lost
    jobs = Jobs(monkeypatch, ("The job has ended.", causes), gangs=not use_barrier)
    with pytest.raises(RankError, match=f"^{lost}$"):
        jobs.run(4, use_barrier)
    assert len(jobs.alone) == 1


def test_an_error_that_no_attempt_causes_is_raised_as_it_is(monkeypatch):
    with pytest.raises(ClusterError, match=r"^executors were lost$"):
        Jobs(monkeypatch, (PARTIAL, ["a", PARTIAL]), (ClusterError("executors were lost"), [])).run(4)


class Jobs:
    """Spark's jobs, each of which ends with an error or with what a rank returns, after failures of these causes."""

    def __init__(self, monkeypatch, *jobs, gangs=False):
        self.jobs = iter(jobs)
        self.alone, self.barriers = [], []
        self.server = types.SimpleNamespace(address=None, has_lost=lambda: gangs, expired=False)
        gathered = lambda spark, size, cancel, wanted: contextlib.nullcontext(self.server if wanted else None)  # noqa: E731
        monkeypatch.setattr(barrier.gang, "gathered", gathered)
        errors = lambda spark, tag: [[f"cos_ml.errors.RankError: {self.causes}", tag]] if self.causes else []  # noqa: E731
        monkeypatch.setattr(barrier.retries.spark_internals, "stage_failures", errors)
        self.checks = []
        monkeypatch.setattr(barrier.slots, "check_cluster", lambda *arguments: self.checks.append(arguments))
        monkeypatch.setattr(barrier.slots, "acquire", lambda *arguments: contextlib.nullcontext())
        monkeypatch.setattr(barrier, "small_batches", lambda *arguments: contextlib.nullcontext())
        monkeypatch.setattr(barrier, "repartition_to_ranks", lambda df, ranks: self)
        monkeypatch.setattr(barrier.retries, "failures", lambda spark, tag: list(self.causes))

    def run(self, limit, use_barrier=True):
        conf = {"spark.stage.maxConsecutiveAttempts": str(limit)}
        data = types.SimpleNamespace(sparkSession=types.SimpleNamespace(conf=conf, sparkContext=Context()))
        return barrier.run(data, Job("", (SPEC,), (b"",)), 1, use_barrier)

    def mapInArrow(self, function, schema, use_barrier, profile):
        self.alone.append(False)
        self.barriers.append(use_barrier)
        return self

    def localCheckpoint(self):
        self.alone[-1] = True
        return self

    def repartition(self, number):
        return self

    def toLocalIterator(self):
        end, self.causes = next(self.jobs)
        if not isinstance(end, dict):
            raise end if isinstance(end, Exception) else ValueError(end)
        return [Row(rank=0, name=name, part=0, data=data) for name, data in end.items()]


class Context:
    def __getattr__(self, name):
        return lambda tag: None


@pytest.fixture
def own_spool(barrier_context, monkeypatch, tmp_path):
    """A spool without rows, of a task that is alone."""
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    barrier_context("a")
    return types.SimpleNamespace(descriptors=dict, close=lambda: None)


def test_a_rank_is_a_process_of_its_own_and_is_gone_afterwards(own_spool, tmp_path):
    """The rank's function fails, which is a result."""
    job = Job("tests.support.rank_functions:missing", (SPEC,), (b"network",))
    process = ChildProcess(job, assign_ranks(["a"])[0], own_spool)
    with contextlib.closing(process):
        assert not process.ready()
        result = process.result(["a note"])
    assert b"has no attribute 'missing'" in result["traceback"]
    assert result["notes"] == b'["a note"]'
    assert not psutil.pid_exists(process.process.pid)
    assert not list(tmp_path.rglob("cos_ml-rank-*"))


@pytest.mark.parametrize("joined", [False, True])
def test_a_rank_that_can_not_connect_to_the_others(own_spool, monkeypatch, joined):
    """Horovod aborts its process; what it prints names no host, and a port with its bytes the wrong way round."""
    process = ChildProcess(
        Job("tests.support.rank_functions:missing", (SPEC,), (b"",)), assign_ranks(["a"])[0], own_spool
    )
    tasks = [{"host": host, "addresses": {"127.0.0.1": "lo", f"10.0.0.{host}": "eth0"}} for host in "12"]
    peers = PeerInfo(tasks, {"COS_ML_GLOO_ADDRESS": "10.0.0.2"}, types.SimpleNamespace(close=lambda: None), "")
    with contextlib.closing(process):
        monkeypatch.setattr(process, "_send", lambda message: None)
        monkeypatch.setattr(process, "events", [{"event": "joined"}] if joined else [])
        monkeypatch.setattr(process.process, "wait", lambda: -signal.SIGABRT)
        with pytest.raises(RankError) as error:
            process.train(peers, types.SimpleNamespace(send=None), [])
        monkeypatch.undo()
    expected = "It listened at 10.0.0.2. The ranks' hosts: 1: eth0 10.0.0.1; 2: eth0 10.0.0.2. Ranks must be able"
    assert "was killed by SIGABRT." in str(error.value)
    assert (expected in str(error.value)) != joined
    assert ("spark.cosml.portRange" in str(error.value)) != joined


def test_the_hosts_that_lost_each_other_are_named_however_a_rank_ends(own_spool, monkeypatch):
    monkeypatch.setattr(child.reach, "unreachable", list)
    said = "Hosts lost each other: a can't reach b."
    process = ChildProcess(
        Job("tests.support.rank_functions:missing", (SPEC,), (b"",)), assign_ranks(["a"])[0], own_spool
    )
    with contextlib.closing(process):
        process.watchdog = watchdog.Watchdog(10, lambda: False)
        assert "Hosts" not in str(process._stalled())
        process.peers = PeerInfo([], {}, None, "", host="a", places={"b": ("10.0.0.2", 1)})
        assert said in str(process._stalled())
        monkeypatch.setattr(process.process, "wait", lambda: 0)
        monkeypatch.setattr(child.blobs, "read", lambda file: {"traceback": b"Horovod has been shut down"})
        with pytest.raises(RankError, match=said):
            process.result([])
        monkeypatch.setattr(process.process, "wait", lambda: -signal.SIGABRT)
        process.joining = " It ended while ranks connected to each other."
        with pytest.raises(RankError, match=said):
            process.result([])
        monkeypatch.undo()


def test_the_wait_for_other_ranks_is_not_a_stall(own_spool, monkeypatch):
    """A rank that has been ready for long, because another partition is larger, does not fail when all have met."""
    now = [0.0]
    monkeypatch.setattr(child, "Watchdog", partial(watchdog.Watchdog, clock=lambda: now[0]))
    events, results = [], []

    def start(environment, descriptors, log):
        events.append(os.dup(descriptors[0]))
        results.append(os.fdopen(os.dup(descriptors[2]), "wb"))
        return child.NewProcess(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)

    monkeypatch.setattr(child, "start_process", start)
    process = ChildProcess(Job("", (SPEC,), (b"network",)), assign_ranks(["a"])[0], own_spool)
    with contextlib.closing(process):
        os.write(events[0], b'{"event": "alive", "done": 0, "phase": "starting", "processor": 1}\n{"event": "ready"}\n')
        assert process.ready()
        now[0] += 10 * watchdog.START
        os.write(events[0], b'{"event": "joined"}\n')
        os.close(events[0])
        with results[0] as file:
            blobs.write(file, {"network": b"trained"})
        monkeypatch.setattr(process.process, "wait", lambda: 0)
        result = process.train(PeerInfo([], {}, None, "secret"), types.SimpleNamespace(send=None), [])
        assert result["network"] == b"trained"
        monkeypatch.undo()
