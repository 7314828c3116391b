"""Who hangs, and who only waits for the one that does."""

import io
import json
import threading
import time

import pytest

from cos_ml.job.watchdog import Listener
from cos_ml.rank import heartbeat
from cos_ml.rank.heartbeat import Heartbeat


class PhaseTimer:
    now = 0.0

    def __call__(self):
        return self.now


def alive(done, phase, processor=0.0):
    return {"event": "alive", "done": done, "phase": phase, "processor": processor}


def stalled_after(phase, silent=False, stopped=False, load=0.0, built=0.0):
    """Seconds until a rank that does not get on is given up, with a timeout of 40.

    Args:
        built: seconds that it computes first, as for the first step's graph.
    """
    timer = PhaseTimer()
    listener = Listener(40, lambda: stopped, timer)
    listener.hear(alive(3, phase))
    while not listener.stalled:
        timer.now += 1
        if not silent and not stopped:
            listener.hear(alive(3, phase, max(load * timer.now, min(built, timer.now))))
    return timer.now


@pytest.mark.parametrize(
    ("phase", "how", "seconds"),
    [
        ("callbacks, epoch 1", {}, 41),
        ("training, epoch 1 after step 16", {"silent": True}, 41),  # the process is stopped
        ("training, epoch 1 after step 16", {"load": 1.0}, 41),  # it loops
        ("training, epoch 1 after step 16", {"load": 0.1}, 51),  # it may only wait for the others
        ("training, epoch 1", {"built": 30.0}, 51),  # it has built its step, and waits since
        (heartbeat.STARTING, {}, 301),  # the import of TensorFlow by all ranks of a slow host
        (heartbeat.JOINING, {}, 301),
        (heartbeat.STARTING, {"silent": True}, 301),  # which holds Python's lock for long
        (heartbeat.STARTING, {"stopped": True}, 41),
        (heartbeat.JOINING, {"stopped": True}, 41),
    ],
)
def test_the_one_that_hangs_is_given_up_first(phase, how, seconds):
    assert stalled_after(phase, **how) == seconds


def test_whoever_gets_on_is_not_given_up():
    timer = PhaseTimer()
    listener = Listener(10, lambda: False, timer)
    for done in range(100):
        timer.now += 9
        listener.hear(alive(done, "training"))
        assert not listener.stalled
    timer.now += 9
    listener.hear({"event": "epoch"})
    timer.now += 9
    assert not listener.stalled


def test_a_pulse_says_what_its_rank_is_at(monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT", 0.001)
    file = io.StringIO()
    one = Heartbeat(file)
    one.at("training, epoch 1")
    while '"done": 1' not in file.getvalue():
        pass
    one.report(event="note", text="two\nlines")
    one.close()
    events = [json.loads(line) for line in file.getvalue().splitlines()]
    told = [event for event in events if event["event"] == "alive"]
    assert {"phase": "training, epoch 1", "done": 1} in [{"phase": one["phase"], "done": one["done"]} for one in told]
    assert all(one["processor"] > 0 for one in told)
    assert {"event": "note", "text": "two\nlines"} in events


def test_threads_that_wait_for_other_ranks_do_not_count():
    used, done = threading.Event(), threading.Event()

    def poll() -> None:
        while time.thread_time() < 0.3:
            pass
        used.set()
        done.wait()

    thread = threading.Thread(target=poll)
    one = Heartbeat(io.StringIO())
    thread.start()
    one.without([thread.native_id])
    used.wait()
    counted, all_of_it = one._processor(), time.process_time()
    done.set()
    thread.join()
    one.close()
    assert 0.25 < all_of_it - counted < 0.4
