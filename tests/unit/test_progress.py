import queue
import socket
import struct

import pytest

from cos_ml.progress import Address, Listener, Reporter, epoch_line, show_epoch

EVENT = {"event": "epoch", "epoch": 2, "epochs": 10, "logs": {"loss": 0.25, "accuracy": 0.5}, "rows_per_second": 1234.5}


@pytest.fixture
def shown():
    return queue.Queue()


@pytest.fixture
def listener(shown):
    with Listener("127.0.0.1", shown.put) as listening:
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
        caller.sendall(said + b"\n" + b'{"event": "epoch"}\n')
        try:
            answer = caller.recv(100)
        except ConnectionResetError:
            answer = b""
    assert answer == b""  # the line is dead
    assert shown.empty()


def test_secrets_differ(shown):
    with Listener("127.0.0.1", shown.put) as one, Listener("127.0.0.1", shown.put) as other:
        assert one.address.secret != other.address.secret
        assert len(one.address.secret) == 32


def test_the_port_is_closed_with_the_fit(shown):
    with Listener("127.0.0.1", shown.put) as listening:
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


def test_a_driver_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server:
        reporter = Reporter(Address("127.0.0.1", server.getsockname()[1], "secret"))
        driver, _ = server.accept()
    driver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    driver.close()  # the next to write is told that the connection was reset
    for _ in range(3):
        reporter.send(EVENT)
    reporter.close()
    reporter.send(EVENT)


def test_the_line_of_an_epoch(capsys):
    assert epoch_line(EVENT) == "epoch  2/10 - loss: 0.2500 - accuracy: 0.5000 - 1,234 rows/s"
    show_epoch(EVENT)
    assert capsys.readouterr().err == epoch_line(EVENT) + "\n"
