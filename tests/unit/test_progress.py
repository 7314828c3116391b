import contextlib
import io
import json
import queue
import socket
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tqdm
from hypothesis import given
from hypothesis import strategies as st

from cos_ml.job.auth import hmac_response
from cos_ml.job.progress import (
    MAX_CONNECTIONS,
    Address,
    Display,
    ProgressServer,
    Reporter,
    epoch_line,
    validation_line,
)
from cos_ml.listeners import Progress, deliver

pytestmark = pytest.mark.once

EVENT = {
    "event": "epoch", "epoch": 2, "epochs": 10, "step": 8, "steps": 8, "total_steps": 80, "rows": 100,
    "logs": {"loss": 0.25, "accuracy": 0.5}, "rows_per_second": 1234.5,
}  # fmt: skip


PROGRESS = Progress(
    candidate=0, epoch=2, epochs=10, step=8, steps=8, total_steps=80, rows=100,
    metrics={"loss": 0.25, "accuracy": 0.5}, rows_per_second=1234.5,
)  # fmt: skip


def show(display, event):
    deliver(display, None, event)


def close(display):
    display.on_fit_end(None, [], None)


@pytest.fixture
def shown():
    return queue.Queue()


@pytest.fixture
def server(shown):
    with contextlib.closing(ProgressServer("127.0.0.1", shown.put)) as server:
        yield server


def test_events_arrive_in_order(server, shown):
    reporter = Reporter(server.address)
    for epoch in range(3):
        reporter.send(EVENT | {"epoch": epoch})
    assert [shown.get(timeout=10)["epoch"] for _ in range(3)] == [0, 1, 2]
    reporter.close()


def test_a_retry_reports_over_a_connection_of_its_own(server, shown):
    first, second = Reporter(server.address), Reporter(server.address)
    second.send(EVENT)
    assert shown.get(timeout=10) == EVENT
    first.send(EVENT)
    assert shown.get(timeout=10) == EVENT
    first.close()
    second.close()


@pytest.mark.parametrize("response", [b"0" * 32, b"", b"{}", b"\xff" * 100])
def test_a_wrong_secret_gets_nothing(server, shown, response):
    with socket.create_connection((server.address.host, server.address.port), 10) as caller:
        response = response or server.address.secret.encode()  # the secret itself opens nothing: it is never sent
        assert len(caller.recv(100)) == 33  # the challenge
        caller.sendall(response + b"\n" + b'{"event": "epoch"}\n')
        try:
            received = caller.recv(100)
        except ConnectionResetError:
            received = b""
    assert received == b""  # the connection is closed
    assert shown.empty()


def test_a_response_serves_once(server, shown):
    """A response that was overheard on one connection does not open another."""
    overheard = []
    for _ in range(2):
        with socket.create_connection((server.address.host, server.address.port), 10) as caller:
            challenge = caller.makefile("rb").readline().strip()
            overheard.append(hmac_response(server.address.secret, challenge))
            caller.sendall(overheard[0] + b"\n" + json.dumps(EVENT).encode() + b"\n")
            caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert caller.recv(100) == b""
    assert shown.get(timeout=10) == EVENT
    assert shown.empty()


def test_connections_are_limited(server, shown):
    address = (server.address.host, server.address.port)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(MAX_CONNECTIONS)]
        assert all(len(caller.recv(100)) == 33 for caller in callers)
        with socket.create_connection(address, 10) as late, contextlib.suppress(ConnectionError):
            assert late.recv(100) == b""
        callers[0].shutdown(socket.SHUT_RDWR)
        while True:  # until the server has noticed that one is closed
            reporter = Reporter(server.address)
            reporter.send(EVENT)
            with contextlib.suppress(queue.Empty):
                assert shown.get(timeout=0.2) == EVENT
                break
        reporter.close()


