import contextlib
import socket

import pytest

from cos_ml.job import reach

pytestmark = pytest.mark.once


def test_a_host_answers_at_its_place_even_when_its_task_has_ended():
    with contextlib.closing(reach.listen("127.0.0.1", None)) as server:
        place = "127.0.0.1", server.server_address[1]
        assert reach.unreachable({"a": place, "b": place}) == []
    assert reach.unreachable({"a": place}) == []  # the connection is refused, by a host that is there


def test_a_host_that_does_not_answer_is_tried_again_before_it_is_lost(monkeypatch):
    tries = []

    def connect(place, timeout):
        tries.append(place)
        if place == ("10.0.0.2", 1) or len(tries) < 3:
            raise OSError(113, "No route to host")
        return socket.socket()

    monkeypatch.setattr(reach, "PAUSE", 0.0)
    monkeypatch.setattr(reach, "create_connection", connect)
    assert reach.unreachable({"b": ("10.0.0.2", 1)}, 0.1) == ["b"]
    tries.clear()
    assert reach.unreachable({"c": ("10.0.0.3", 1)}) == []
    assert len(tries) == 3


def test_no_hosts():
    assert reach.unreachable({}) == []


def test_without_a_free_port_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert reach.listen("127.0.0.1", [other.getsockname()[1]]) is None


@pytest.mark.parametrize("lost", [["10.77.75.3"], ["b.example.org", "fd77::3"]])
def test_the_hosts_that_an_error_names_are_read_again(lost):
    said = reach.message("10.77.75.2", lost)
    assert reach.lost_by(f"Rank 0 on a made no progress for 10 s. {said} Its phase: training.") == lost
    assert reach.lost_by(said) == lost
    assert reach.lost_by("Rank 0 on a made no progress for 10 s (Param stallTimeout). Its phase: training.") == []
