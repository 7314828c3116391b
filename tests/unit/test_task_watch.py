"""A rank's standard input: messages, and a task that is stopped."""

import os
import queue
import signal
import subprocess
import threading

import pytest

from cos_ml.rank import task_watch
from cos_ml.rank.task_watch import TaskWatch

pytestmark = pytest.mark.once


class Events:
    """A heartbeat that keeps what it sends."""

    def __init__(self):
        self.sent = queue.SimpleQueue()

    def send(self, **event):
        self.sent.put(event)


@pytest.fixture
def pipe(monkeypatch):
    """The watch of a rank, and the end of its standard input that the task has."""
    monkeypatch.setattr(task_watch, "INTERVAL", 0.05)
    gone, forever = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: gone.set() or forever.wait())  # when this test closes the pipe
    read, write = os.pipe()
    watch = TaskWatch(read)
    yield watch, write
    os.close(write)
    assert gone.wait(20)
    os.close(read)


@pytest.fixture
def task():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_messages_are_lines_and_empty_ones_are_signs_of_life(pipe):
    watch = pipe[0]
    os.write(pipe[1], b'\n{"a": 1}\n\n{"b"')
    assert watch.receive() == {"a": 1}
    os.write(pipe[1], b": 2}\n")
    assert watch.receive() == {"b": 2}


def test_a_task_that_was_stopped_is_continued_and_told_so(pipe, task):
    watch, events = pipe[0], Events()
    task.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, task.pid, os.WSTOPPED)
    watch.begin(task.pid, 0.2, events)
    assert os.waitid(os.P_PID, task.pid, os.WCONTINUED).si_status == signal.SIGCONT
    os.write(pipe[1], b"\n")  # as it does then
    assert events.sent.get(timeout=20)["event"] == "stopped"
    assert task.poll() is None


def test_a_task_that_stays_silent_is_killed(pipe, task):
    pipe[0].begin(task.pid, 0.2, Events())
    assert task.wait(20) == -signal.SIGKILL


def test_a_rank_ends_when_its_task_has_answered(pipe):
    watch, events = pipe[0], Events()
    watch.begin(os.getpid(), 1000, events)
    os.write(pipe[1], b"\n")  # it may arrive before the end, or after; another one answers

    def send(**event):
        os.write(pipe[1], b"\n")

    events.send = send
    watch.finish()
