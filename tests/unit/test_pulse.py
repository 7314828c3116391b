"""Who hangs, and who only waits for the one that does."""

import io
import json

import pytest

from cos_ml import pulse
from cos_ml.pulse import Listener, Pulse


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def alive(done, phase):
    return {"event": "alive", "done": done, "phase": phase}


def stalled_after(phase, silent):
    """Seconds until a rank that does not get on is given up, with a timeout of 40."""
    clock = Clock()
    listener = Listener(40, clock)
    listener.hear(alive(3, phase))
    while not listener.stalled:
        clock.now += 1
        if not silent:
            listener.hear(alive(3, phase))
    return clock.now


@pytest.mark.parametrize(
    ("phase", "silent", "seconds"),
    [
        ("callbacks, epoch 1", False, 41),
        ("training, epoch 1 after step 16", True, 41),  # the process is stopped
        ("training, epoch 1 after step 16", False, 51),  # it may only wait for the others
    ],
)
def test_the_one_that_hangs_is_given_up_first(phase, silent, seconds):
    assert stalled_after(phase, silent) == seconds


def test_whoever_gets_on_is_not_given_up():
    clock = Clock()
    listener = Listener(10, clock)
    for done in range(100):
        clock.now += 9
        listener.hear(alive(done, "training"))
        assert not listener.stalled
    clock.now += 9
    listener.hear({"event": "epoch"})
    clock.now += 9
    assert not listener.stalled


def test_a_pulse_says_what_its_rank_is_at(monkeypatch):
    monkeypatch.setattr(pulse, "BEAT", 0.001)
    file = io.StringIO()
    one = Pulse(file)
    one.at("training, epoch 1")
    while '"done": 1' not in file.getvalue():
        pass
    one.report(event="note", text="two\nlines")
    one.close()
    events = [json.loads(line) for line in file.getvalue().splitlines()]
    assert {"event": "alive", "phase": "training, epoch 1", "done": 1} in events
    assert {"event": "note", "text": "two\nlines"} in events
