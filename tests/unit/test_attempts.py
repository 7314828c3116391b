import os
import signal

import pytest

from cos_ml.job.retries import _cause, job_tag


class Context:
    """As much of a SparkContext as a tag needs."""

    def __init__(self):
        self.said = []

    def __getattr__(self, name):
        return lambda tag: self.said.append(name)


class Session:
    _jsparkSession = None

    def __init__(self):
        self.sparkContext = Context()


def test_a_rank_is_named_and_not_what_spark_says_of_it():
    lost = "org.apache.spark.SparkException: Job aborted\n\tat org.apache.Spark.run(Spark.scala)"
    rank = "Traceback:\ncos_ml.errors.RankError: Rank 1 on a was killed by SIGKILL.\n\n\tat org.apache.x(y)"
    assert _cause([lost, rank]) == "Rank 1 on a was killed by SIGKILL."
    assert _cause([lost]) == "org.apache.spark.SparkException: Job aborted"


def test_jobs_are_tagged_for_as_long_as_they_run():
    session = Session()
    with job_tag(session):
        pass
    assert session.sparkContext.said == ["addJobTag", "removeJobTag"]


def test_ctrl_c_cancels_the_jobs_whatever_py4j_makes_of_it():
    session = Session()
    before = signal.getsignal(signal.SIGINT)

    def interrupted():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("error while sending or receiving") from None

    with pytest.raises(KeyboardInterrupt), job_tag(session):
        interrupted()
    assert session.sparkContext.said == ["addJobTag", "cancelJobsWithTag", "removeJobTag"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_is_no_interrupt():
    session = Session()
    with pytest.raises(ValueError, match="of the fit's own"), job_tag(session):
        raise ValueError("of the fit's own")
    assert session.sparkContext.said == ["addJobTag", "removeJobTag"]
