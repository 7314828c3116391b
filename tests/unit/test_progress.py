import contextlib
import io
import json
import queue
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.job.auth import answer
from cos_ml.job.progress import MOST_CALLERS, Address, Display, ProgressServer, Reporter, epoch_line

EVENT = {
    "event": "epoch", "epoch": 2, "epochs": 10, "step": 8, "steps": 8, "rows": 100,
    "logs": {"loss": 0.25, "accuracy": 0.5}, "rows_per_second": 1234.5,
}  # fmt: skip


@pytest.fixture
def format_bytes():
    return queue.Queue()


@pytest.fixture
def listener(shown):
    with ProgressServer("127.0.0.1", shown.put) as listening:
        yield listening


def test_events_arrive_in_order(listener, shown):
    reporter = Reporter(listener.address)
    for epoch in range(3):
        reporter.send(EVENT | {"epoch": epoch})
    assert [shown.get(timeout=10)["epoch"] for _ in range(3)] == [0, 1, 2]
    reporter.close()


def test_a_retry_reports_over_a_connection_of_its_own(listener, shown):
    first, second = Reporter(listener.address), Reporter(listener.address)
    second.send(EVENT)
    assert shown.get(timeout=10) == EVENT
    first.send(EVENT)
    assert shown.get(timeout=10) == EVENT
    first.close()
    second.close()


@pytest.mark.parametrize("said", [b"0" * 32, b"", b"{}", b"\xff" * 100])
def test_a_wrong_secret_gets_nothing(listener, shown, said):
    with socket.create_connection((listener.address.host, listener.address.port), 10) as caller:
        said = said or listener.address.secret.encode()  # the secret itself opens nothing: it is never sent
        assert len(caller.recv(100)) == 33  # the challenge
        caller.sendall(said + b"\n" + b'{"event": "epoch"}\n')
        try:
            told = caller.recv(100)
        except ConnectionResetError:
            told = b""
    assert told == b""  # the line is dead
    assert shown.empty()


def test_an_answer_serves_once(listener, shown):
    """What was overheard of one connection does not open another."""
    overheard = []
    for _ in range(2):
        with socket.create_connection((listener.address.host, listener.address.port), 10) as caller:
            challenge = caller.makefile("rb").readline().strip()
            overheard.append(answer(listener.address.secret, challenge))
            caller.sendall(overheard[0] + b"\n" + json.dumps(EVENT).encode() + b"\n")
            caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert caller.recv(100) == b""
    assert shown.get(timeout=10) == EVENT
    assert shown.empty()


def test_callers_are_bounded(listener, shown):
    address = (listener.address.host, listener.address.port)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(MOST_CALLERS)]
        assert all(len(caller.recv(100)) == 33 for caller in callers)
        with socket.create_connection(address, 10) as late, contextlib.suppress(ConnectionError):
            assert late.recv(100) == b""
        callers[0].shutdown(socket.SHUT_RDWR)
        while True:  # until it is noticed that one has left
            reporter = Reporter(listener.address)
            reporter.send(EVENT)
            with contextlib.suppress(queue.Empty):
                assert shown.get(timeout=0.2) == EVENT
                break
        reporter.close()


def test_nobody_stays_when_the_fit_ends(shown):
    with ProgressServer("127.0.0.1", shown.put) as listening:
        caller = socket.create_connection((listening.address.host, listening.address.port), 10)
        assert len(caller.recv(100)) == 33
    with contextlib.closing(caller), contextlib.suppress(ConnectionError):
        assert caller.recv(100) == b""


@given(st.binary(max_size=300))
def test_whatever_is_said_the_next_rank_is_heard(said):
    shown = queue.Queue()
    with ProgressServer("127.0.0.1", lambda event: shown.put(event["event"])) as listening:
        address = (listening.address.host, listening.address.port)
        for knows in (False, True):
            with socket.create_connection(address, 10) as caller:
                challenge = caller.makefile("rb").readline().strip()
                proof = answer(listening.address.secret, challenge) + b"\n" if knows else b""
                caller.sendall(proof + said)
                caller.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert caller.recv(100) == b""
        reporter = Reporter(listening.address)
        reporter.send(EVENT)
        assert shown.get(timeout=10) == "epoch"
        reporter.close()


def test_a_secret_is_not_shown():
    assert "5ec2e7" not in repr(Address("host", 1, "5ec2e7"))


