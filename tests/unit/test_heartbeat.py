"""Which rank hangs, and which only waits for the one that does."""

import io
import json
import threading
import time

import pytest

from cos_ml.job.watchdog import Watchdog
from cos_ml.rank import heartbeat
from cos_ml.rank.heartbeat import Heartbeat

pytestmark = pytest.mark.once


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def alive(done, phase, processor=0.0):
    return {"event": "alive", "done": done, "phase": phase, "processor": processor}


def stalled_after(phase, silent=False, stopped=False, load=0.0, built=0.0):
    """Seconds until a rank that makes no progress fails the attempt, with a timeout of 40.

    Args:
        built: seconds that it computes first, as for the first step's graph.
    """
    clock = Clock()
    watchdog = Watchdog(40, lambda: stopped, clock)
    watchdog.record(alive(3, phase))
    while not watchdog.stalled:
        clock.now += 1
        if not silent and not stopped:
            watchdog.record(alive(3, phase, max(load * clock.now, min(built, clock.now))))
    return clock.now


@pytest.mark.parametrize(
    ("phase", "how", "seconds"),
    [
        ("callbacks, epoch 1", {}, 41),
        ("training, epoch 1 after step 16", {"silent": True}, 41),  # the process is stopped
        ("training, epoch 1 after step 16", {"load": 1.0}, 41),  # it loops
        ("training, epoch 1 after step 16", {"load": 0.1}, 51),  # it may only wait for the others
        ("training, epoch 1", {"built": 30.0}, 51),  # it has traced its step, and has waited since
        (heartbeat.STARTING, {}, 301),  # the import of TensorFlow by all ranks of a slow host
        (heartbeat.JOINING, {}, 301),
        (heartbeat.STARTING, {"silent": True}, 301),  # which holds Python's lock for long
        (heartbeat.STARTING, {"stopped": True}, 41),
        (heartbeat.JOINING, {"stopped": True}, 41),
    ],
)
def test_the_rank_that_hangs_fails_first(phase, how, seconds):
    assert stalled_after(phase, **how) == seconds


def test_a_rank_that_makes_progress_does_not_fail():
    clock = Clock()
    watchdog = Watchdog(10, lambda: False, clock)
    for done in range(100):
        clock.now += 9
        watchdog.record(alive(done, "training"))
        assert not watchdog.stalled
    clock.now += 9
    watchdog.record({"event": "epoch"})
    clock.now += 9
    assert not watchdog.stalled


def test_a_heartbeat_carries_the_phase_of_its_rank(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.001)
    file = io.StringIO()
    one = Heartbeat(file)
    one.enter("training, epoch 1")
    while '"done": 1' not in file.getvalue():
        pass
    one.send(event="note", text="two\nlines")
    one.close()
    events = [json.loads(line) for line in file.getvalue().splitlines()]
    beats = [event for event in events if event["event"] == "alive"]
    assert ("training, epoch 1", 1) in [(beat["phase"], beat["done"]) for beat in beats]
    assert all(beat["processor"] > 0 for beat in beats)
    assert {"event": "note", "text": "two\nlines"} in events


def test_threads_that_wait_for_other_ranks_do_not_count(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.001)
    used, done = threading.Event(), threading.Event()

    def poll() -> None:
        while time.thread_time() < 0.3:
            pass
        used.set()
        done.wait()

    thread = threading.Thread(target=poll)
    thread.start()
    file = io.StringIO()
    one = Heartbeat(file)
    one.exclude_threads([thread.native_id])
    used.wait()
    beats, before = len(file.getvalue().splitlines()), time.process_time()
    while len(file.getvalue().splitlines()) <= beats + 1:  # one that began when the time was used
        pass
    one.close()
    counted = json.loads(file.getvalue().splitlines()[beats + 1])["processor"]
    done.set()
    thread.join()
    assert counted < time.process_time() - 0.25
    assert counted > before - 0.4
