import threading

import pytest

from cos_ml import spark_internals
from cos_ml.errors import ClusterError
from cos_ml.job import slots

pytestmark = pytest.mark.once


class Session:
    """The settings of a session."""

    def __init__(self, **conf):
        self.conf = {name.replace("_", "."): value for name, value in conf.items()}


class ConnectSession(Session):
    """The settings of a session of Spark Connect, which is known by its module."""

    __module__ = "pyspark.sql.connect.session"


@pytest.fixture
def cluster(monkeypatch):
    """A function that sets how many tasks the cluster can run at once; None for unknown."""

    def resize(tasks):
        monkeypatch.setattr(spark_internals, "max_concurrent_tasks", lambda spark, profile: tasks)

    return resize


def wait_for(condition):
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def test_dynamic_allocation_is_an_error_at_once():
    with pytest.raises(ClusterError, match=r"Set spark\.dynamicAllocation\.enabled=false"):
        slots.check_cluster(ConnectSession(spark_dynamicAllocation_enabled="true", spark_master="local[8]"), 1)


@pytest.mark.parametrize(
    ("conf", "known"),
    [
        ({"spark_master": "local[2]"}, True),
        ({"spark_master": "local[5,3]", "spark_task_cpus": "2"}, True),
        ({"spark_master": "local[*]"}, False),
        ({"spark_master": "yarn"}, False),
        ({}, False),
    ],
)
def test_spark_connect_reveals_the_slots_of_local_masters(conf, known):
    slots.check_cluster(ConnectSession(**conf), 2)
    if known:
        with pytest.raises(ClusterError, match="slots for 2"):
            slots.check_cluster(ConnectSession(**conf), 3)
    else:
        slots.check_cluster(ConnectSession(**conf), 3)


def test_of_an_unknown_number_of_slots_spark_decides(cluster):
    cluster(None)
    slots.check_cluster(Session(spark_master="spark://host:7077"), 1000)


def test_slots_are_given_in_the_order_of_requests():
    """Small fits that come later do not delay a large one for ever."""
    pool, order, asked, threads = slots.SlotPool(), [], [], []

    def count(name):
        asked.append(name)
        return 4

    def hold(name, wanted):
        with pool.acquire(wanted, lambda: count(name)):
            order.append(name)

    with pool.acquire(2, lambda: 4):
        for name, wanted in (("large", 4), ("small", 1)):
            thread = threading.Thread(target=hold, args=(name, wanted))
            thread.start()
            threads.append(thread)
            wait_for(lambda name=name: name in asked)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    with pool.acquire(4, lambda: 4):
        pass  # all have been returned


def test_slots_are_returned_after_an_error():
    pool = slots.SlotPool()
    with pytest.raises(KeyError), pool.acquire(2, lambda: 2):
        raise KeyError
    with pool.acquire(2, lambda: 2):
        pass


def test_new_executors_count_and_lost_ones_are_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(slots, "RECOUNT", 0.001)
    pool, counts = slots.SlotPool(), iter([1, 1, 2])
    with pool.acquire(2, lambda: next(counts)):
        assert next(counts, None) is None
    monkeypatch.setattr(slots, "EXECUTORS_TIME", 0.01)
    lacking = pytest.raises(ClusterError, match="needs 2 tasks at the same time, but the application has slots for 1")
    with lacking, pool.acquire(2, lambda: 1):
        pass
    with pool.acquire(1, lambda: 1):
        pass  # the one that failed has left the queue


def test_no_executor_at_all(cluster, monkeypatch):
    cluster(0)
    monkeypatch.setattr(slots, "EXECUTORS_TIME", 0.0)
    session = Session(spark_master="spark://host:7077")
    with pytest.raises(ClusterError, match=r"no executor that could run one.*spark\.worker\.resource\.gpu\.amount"):
        slots.check_cluster(session, 2)


@pytest.mark.parametrize("known", [4, None])
def test_an_exclusive_fit_waits_for_the_others(cluster, known):
    """Of an unknown number of slots, one fit at a time has all."""
    cluster(known)
    begun, asked = threading.Event(), threading.Event()

    def hold():
        asked.set()
        with slots.acquire(Session(), 1, exclusive=True):
            begun.set()

    thread = threading.Thread(target=hold)
    with slots.acquire(Session(), 1):  # one of four
        thread.start()
        asked.wait()
        assert not begun.wait(0.05)
    thread.join()
    assert begun.is_set()