def test_a_terminal_gets_no_commands(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    display = Display()
    display.show({"event": "note", "text": "red: \x1b[31m, up: \x1b[A\r\n" + "x" * 10_000})
    display.show(EVENT | {"logs": {"\x1b]0;title\x07": 1.0}})
    display.close()
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) <= 500
    assert len(text.splitlines()) == 2


def test_secrets_differ(shown):
    with ProgressServer("127.0.0.1", shown.put) as one, ProgressServer("127.0.0.1", shown.put) as other:
        assert one.address.secret != other.address.secret
        assert len(one.address.secret) == 32


def test_the_port_is_closed_with_the_fit(shown):
    with ProgressServer("127.0.0.1", shown.put) as listening:
        address = listening.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), 10)


def test_nobody_to_tell():
    reporter = Reporter(None)
    reporter.send(EVENT)
    reporter.close()


def test_a_driver_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reporter = Reporter(Address("127.0.0.1", port, "secret"))
    reporter.send(EVENT)
    reporter.close()


def test_a_driver_that_is_gone(shown):
    with ProgressServer("127.0.0.1", shown.put) as listening:
        reporter = Reporter(listening.address)
    for _ in range(3):
        reporter.send(EVENT)
    reporter.close()
    reporter.send(EVENT)


def test_the_line_of_an_epoch():
    assert epoch_line(EVENT) == "epoch  2/10 - loss: 0.2500 - accuracy: 0.5000 - 1,234 rows/s"
    of_a_grid = EVENT | {"candidate": 2, "candidates": 4}
    assert epoch_line(of_a_grid).startswith("candidate 2/4, epoch  2/10 - loss")
    assert epoch_line(EVENT | {"candidate": 1, "candidates": 1}) == epoch_line(EVENT)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_lines_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    display = Display()
    for event in (EVENT | {"event": "step"}, EVENT):
        display.show(event)
    display.close()
    assert file.getvalue() == epoch_line(EVENT) + "\n"


def test_a_terminal_gets_a_bar_and_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    display = Display()
    for epoch in (1, 2):
        display.show(EVENT | {"event": "step", "epoch": epoch, "step": 3})
        display.show(EVENT | {"epoch": epoch})
    display.close()
    text = terminal.getvalue()
    assert "epoch  2/10" in text
    assert "step=3/8" in text
    assert "loss=0.2500" in text
    assert "200/1.00k" in text  # rows: two epochs of ten
    lines = [line for line in text.replace("\r", "\n").split("\n") if "rows/s" in line and " - " in line]
    assert [line.strip() for line in lines] == [epoch_line(EVENT | {"epoch": epoch}) for epoch in (1, 2)]


def test_the_bar_only_goes_forward(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    display = Display()
    seen = []
    for epoch in (1, 2):
        for step in (1, 4, 8):
            display.show(EVENT | {"event": "step", "epoch": epoch, "step": step})
            seen.append(display._bar.n)
    assert seen == sorted(seen) == [12, 50, 100, 112, 150, 200]
    display.close()
    assert terminal.getvalue().count("  0%") <= 2  # where it begins


def test_a_grid_starts_the_bar_again(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    display = Display()
    for candidate, epochs in ((1, 10), (2, 3)):
        for epoch, step in ((1, 2), (epochs, 8)):
            step_event = EVENT | {"event": "step", "epoch": epoch, "epochs": epochs, "step": step}
            display.show(step_event | {"candidate": candidate, "candidates": 2})
        assert (display._bar.n, display._bar.total) == (epochs * 100, epochs * 100)
    display.close()


@pytest.mark.parametrize("event", [{}, {"event": "epoch"}, {"event": "step", "epoch": "x"}, EVENT | {"logs": None}, 3])
def test_what_can_not_be_shown_is_not(monkeypatch, event):
    monkeypatch.setattr(sys, "stderr", Terminal())
    display = Display()
    display.show(event)
    display.close()


def test_a_closed_terminal_is_no_reason_to_fail(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = Display()
    terminal.close()
    display.show(EVENT)
    display.close()


@pytest.mark.parametrize("line", [b"[1, 2]", b"no JSON", b"3"])
def test_a_line_that_is_no_event_does_not_end_the_listening(line):
    seen = queue.Queue()

    def show(event):
        seen.put(event["event"])

    with ProgressServer("127.0.0.1", show) as listening:
        reporter = Reporter(listening.address)
        reporter._socket.sendall(line + b"\n")
        reporter.send(EVENT)
        assert seen.get(timeout=10) == "epoch"
        reporter.close()