def test_connections_are_closed_when_the_fit_ends(shown):
    with contextlib.closing(ProgressServer("127.0.0.1", shown.put)) as server:
        caller = socket.create_connection((server.address.host, server.address.port), 10)
        assert len(caller.recv(100)) == 33
    with contextlib.closing(caller), contextlib.suppress(ConnectionError):
        assert caller.recv(100) == b""


@given(st.binary(max_size=300))
def test_any_garbage_leaves_the_server_working(garbage):
    shown = queue.Queue()
    with contextlib.closing(ProgressServer("127.0.0.1", lambda event: shown.put(event["event"]))) as server:
        address = (server.address.host, server.address.port)
        for knows in (False, True):
            with socket.create_connection(address, 10) as caller:
                challenge = caller.makefile("rb").readline().strip()
                proof = hmac_response(server.address.secret, challenge) + b"\n" if knows else b""
                caller.sendall(proof + garbage)
                caller.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    assert caller.recv(100) == b""
        reporter = Reporter(server.address)
        reporter.send(EVENT)
        assert shown.get(timeout=10) == "epoch"
        reporter.close()


def test_a_secret_is_not_shown():
    assert "5ec2e7" not in repr(Address("host", 1, "5ec2e7"))


def test_a_terminal_gets_no_commands(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    display = Display()
    show(display, {"event": "note", "text": "red: \x1b[31m, up: \x1b[A\r\n" + "x" * 10_000})
    show(display, EVENT | {"logs": {"\x1b]0;title\x07": 1.0}})
    close(display)
    text = file.getvalue()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) <= 500
    assert len(text.splitlines()) == 2


def test_secrets_differ(shown):
    servers = [ProgressServer("127.0.0.1", shown.put) for _ in range(2)]
    with contextlib.closing(servers[0]) as one, contextlib.closing(servers[1]) as other:
        assert one.address.secret != other.address.secret
        assert len(one.address.secret) == 32


def test_the_port_is_closed_with_the_fit(shown):
    with contextlib.closing(ProgressServer("127.0.0.1", shown.put)) as server:
        address = server.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.host, address.port), 10)


def test_without_an_address_nothing_is_sent():
    reporter = Reporter(None)
    reporter.send(EVENT)
    reporter.close()


def test_a_driver_that_can_not_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reporter = Reporter(Address("127.0.0.1", port, "secret"))
    reporter.send(EVENT)
    reporter.close()


def test_a_driver_that_is_gone(shown):
    with contextlib.closing(ProgressServer("127.0.0.1", shown.put)) as server:
        reporter = Reporter(server.address)
    for _ in range(3):
        reporter.send(EVENT)
    reporter.close()
    reporter.send(EVENT)


def test_the_line_of_an_epoch():
    assert epoch_line(PROGRESS) == "epoch  2/10 - loss: 0.2500 - accuracy: 0.5000 - 1,234 rows/s"
    within = replace(PROGRESS, step=5, metrics={"val_loss": 0.5})
    assert validation_line(within) == "epoch  2/10, step 5/8 - val_loss: 0.5000"
    ends_early = replace(within, epoch=10, total_steps=78)
    assert validation_line(ends_early) == "epoch 10/10, step 5/6 - val_loss: 0.5000"
    of_a_grid = replace(PROGRESS, candidate=1, candidates=4)
    assert epoch_line(of_a_grid).startswith("candidate 2/4, epoch  2/10 - loss")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_lines_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    display = Display()
    for event in (EVENT | {"event": "step"}, EVENT):
        show(display, event)
    close(display)
    assert file.getvalue() == epoch_line(PROGRESS) + "\n"


