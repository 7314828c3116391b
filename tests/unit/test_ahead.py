import threading
from contextlib import closing

import pytest

from cos_ml.scoring.ahead import Ahead

TIMEOUT = 30


def names():
    return {one.name for one in threading.enumerate() if one.name.startswith("cos_ml rows")}


def ended():
    for one in threading.enumerate():
        if one.name.startswith("cos_ml rows"):
            one.join(TIMEOUT)
    return not names()


def test_the_next_item_is_made_while_the_caller_works():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    with closing(Ahead(items())) as ahead:
        ahead.start()
        assert ahead.result() == 0
        ahead.start()
        assert made[1].wait(TIMEOUT)  # without asking for it
        assert not made[2].is_set()  # and only one
        assert ahead.result() == 1
    assert ended()


def test_an_item_gets_what_it_was_started_with():
    def items():
        sent = None
        while sent != "end":
            sent = yield sent, threading.current_thread() is threading.main_thread()

    with closing(Ahead(items())) as ahead:
        found = []
        for value in (None, "a", "b", "end"):
            ahead.start(value)
            found.append(ahead.result())
    assert found == [(None, False), ("a", False), ("b", False), None]
    assert ended()


def test_an_error_comes_with_its_item():
    def items():
        yield 1
        raise ValueError("row 7")

    with closing(Ahead(items())) as ahead:
        ahead.start()
        assert ahead.result() == 1
        ahead.start()
        with pytest.raises(ValueError, match="row 7"):
            ahead.result()
    assert ended()


def test_nobody_waits_for_rows_that_nobody_needs():
    comes = threading.Event()

    def items():
        yield 1
        comes.wait(TIMEOUT)
        yield 2

    with closing(Ahead(items())) as ahead:
        ahead.start()
        assert ahead.result() == 1
        ahead.start()
    assert not comes.is_set()
    comes.set()
    assert ended()
