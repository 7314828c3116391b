import threading

import pytest

from cos_ml import spark_internals
from cos_ml.errors import ClusterError, InvalidInputError
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
    """A function that sets how many tasks the cluster can run at once, and its executors; None for unknown."""

    def resize(tasks, executors=None):
        monkeypatch.setattr(spark_internals, "max_concurrent_tasks", lambda spark, profile: tasks)
        monkeypatch.setattr(spark_internals, "count_executors", lambda spark: executors)

    return resize


class Clock:
    """What slots.py uses of ``time``; executors register as seconds pass, without a wait."""

    def __init__(self, cluster, registers):
        self.now, self.cluster, self.registers = 0.0, cluster, dict(registers)
        self.sleep(0.0)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for at in [at for at in self.registers if at <= self.now]:
            self.cluster(*self.registers.pop(at))


def wait_for(condition):
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


DYNAMIC = {"spark_master": "yarn", "spark_dynamicAllocation_enabled": "true", "spark_executor_cores": "2"}


@pytest.mark.parametrize(
    ("kind", "remedy"), [(Session, "Set the Param useBarrier=False, or spark.dyn"), (ConnectSession, "Set spark.dyn")]
)
def test_dynamic_allocation_and_a_barrier_are_an_error_at_once(kind, remedy):
    with pytest.raises(ClusterError, match=rf"\(SPARK-24942\).* {remedy}amicAllocation\.enabled=false"):
        slots.check_cluster(kind(**DYNAMIC), 1)


def test_a_local_master_has_no_dynamic_allocation(cluster):
    cluster(2)
    slots.check_cluster(Session(**DYNAMIC | {"spark_master": "local[2]"}), 2)


@pytest.mark.parametrize(
    ("conf", "slots_for"),
    [
        ({}, None),
        ({"maxExecutors": "2"}, None),
        ({"maxExecutors": "1"}, 2),
        ({"maxExecutors": "1", "minExecutors": "2"}, None),
        ({"executorAllocationRatio": "0.5"}, 2),
        ({"executorAllocationRatio": "0.5", "minExecutors": "2"}, None),
    ],
)
def test_dynamic_allocation_has_to_request_executors_for_all_ranks(cluster, conf, slots_for):
    """None are there yet: Spark requests them for the job's tasks."""
    cluster(0, 0)
    session = Session(**DYNAMIC | {f"spark_dynamicAllocation_{name}": value for name, value in conf.items()})
    if slots_for is None:
        slots.check_cluster(session, 4, use_barrier=False)
        return
    with pytest.raises(ClusterError, match=f"will request executors for {slots_for}: .*numTrainWorkers to {slots_for}"):
        slots.check_cluster(session, 4, use_barrier=False)


def test_how_many_tasks_an_executor_runs_may_be_unknown(cluster):
    cluster(0, 0)
    conf = {"spark_executor_cores": "", "spark_master": "spark://host", "spark_dynamicAllocation_maxExecutors": "1"}
    slots.check_cluster(Session(**DYNAMIC | conf), 4, use_barrier=False)


def test_fits_without_a_barrier_take_turns_unless_executors_for_both_are_there(cluster, monkeypatch):
    """Otherwise each might get half of its executors, and wait for the rest."""
    monkeypatch.setattr(slots, "RECOUNT", 0.001)
    cluster(0, 0)
    begun, session = threading.Event(), Session(**DYNAMIC)

    def hold():
        with slots.acquire(session, 2, use_barrier=False):
            begun.set()

    thread = threading.Thread(target=hold)
    with slots.acquire(session, 2, use_barrier=False):
        cluster(3, 2)
        thread.start()
        assert not begun.wait(0.05)
        cluster(4, 2)
        assert begun.wait(30)
    thread.join()


