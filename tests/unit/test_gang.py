"""How the driver gangs tasks of an ordinary stage: threads are the tasks."""

import contextlib
import socket
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from cos_ml.errors import ClusterError
from cos_ml.job import gang, link
from cos_ml.job.gang import GangContext, task_context
from cos_ml.job.progress import Address

pytestmark = pytest.mark.once

OWN = "127.0.0.1"


class Session:
    """The settings of a session."""

    def __init__(self, **conf):
        self.conf = {"spark.driver.host": OWN} | {name.replace("_", "."): value for name, value in conf.items()}


class ConnectSession(Session):
    __module__ = "pyspark.sql.connect.session"


class Job:
    """A job of two tasks, which ``join``; ``cancelled`` is set when the driver cancels it."""

    def __init__(self, monkeypatch, stack, **conf):
        self.monkeypatch, self.stack, self.cancelled, self.calls = monkeypatch, stack, threading.Event(), 0
        self.server = stack.enter_context(gang.gathered(Session(**conf), 2, self.cancel, True))

    def cancel(self):
        self.calls += 1
        self.cancelled.set()

    def join(self, partition):
        task = types.SimpleNamespace(partitionId=lambda: partition, taskAttemptId=lambda: 100 + partition)
        self.monkeypatch.setattr(gang, "current_task", lambda: task)
        return self.stack.enter_context(contextlib.closing(GangContext(self.server.address)))


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setattr(gang, "RECHECK", 0.01)
    monkeypatch.setattr(gang, "REPORT_TIME", 0.01)
    with contextlib.ExitStack() as stack:
        yield lambda **conf: Job(monkeypatch, stack, **conf)


def together(*functions):
    """What each function returns; all are called at the same time."""
    with ThreadPoolExecutor(len(functions)) as pool:
        return [done.result(30) for done in [pool.submit(one) for one in functions]]


def hosts(context):
    return [info.address for info in context.getTaskInfos()]


def test_tasks_wait_for_all_and_exchange_what_barrier_tasks_do(job):
    one = job()
    second, first = one.join(1), one.join(0)
    assert (second.partitionId(), second.taskAttemptId()) == (1, 101)
    assert together(*(lambda task=task: hosts(task) for task in (second, first))) == [[f"{OWN}:0"] * 2] * 2
    for _ in range(2):
        assert together(lambda: second.allGather("b"), lambda: first.allGather("a")) == [["a", "b"]] * 2
    for task in (first, second):
        task.finish()
        task.close()
    with one.server.changed:
        assert one.server.changed.wait_for(lambda: not one.server.has_lost(), 30)
    one.server.close()
    assert not one.calls


def test_a_task_that_is_lost_before_all_are_there_is_replaced(job):
    one = job()
    lost = one.join(0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(hosts, lost)
        again, other = one.join(0), one.join(1)
        assert together(lambda: hosts(again), lambda: hosts(other)) == [[f"{OWN}:0"] * 2] * 2
        assert isinstance(waits.exception(30), OSError)  # its place is taken
    assert not one.calls


@pytest.mark.parametrize("finished", [False, True])
def test_a_task_that_spark_starts_again_ends_the_job_and_gets_no_answer(job, finished):
    """Its executor was lost, perhaps after the task had returned its result."""
    one = job()
    first, second = one.join(0), one.join(1)
    together(lambda: hosts(first), lambda: hosts(second))
    if finished:
        first.finish()
    again = one.join(0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(hosts, again)
        assert one.cancelled.wait(30)
        assert one.server.has_lost()
        one.server.close()
        assert isinstance(waits.exception(30), OSError)
    assert one.calls == 1


def test_a_job_that_spark_ends_itself_has_lost_a_task_if_not_all_have_finished(job):
    """Where a task may fail only once, as on a local master."""
    one = job()
    first, second = one.join(0), one.join(1)
    assert not one.server.has_lost()  # such as a job whose rows can't be read
    together(lambda: hosts(first), lambda: hosts(second))
    assert one.server.has_lost()


def test_a_task_that_is_lost_ends_the_job(job):
    """Once, though Spark has no slot to start it again, and the other one is lost with it."""
    one = job()
    first, second = one.join(0), one.join(1)
    together(lambda: hosts(first), lambda: hosts(second))
    first.close()
    second.close()
    assert one.cancelled.wait(30)
    one.server.close()
    assert one.calls == 1


def test_the_task_of_a_gang_has_finished_when_it_has_returned_all(job, monkeypatch):
    one = job()
    other, stand_in = one.join(1), types.SimpleNamespace(partitionId=lambda: 0)
    monkeypatch.setattr(gang, "current_task", lambda: stand_in)

    def fails():
        with task_context(one.server.address) as context:
            context.getTaskInfos()
            raise ValueError("the rank was killed")

    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(hosts, other)
        with pytest.raises(ValueError, match="the rank was killed"):
            fails()
        waits.result(30)
    assert one.cancelled.wait(30)


def test_a_gang_that_is_half_started_does_not_wait_for_ever(monkeypatch, caplog):
    monkeypatch.setattr(gang, "RECHECK", 0.01)
    monkeypatch.setattr(gang.slots, "FIRST_WARNING", 0.0)
    pattern = r"numTrainWorkers=2 needs 2 tasks at the same time, but not all .* raise spark\.cosml\.executorsTimeout"

    def starts_half():
        with contextlib.ExitStack() as stack:
            one = Job(monkeypatch, stack, spark_cosml_executorsTimeout="1s")
            one.join(1)
            assert one.cancelled.wait(30)
            raise RuntimeError("the job was cancelled")

    with pytest.raises(ClusterError, match=pattern):
        starts_half()
    assert "1 of 2 ranks have started" in caplog.text


def test_who_does_not_know_the_secret_gets_no_place(job):
    one = job()
    first = one.join(0)
    with pytest.raises(ClusterError, match="can't reach the driver"):
        GangContext(Address(OWN, one.server.address.port, "guessed"))
    for garbage in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(1000)):
        with contextlib.suppress(OSError), socket.create_connection((OWN, one.server.address.port), 10) as caller:
            caller.sendall(garbage)
            caller.shutdown(socket.SHUT_WR)
            assert len(b"".join(iter(lambda: caller.recv(1024), b""))) in (0, link.NONCE + link.PROOF)
    second = one.join(1)
    assert together(lambda: first.allGather("a"), lambda: second.allGather("b")) == [["a", "b"]] * 2
    assert "guessed" not in repr(Address(OWN, 1, "guessed"))


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (ConnectSession(), "not possible with Spark Connect"),
        (Session(spark_speculation="true"), r"Set spark\.speculation=false"),
        (Session(spark_driver_bindAddress="192.0.2.77"), r"can't listen on 192\.0\.2\.77"),
    ],
)
def test_where_tasks_can_t_be_ganged(session, message):
    with pytest.raises(ClusterError, match=message), gang.gathered(session, 2, lambda: None, True):
        pytest.fail("the job would start")


def test_a_driver_that_executors_can_t_reach(monkeypatch):
    monkeypatch.setattr(gang, "current_task", lambda: None)
    with socket.create_server((OWN, 0)) as listener:
        port = listener.getsockname()[1]
    pattern = rf"can't reach the driver at 127\.0\.0\.1, port {port}.*spark\.cosml\.portRange"
    with pytest.raises(ClusterError, match=pattern), task_context(Address(OWN, port, "")):
        pytest.fail("there is no driver")
