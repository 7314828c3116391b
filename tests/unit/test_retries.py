import threading

import pytest

from cos_ml import spark_internals
from cos_ml.cancellation import Tag
from cos_ml.job import retries
from cos_ml.job.retries import failures, hosts_lost, max_attempts, watch_hosts

pytestmark = pytest.mark.once


LOST = "Hosts lost each other: a can't reach b."


class Session:
    pass


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
        (
            ["cos_ml.errors.RankError: Rank 0 stalled.", f"cos_ml.errors.RankError: Rank 1 stalled. {LOST}"],
            f"Rank 1 stalled. {LOST}",
        ),
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


@pytest.mark.parametrize(
    ("causes", "elsewhere", "found"),
    [
        (["Rank 1 was killed."], 0, ""),
        (["Rank 1 was killed.", LOST], 0, LOST),
        ([LOST], 1, LOST),
        ([LOST], 2, ""),  # enough for another attempt without host b
        ([LOST, LOST], 2, LOST),  # Spark has chosen the same again
    ],
)
def test_a_fit_ends_where_another_attempt_would_lose_the_same_hosts(monkeypatch, causes, elsewhere, found):
    slots = lambda spark, hosts: elsewhere if hosts == ["b"] else 0  # noqa: E731
    monkeypatch.setattr(spark_internals, "slots_elsewhere", slots)
    assert hosts_lost(Session(), causes, 2) == found


def test_the_jobs_of_such_a_fit_are_cancelled_while_they_run(monkeypatch):
    cancelled, causes = threading.Event(), iter([["Rank 1 was killed."], [LOST]])
    monkeypatch.setattr(retries, "RECHECK", 0.001)
    monkeypatch.setattr(retries, "failures", lambda spark, tag: next(causes))
    monkeypatch.setattr(spark_internals, "slots_elsewhere", lambda spark, hosts: 0)
    with watch_hosts(Session(), Tag("tag", cancelled.set), 2):
        assert cancelled.wait(30)
