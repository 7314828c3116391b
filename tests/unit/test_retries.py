import os
import signal

import pytest

from cos_ml import spark_internals
from cos_ml.job.retries import failures, job_tag, max_attempts

pytestmark = pytest.mark.once


class Calls:
    """A SparkContext, or a session of Spark Connect, of which every method is known; records their names."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda tag: self.calls.append(name)


class Session:
    def __init__(self):
        self.sparkContext = Calls()


class ConnectSession(Calls):
    __module__ = "pyspark.sql.connect.session"


@pytest.mark.parametrize(
    ("errors", "cause"),
    [
        (
            [
                "org.apache.spark.SparkException: Job aborted\n\tat org.apache.Spark.run(Spark.scala)",
                "Traceback:\ncos_ml.errors.RankError: Rank 1 on a was killed by SIGKILL.\n\n\tat org.apache.x(y)",
            ],
            "Rank 1 on a was killed by SIGKILL.",
        ),
        (["org.apache.spark.SparkException: Job aborted\n\tat x(y)"], "org.apache.spark.SparkException: Job aborted"),
        (["Executor lost"], "Executor lost"),
        (["x" * 9000], "x" * 2000),
    ],
)
def test_the_cause_is_a_rank_s_error_before_what_spark_reports(monkeypatch, errors, cause):
    monkeypatch.setattr(spark_internals, "stage_failures", lambda spark, tag: [errors])
    assert failures(Session(), "tag") == [cause]


def test_the_limit_of_attempts_is_spark_s():
    session = Session()
    session.conf = {}
    assert max_attempts(session) == 4
    session.conf["spark.stage.maxConsecutiveAttempts"] = "2"
    assert max_attempts(session) == 2
    session.conf["spark.stage.maxConsecutiveAttempts"] = "0"
    assert max_attempts(session) == 1


def test_jobs_are_tagged_while_they_run():
    session = Session()
    with job_tag(session):
        pass
    assert session.sparkContext.calls == ["addJobTag", "removeJobTag"]


def test_jobs_of_spark_connect_are_tagged_too():
    session = ConnectSession()
    with pytest.raises(SystemExit), job_tag(session):
        raise SystemExit
    assert session.calls == ["addTag", "interruptTag", "removeTag"]


@pytest.fixture
def default_handler():
    """Python's handler of Ctrl-C, which a process that is started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_the_jobs_whatever_py4j_raises_for_it(default_handler):
    session = Session()

    def interrupted():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("error while sending or receiving") from None

    with pytest.raises(KeyboardInterrupt), job_tag(session):
        interrupted()
    assert session.sparkContext.calls == ["addJobTag", "cancelJobsWithTag", "removeJobTag"]
    assert signal.getsignal(signal.SIGINT) is default_handler


def test_an_error_is_no_interrupt():
    session = Session()
    with pytest.raises(ValueError, match="of the fit's own"), job_tag(session):
        raise ValueError("of the fit's own")
    assert session.sparkContext.calls == ["addJobTag", "removeJobTag"]
