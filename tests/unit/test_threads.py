"""The threads of a rank."""

import os
import threading

import pytest
import tensorflow as tf

from cos_ml.rank import threads

pytestmark = pytest.mark.once


@pytest.fixture
def pools(monkeypatch):
    """The sizes of TensorFlow's pools that are asked for."""
    found = {}
    for name in ("intra", "inter"):
        monkeypatch.setattr(
            tf.config.threading,
            f"set_{name}_op_parallelism_threads",
            lambda size, name=name: found.update({name: size}),
        )
    return found


def policy_after(local_size, before=os.SCHED_OTHER):
    """The policy of a thread that has called limit: policies are those of threads."""
    found = []

    def run():
        os.sched_setscheduler(0, before, os.sched_param(0))
        threads.limit(local_size)
        found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_ranks_divide_the_cores(pools, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    policy_after(3)
    assert pools == {"intra": 2, "inter": 2}
    policy_after(16)
    assert pools == {"intra": 1, "inter": 1}


def test_threads_that_wake_up_do_not_interrupt_those_that_compute(pools):
    assert policy_after(2) == os.SCHED_BATCH


def test_a_policy_that_somebody_has_chosen_stays(pools):
    assert policy_after(2, os.SCHED_IDLE) == os.SCHED_IDLE


def test_a_container_may_forbid_it(pools, monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(threads.os, "sched_setscheduler", lambda *_: None)
    monkeypatch.setattr(threads.os, "sched_getscheduler", forbidden)
    threads.limit(2)
    assert pools["inter"] >= 1
