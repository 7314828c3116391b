"""Checkpoints that are written beside the training: one at a time, noted where they fail, given up where they hang."""

import threading

import numpy as np
import pytest

from cos_ml.rank.checkpoint_store import Checkpoint
from cos_ml.rank.checkpoint_writer import CheckpointWriter

LONG = 60  # seconds that no test takes


class Store:
    """A store that writes when it is told to, and has ``kept`` what is whole."""

    def __init__(self, local=False):
        self.local, self.kept, self.errors = local, [], []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def write(self, checkpoint):
        self.begun.release()
        assert self.go.acquire(timeout=LONG)
        if self.errors:
            raise self.errors.pop()
        self.kept.append(checkpoint.epoch)


def checkpoint_of(epoch):
    return Checkpoint(epoch, 0, {}, {"w": np.zeros(3)})


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store():
    made = Store()
    yield made
    made.go.release(100)  # no thread stays


def test_the_training_goes_on_while_one_is_written_and_waits_before_the_next(store, notes):
    writer = CheckpointWriter(store, LONG, notes.append)
    writer.write(checkpoint_of(1))
    assert store.begun.acquire(timeout=LONG)  # and this thread goes on
    assert store.kept == []
    other = threading.Thread(target=writer.write, args=[checkpoint_of(2)])
    other.start()
    assert not store.begun.acquire(timeout=0.1)  # the second has not begun
    store.go.release(2)
    other.join(LONG)
    assert writer.finish()
    assert (store.kept, notes) == ([1, 2], [])


def test_on_a_local_disk_it_is_there_when_write_returns(notes):
    store = Store(local=True)
    store.go.release()
    CheckpointWriter(store, LONG, notes.append).write(checkpoint_of(1))
    assert store.kept == [1]


def test_what_can_not_be_written_is_noted_and_the_next_is_written(store, notes):
    store.errors = [OSError(28, "No space left on device")]
    store.go.release(2)
    writer = CheckpointWriter(store, LONG, notes.append)
    writer.write(checkpoint_of(1))
    writer.write(checkpoint_of(2))
    assert writer.finish()
    assert store.kept == [2]
    assert notes == [
        "The checkpoint after epoch 1, step 0 could not be written: OSError(28, 'No space left on device')."
    ]


@pytest.mark.parametrize("local", [True, False])
def test_a_store_that_hangs_costs_checkpoints_and_not_the_training(notes, local):
    store = Store(local)
    writer = CheckpointWriter(store, 0.01, notes.append)
    for epoch in (1, 2, 3):
        writer.write(checkpoint_of(epoch))
    assert not writer.finish()
    writer.close()  # at once
    (note,) = notes
    assert note.startswith("The checkpoint after epoch 1, step 0 is not written after 0.01 s (half of stallTimeout)")
    store.go.release(2)  # it answers again
    writer.limit = LONG
    writer._thread.join(LONG)
    writer.write(checkpoint_of(4))
    writer.finish()
    assert (store.kept, len(notes)) == ([1, 4], 1)