@pytest.mark.parametrize(
    ("conf", "known"),
    [
        ({"spark_master": "local[2]"}, True),
        ({"spark_master": "local[5,3]", "spark_task_cpus": "2"}, True),
        ({"spark_master": "local[*]"}, False),
        ({"spark_master": "yarn", "spark_executor_instances": "4"}, False),
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


def test_of_an_unknown_number_of_slots_no_more_are_expected_than_were_requested():
    session = ConnectSession(spark_master="spark://host:7077", spark_cores_max="4")
    slots.check_cluster(session, 4)
    with pytest.raises(ClusterError, match=r"slots for 4 in all: spark\.cores\.max=4"):
        slots.check_cluster(session, 5)


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
    lacking = pytest.raises(ClusterError, match="needs 2 tasks at the same time, but the application has slots for 1")
    with lacking, pool.acquire(2, lambda: 1, 0.01):
        pass
    with pool.acquire(1, lambda: 1):
        pass  # the one that failed has left the queue


YARN = {"spark_master": "yarn", "spark_executor_instances": "2", "spark_executor_cores": "2"}
STANDALONE = {"spark_master": "spark://host:7077"}
ALL_CORES = STANDALONE | {"spark_cores_max": "4", "spark_executor_cores": "2"}
TIMEOUT = "spark_cosml_executorsTimeout"


@pytest.mark.parametrize("conf", [YARN, YARN | {"spark_master": "k8s://https://host"}, ALL_CORES])
def test_requested_executors_are_waited_for_and_counted(cluster, monkeypatch, caplog, conf):
    """They unpack their environment for minutes first."""
    clock = Clock(cluster, {0: (0, 0), 90: (2, 1), 400: (4, 2)})
    monkeypatch.setattr(slots, "time", clock)
    slots.check_cluster(Session(**conf), 4)
    assert 400 <= clock.now < 401
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 7  # once a minute
    assert "there are 0 (0 of the 2 requested executors registered). The fit fails" in messages[0]
    assert "there are 2 (1 of the 2 requested executor registered)" in messages[2]
    assert "(spark.cosml.executorsTimeout)" in messages[0]


@pytest.mark.parametrize(
    ("conf", "found", "seconds", "message"),
    [
        (
            YARN,
            (2, 1),
            600,
            r"slots for 2 after 600 s \(1 of the 2 requested executor registered\)\..*executorsTimeout",
        ),
        (YARN | {TIMEOUT: "2min"}, (0, 0), 120, r"no executor that could run one after 120 s .*raise spark\.cosml\."),
        (YARN | {TIMEOUT: "0"}, (2, 1), 0, "slots for 2"),
        (STANDALONE, (2, 1), 30, r"slots for 2 after 30 s \(1 executor registered\)"),
        (STANDALONE | {TIMEOUT: "90s"}, (2, None), 90, "slots for 2 after 90 s. Set numTrainWorkers to 2 or less"),
        (STANDALONE, (0, 0), 600, r"no executor that could run one.*spark\.worker\.resource\.gpu\.amount"),
        (ALL_CORES, (2, 1), 600, r"1 of the 2 requested"),
        (STANDALONE | {"spark_cores_max": "4"}, (2, 1), 600, "slots for 2 after 600 s"),
        (YARN, (2, 2), 0, "slots for 2 "),  # such as executors with fewer GPUs than cores
        (YARN | {"spark_executor_cores": ""}, (0, 0), 0, "slots for 2 in all: spark.executor.instances=2, spark.exec"),
        (YARN | {"spark_task_cpus": "2"}, (0, 0), 0, "slots for 2 in all: .*spark.executor.cores=2, spark.task.cpus=2"),
        ({"spark_master": "yarn"}, (0, 0), 0, "slots for 2 in all: spark.executor.instances=2"),
        (ALL_CORES | {"spark_cores_max": "3"}, (2, 1), 0, "slots for 2 in all: spark.cores.max=3"),
        ({"spark_master": "local"}, (1, 0), 0, "slots for 1"),
        ({"spark_master": "local[2]", TIMEOUT: "1h"}, (2, 0), 0, "slots for 2"),
    ],
)
def test_what_does_not_register_is_waited_for_in_bounds(cluster, monkeypatch, conf, found, seconds, message):
    clock = Clock(cluster, {0: found})
    monkeypatch.setattr(slots, "time", clock)
    with pytest.raises(ClusterError, match=f"numTrainWorkers=4 needs 4 tasks at the same time, .*{message}"):
        slots.check_cluster(Session(**conf), 4)
    assert seconds <= clock.now < seconds + 1


def test_executors_beyond_what_was_requested_count(cluster):
    cluster(8, 4)
    slots.check_cluster(Session(**YARN), 8)


def test_what_is_no_duration_is_refused(cluster):
    cluster(0, 0)
    with pytest.raises(InvalidInputError, match=r"spark\.cosml\.executorsTimeout is 'soon'; must be a duration"):
        slots.check_cluster(Session(**YARN, spark_cosml_executorsTimeout="soon"), 4)


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
