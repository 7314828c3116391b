import threading
import types

import pytest

from cos_ml.errors import ClusterError
from cos_ml.job import slots


class Session:
    """As much of a session of Spark Connect as is looked at."""

    def __init__(self, **conf):
        self.conf = {name.replace("_", "."): value for name, value in conf.items()}


def test_dynamic_allocation_is_an_error_at_once():
    with pytest.raises(ClusterError, match=r"Set spark\.dynamicAllocation\.enabled=false"):
        slots.check_cluster(Session(spark_dynamicAllocation_enabled="true", spark_master="local[8]"), 1)


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
def test_slots_are_known_of_local_masters(conf, known):
    slots.check_cluster(Session(**conf), 2)
    if known:
        with pytest.raises(ClusterError, match="slots for 2"):
            slots.check_cluster(Session(**conf), 3)
    else:
        slots.check_cluster(Session(**conf), 3)


def test_slots_are_given_in_the_order_of_asking():
    """A large fit is not kept waiting for ever by small ones that come later."""
    account, order, threads = slots.SlotPool(), [], []
    done = threading.Event()

    def hold(name: str, wanted: int) -> None:
        with account.acquire(wanted, lambda: 4):
            order.append(name)

    with account.acquire(2, lambda: 4):
        for name, wanted in (("large", 4), ("small", 1)):
            thread = threading.Thread(target=hold, args=(name, wanted))
            thread.start()
            threads.append(thread)
            while len(account._queue) < len(threads):
                done.wait(0.001)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    assert account._taken == 0


def test_slots_are_given_back_after_an_error():
    account = slots.SlotPool()
    with pytest.raises(KeyError), account.acquire(2, lambda: 2):
        raise KeyError
    with account.acquire(2, lambda: 2):
        assert account._taken == 2


def test_executors_that_come_are_counted_and_lost_ones_are_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(slots, "RECOUNT", 0.001)
    account, counts = slots.SlotPool(), iter([1, 1, 2])
    with account.acquire(2, lambda: next(counts)):
        assert account._taken == 2
    monkeypatch.setattr(slots, "EXECUTORS_TIME", 0.01)
    lacking = pytest.raises(ClusterError, match="needs 2 tasks at the same time, and the application has slots for 1")
    with lacking, account.acquire(2, lambda: 1):
        pass
    assert not account._queue


def test_no_executor_at_all(monkeypatch):
    monkeypatch.setattr(slots, "_slots", lambda spark, profile: 0)
    monkeypatch.setattr(slots, "_patience", lambda spark: 0.0)
    settings = types.SimpleNamespace(conf={"spark.master": "spark://host:7077"})
    with pytest.raises(ClusterError, match=r"no executor that could run one.*spark\.worker\.resource\.gpu\.amount"):
        slots.check_cluster(settings, 2)


def test_a_fit_that_wants_all_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(slots, "_slots", lambda spark, profile: 4)
    monkeypatch.setattr(slots, "_pool", slots.SlotPool())
    begun, waits = threading.Event(), threading.Event()

    def hold() -> None:
        with slots.acquire(None, 1, alone=True):
            begun.set()

    thread = threading.Thread(target=hold)
    with slots.acquire(None, 1):  # one of four
        thread.start()
        while not slots._pool._queue:
            waits.wait(0.001)
        assert not begun.is_set()
    thread.join()
    assert begun.is_set()


def test_a_cluster_that_schedules_no_stage_by_itself():
    class Py4JJavaError(Exception):
        java_exception = types.SimpleNamespace(
            getMessage=lambda: "TaskResourceProfiles are only supported for Yarn.\n at"
        )

    def raise_on_invalid(profile):
        raise Py4JJavaError("An error occurred while calling o1.addResourceProfile.\n...")

    manager = types.SimpleNamespace(
        resourceProfileManager=lambda: types.SimpleNamespace(addResourceProfile=raise_on_invalid)
    )
    context = types.SimpleNamespace(_jsc=types.SimpleNamespace(sc=lambda: manager))
    with pytest.raises(ClusterError, match=r"itself: TaskResourceProfiles .* for Yarn\. Give .*task\.resource\.gpu"):
        slots._java_profile(
            types.SimpleNamespace(sparkContext=context), types.SimpleNamespace(_java_resource_profile=None)
        )
