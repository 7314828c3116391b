"""Work that has a thread of its own, so that whatever ends the call ends the jobs, and is what the caller sees."""

import ctypes
import os
import signal
import threading

import pytest

from cos_ml import cancellation, spark_internals
from cos_ml.cancellation import Cancelled, cancellable, check_not_cancelled, job_tag
from cos_ml.errors import ClusterError

pytestmark = pytest.mark.once


class Calls:
    """A SparkContext, or a session of Spark Connect, of which every method is known; records their names."""

    def __init__(self):
        self.calls, self.cancelled = [], threading.Event()

    def __getattr__(self, name):
        return lambda tag: self._record(name)

    def _record(self, name):
        self.calls.append(name)
        if name in ("cancelJobsWithTag", "interruptTag"):
            self.cancelled.set()


class Session:
    def __init__(self):
        self.sparkContext = Calls()


class ConnectSession(Calls):
    __module__ = "pyspark.sql.connect.session"


class TooLong(Exception):
    """What a program raises when its time is up."""


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(cancellation, "InheritableThread", lambda session, **options: threading.Thread(**options))
    monkeypatch.setattr(spark_internals, "running_tasks", lambda spark, tag: 0)
    return Session()


@pytest.fixture
def alarm():
    """Raises TooLong in this thread a moment after it is called, as a time limit does."""

    def ring(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda: os.kill(os.getpid(), signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)


def test_jobs_are_tagged_while_they_run(session):
    with job_tag(session):
        assert session.sparkContext.calls == ["addJobTag"]
    assert session.sparkContext.calls == ["addJobTag", "removeJobTag"]


def test_jobs_of_spark_connect_are_tagged_too():
    session = ConnectSession()
    with job_tag(session) as tag:
        tag.cancel()
    assert session.calls == ["addTag", "interruptTag", "removeTag"]


def test_the_caller_gets_what_the_work_returns_and_raises(session):
    assert cancellable(session, lambda: 3) == 3
    with pytest.raises(ValueError, match="of its own"):
        cancellable(session, lambda: int("of its own"))
    assert "cancelJobsWithTag" not in session.sparkContext.calls


def test_an_error_of_work_whose_session_has_ended_says_so(session):
    """SparkContext.stop() in another thread: Py4J's error is a page of Java."""
    session.sparkContext._jsc = None
    with pytest.raises(
        ClusterError, match=r"The Spark session ended while this call ran: SparkContext\.stop"
    ) as raised:
        cancellable(session, lambda: int("an error of Py4J"))
    assert raised.value.__suppress_context__


def test_an_exception_of_a_signal_handler_cancels_the_jobs_and_is_what_the_caller_sees(session, alarm):
    """Py4J would make a Py4JError of it, and the ranks would train on."""
    ended = []

    def work():
        alarm()
        assert session.sparkContext.cancelled.wait(60)
        with pytest.raises(Cancelled):
            check_not_cancelled()
        ended.append(True)
        raise RuntimeError("error while sending or receiving")

    with pytest.raises(TooLong):
        cancellable(session, work)
    assert ended


def test_ctrl_c_is_one_of_them(session):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background has none
    try:
        with pytest.raises(KeyboardInterrupt):
            cancellable(session, lambda: os.kill(os.getpid(), signal.SIGINT) or session.sparkContext.cancelled.wait(60))
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_exception_that_another_thread_raises_here_is_another(session):
    """As libraries for time limits do."""
    here, kind = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(TooLong)

    def work():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(here, kind)
        session.sparkContext.cancelled.wait(60)

    with pytest.raises(TooLong):
        cancellable(session, work)


def test_the_end_of_work_that_hangs_is_waited_for_no_longer_than_the_limit(session, alarm, monkeypatch, caplog):
    monkeypatch.setattr(cancellation, "LONGEST", 0.2)
    over = threading.Event()
    with pytest.raises(TooLong):
        cancellable(session, lambda: alarm() or over.wait(60))
    over.set()
    assert "have not ended" in caplog.text


def test_a_job_that_somebody_else_cancelled_is_no_lost_attempt():
    error = Exception("[SPARK_JOB_CANCELLED] Job 3 cancelled part of cancelled job tags cos_ml-1")
    assert spark_internals.is_cancelled(error, but="cos_ml-2")
    assert not spark_internals.is_cancelled(error, but="cos_ml-1")
    assert not spark_internals.is_cancelled(Exception("Job aborted due to stage failure"), but="cos_ml-2")
