import pytest

from cos_ml import spark_internals
from cos_ml.job.retries import failures, max_attempts

pytestmark = pytest.mark.once


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
