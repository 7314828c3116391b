"""Listeners: what they are told, and that none of them fails or slows a fit."""

import logging
import threading

import pytest

from cos_ml import listeners
from cos_ml.listeners import Fit, FitListener, Progress, TrainBegin

pytestmark = pytest.mark.once

FIT = Fit((), None, None)
EVENT = {
    "event": "epoch", "epoch": 1, "epochs": 2, "step": 4, "steps": 4, "total_steps": 8, "rows": 100,
    "logs": {"loss": 0.5}, "arrays": {"f1_score": [0.5, 1.0]}, "rows_per_second": 50.0, "candidate": 2, "candidates": 3,
}  # fmt: skip
EPOCH = Progress(1, 1, 2, 4, 4, 8, 100, {"loss": 0.5}, {"f1_score": [0.5, 1.0]}, 50.0, 3)


class Recorder(FitListener):
    def __init__(self, fails=()):
        self.calls, self.fails = [], fails

    def _record(self, name, *what):
        self.calls.append((name, *what))
        if name in self.fails:
            raise ValueError("no tracker")

    def on_fit_begin(self, fit):
        self._record("fit_begin")

    def on_train_begin(self, fit, begin):
        self._record("train_begin", begin)

    def on_step(self, fit, progress):
        self._record("step", progress.steps_so_far)

    def on_epoch_end(self, fit, progress):
        self._record("epoch_end", progress)

    def on_note(self, fit, text):
        self._record("note", text)

    def on_fit_end(self, fit, models, error):
        self._record("fit_end", models, error)


@pytest.fixture
def recorder():
    recorder = Recorder()
    listeners.add(recorder)
    listeners.add(recorder)
    yield recorder
    listeners.remove(recorder)
    listeners.remove(recorder)


def test_what_a_listener_is_told(recorder):
    def train(take):
        take({"event": "begin", "epoch": 0, "step": 0, "kept": True, "candidate": 2, "candidates": 3})
        take(EVENT | {"event": "step", "epoch": 2, "step": 3})
        take(EVENT)
        take({"event": "note", "text": "little memory"})
        take({"event": "what a later version may send"})
        return ["model"]

    assert listeners.during(FIT, [], train) == ["model"]
    assert recorder.calls == [
        ("fit_begin",),
        ("train_begin", TrainBegin(candidate=1, epoch=0, step=0, kept=True)),
        ("step", 7),
        ("epoch_end", EPOCH),
        ("note", "little memory"),
        ("fit_end", ["model"], None),
    ]


def test_a_failed_fit_raises_its_own_error(recorder):
    error = RuntimeError("a rank failed")

    def train(take):
        raise error

    with pytest.raises(RuntimeError, match="a rank failed"):
        listeners.during(FIT, [], train)
    assert recorder.calls == [("fit_begin",), ("fit_end", None, error)]


def test_without_listeners_no_channel_is_opened():
    assert listeners.during(FIT, [], lambda take: [take]) == [None]


def test_a_listener_that_fails_is_reported_once_and_fails_nothing(recorder, caplog):
    failing = Recorder(fails=("epoch_end", "note", "fit_end"))

    def train(take):
        for event in (EVENT, {"event": "note", "text": "x"}, EVENT):
            take(event)
        return []

    with caplog.at_level(logging.WARNING, "cos_ml"):
        listeners.during(FIT, [failing], train)
    assert [call[0] for call in failing.calls] == ["fit_begin", "epoch_end", "note", "epoch_end", "fit_end"]
    assert failing.calls[1:3] == recorder.calls[1:3]
    assert caplog.messages == ["The listener Recorder failed: ValueError: no tracker."]


def test_a_listener_that_can_not_begin_is_told_no_more(caplog):
    failing = Recorder(fails=("fit_begin",))
    assert listeners.during(FIT, [failing], lambda take: [take]) == [None]
    assert failing.calls == [("fit_begin",)]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("at", ["fit_begin", "fit_end"])
def test_ctrl_c_within_one_listener_leaves_none_without_the_end(recorder, at):
    class Interrupted(Recorder):
        def _record(self, name, *what):
            super()._record(name, *what)
            if name == at:
                raise KeyboardInterrupt

    first = Recorder()
    with pytest.raises(KeyboardInterrupt):
        listeners.during(FIT, [first, Interrupted()], lambda take: [])
    assert [call[0] for call in first.calls] == ["fit_begin", "fit_end"]
    assert [call[0] for call in recorder.calls] == ([] if at == "fit_begin" else ["fit_begin", "fit_end"])


def test_a_listener_that_hangs_holds_up_neither_the_ranks_nor_another(recorder, monkeypatch, caplog):
    monkeypatch.setattr(listeners, "PATIENCE", 0.05)
    go_on, ended = threading.Event(), []

    class Hanging(Recorder):
        def on_epoch_end(self, fit, progress):
            super().on_epoch_end(fit, progress)
            go_on.wait(60)

        def on_fit_end(self, fit, models, error):
            ended.append(models)

    hanging = Hanging()
    listeners.during(FIT, [hanging], lambda take: [take(EVENT) for _ in range(1000)])
    assert [call[0] for call in hanging.calls] == ["fit_begin", "epoch_end"]
    assert len(ended) == 1
    assert len(recorder.calls) == 1002
    assert "has taken no event" in caplog.text
    go_on.set()