BEGIN = {"event": "begin", "candidate": 1, "epoch": 0, "step": 0, "kept": False}


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ([BEGIN], None),
        ([BEGIN, BEGIN | {"candidate": 2}], None),
        ([BEGIN | {"epoch": 2}], "Resuming from the checkpoint after epoch 2."),
        ([BEGIN | {"epoch": 2, "step": 5}], "Resuming from the checkpoint after epoch 2, step 5."),
        (
            [BEGIN, BEGIN],
            "The ranks were lost; training restarts from the first epoch: Param checkpointDir is not set.",
        ),
        (
            [BEGIN, BEGIN | {"kept": True}],
            "The ranks were lost; training restarts from the first epoch: no checkpoint was written yet.",
        ),
    ],
)
def test_where_training_begins_is_shown_unless_it_is_the_usual_place(monkeypatch, events, line):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    display = Display()
    for event in events:
        show(display, event)
    close(display)
    assert file.getvalue().splitlines() == ([line] if line else [])


def test_a_terminal_gets_a_bar_and_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    display = Display()
    for epoch in (1, 2):
        show(display, EVENT | {"event": "step", "epoch": epoch, "step": 3})
        show(display, EVENT | {"epoch": epoch})
    close(display)
    text = terminal.getvalue()
    assert "epoch  2/10" in text
    assert "step=3/8" in text
    assert "loss=0.2500" in text
    assert "200/1.00k" in text  # rows: two epochs of ten
    lines = [line for line in text.replace("\r", "\n").split("\n") if "rows/s" in line and " - " in line]
    assert [line.strip() for line in lines] == [epoch_line(replace(PROGRESS, epoch=epoch)) for epoch in (1, 2)]


def test_a_notebook_without_ipywidgets_gets_a_plain_bar(monkeypatch):
    shell = SimpleNamespace(kernel=None, config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # as in a kernel
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    display = Display()
    with warnings.catch_warnings(record=True) as caught:
        show(display, {**EVENT, "event": "step"})
    assert type(display._bar) is tqdm.tqdm
    assert not caught
    close(display)


def test_the_bar_only_moves_forward(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    display = Display()
    seen = []
    for epoch in (1, 2):
        for step in (1, 4, 8):
            show(display, EVENT | {"event": "step", "epoch": epoch, "step": step})
            seen.append(display._bar.n)
    assert seen == sorted(seen) == [12, 50, 100, 112, 150, 200]
    close(display)
    assert terminal.getvalue().count("  0%") <= 2  # where it begins


def test_a_grid_restarts_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    display = Display()
    for candidate, epochs in ((1, 10), (2, 3)):
        for epoch, step in ((1, 2), (epochs, 8)):
            step_event = EVENT | {"event": "step", "epoch": epoch, "epochs": epochs, "step": step}
            step_event["total_steps"] = 8 * epochs
            show(display, step_event | {"candidate": candidate, "candidates": 2})
        assert (display._bar.n, display._bar.total) == (epochs * 100, epochs * 100)
    close(display)


@pytest.mark.parametrize("before", [True, False])
def test_a_closed_terminal_is_no_reason_to_fail(monkeypatch, before):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    if before:
        terminal.close()
    display = Display()
    terminal.close()
    show(display, EVENT)
    close(display)


def test_without_standard_error_nothing_is_shown(monkeypatch, capsys):
    """As with pythonw, a service, or ``2>&-``; print would write to standard output."""
    monkeypatch.setattr(sys, "stderr", None)
    display = Display()
    show(display, EVENT | {"event": "step"})
    show(display, EVENT)
    close(display)
    assert capsys.readouterr().out == ""


def test_a_line_is_shown_in_the_encoding_that_there_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(file := io.BytesIO(), "cp1252", errors="strict"))
    show(Display(), {"event": "note", "text": "Schlüssel 鍵"})
    assert file.getvalue().decode("cp1252") == "Schlüssel \\u9375\n"


@pytest.mark.parametrize("line", [b"[1, 2]", b"no JSON", b"3"])
def test_a_line_that_is_no_event_does_not_stop_the_server(line):
    seen = queue.Queue()

    def show(event):
        seen.put(event["event"])

    with contextlib.closing(ProgressServer("127.0.0.1", show)) as server:
        reporter = Reporter(server.address)
        reporter._socket.sendall(line + b"\n")
        reporter.send(EVENT)
        assert seen.get(timeout=10) == "epoch"
        reporter.close()
