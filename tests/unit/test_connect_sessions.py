"""What a client of Spark Connect does otherwise, without a server: large networks, files, progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyspark
import pytest

from cos_ml import broadcasts
from cos_ml.data import file_tasks
from cos_ml.errors import InvalidInputError, SetupError, from_spark
from cos_ml.job import relay
from cos_ml.job.progress import Address, Reporter


class ConnectSession:
    """Counts as a session of Connect, and keeps the files that it is sent."""

    def __init__(self, folder):
        self.folder, self.names = folder, []

    def addArtifacts(self, path, *, file):
        assert file
        self.names.append(Path(path).name)
        (self.folder / Path(path).name).write_bytes(Path(path).read_bytes())


ConnectSession.__module__ = "pyspark.sql.connect.session"


def test_only_large_networks_are_sent_as_files_and_once(monkeypatch, tmp_path):
    session = ConnectSession(tmp_path)
    monkeypatch.setattr(broadcasts, "IN_QUERY", 100)
    monkeypatch.setattr(pyspark.SparkFiles, "get", lambda name: str(tmp_path / name))
    archives = [bytes([number]) * 40 for number in range(3)]

    def sent(archives):
        with broadcasts.temporary(session, archives) as made:
            assert [broadcasts.read(one) for one in made] == archives
            return made

    assert sent(archives[:2]) == tuple(archives[:2])
    assert all(isinstance(one, broadcasts.SessionFile) for one in sent(archives))
    sent(archives)
    assert session.names == [f"cos_ml-{hashlib.sha256(one).hexdigest()}" for one in archives]


def test_the_environment_of_a_client_is_not_taken_for_the_servers(monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", "/home/me/python")
    kind = type("PythonException", (Exception,), {"__module__": "pyspark.errors.exceptions.connect"})
    text = str(from_spark(kind("ModuleNotFoundError: No module named 'cos_ml'")))
    assert "Before the server of Spark Connect starts" in text
    assert "/home/me" not in text
    assert "/home/me/python" in str(from_spark(Exception("ModuleNotFoundError: No module named 'cos_ml'")))


def refuse():
    raise InvalidInputError("no such column")


def lack():
    raise SetupError("pip install it")


def test_a_task_returns_plain_values_and_errors_that_no_retry_would_fix():
    def answer(function):
        [batch] = file_tasks._call(function, iter([]))
        return json.loads(batch.column("answer")[0].as_py())

    assert answer(lambda: {"rows": [1, None]}) == {"value": {"rows": [1, None]}}
    assert answer(refuse) == {"error": "InvalidInputError", "text": "no such column"}
    assert answer(lack) == {"error": "SetupError", "text": "pip install it"}
    with pytest.raises(ZeroDivisionError):
        answer(lambda: 1 // 0)


def relays():
    return [one for one in psutil.Process().children() if "cos_ml.job.relay" in one.cmdline()]


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it outlives who has started it
def test_a_relay_keeps_events_until_they_are_fetched_and_ends():
    name = secrets.token_hex(8)
    address = relay._answer("start", name, "127.0.0.1", [])
    assert relay._answer("start", name, "127.0.0.1", []) == address  # Spark may ask twice
    [process] = relays()
    with contextlib.closing(Reporter(Address(**address))) as reporter:
        events = [{"event": "step", "step": number} for number in range(3)]
        for event in events:
            reporter.send(event)
        found, offset = [], 0
        while len(found) < len(events):
            offset, more = relay._answer("fetch", name, offset)
            found += more
    assert found == events
    assert relay._answer("fetch", name, offset) == (offset, [])
    relay._answer("end", name)
    process.wait(timeout=60)


def test_a_relay_that_nobody_asks_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(relay, "LONGEST", 0.2)
    monkeypatch.setattr(relay, "PERIOD", 0.02)
    folder = tmp_path / "relay"
    folder.mkdir()
    relay.serve(folder, "127.0.0.1", [])
    assert not folder.exists()


def test_a_relay_that_can_t_listen_says_why():
    with pytest.raises(RuntimeError, match="OSError"):
        relay._answer("start", secrets.token_hex(8), "192.0.2.77", [])
    assert not relays()


@pytest.fixture
def shown_by(monkeypatch):
    """Events that a client shows whose questions ``answer`` answers, without a server."""

    def show(answer):
        monkeypatch.setattr(relay, "PERIOD", 0.01)
        monkeypatch.setattr(relay, "LONGEST", 0.05)
        monkeypatch.setattr(relay, "_ask", lambda _, request, *rest: answer(request, *rest))
        session, events = SimpleNamespace(udtf=SimpleNamespace(register=lambda *_: None)), []
        with relay.relayed(session, "host", events.append):
            [thread] = [one for one in threading.enumerate() if one.name == "cos_ml progress"]
            thread.join(timeout=0.2)
        assert not thread.is_alive()
        return events

    return show


def test_a_client_shows_all_events_and_ends_the_relay(shown_by):
    asked = []

    def answer(request, name, *rest):
        asked.append(request)
        if request == "start":
            return {"host": "host", "port": 1, "secret": ""}
        [offset] = rest or [0]
        return offset + 1, [offset] if offset < 3 else []

    assert shown_by(answer) == [0, 1, 2]
    assert asked[-1] == "end"


def test_a_client_whose_relay_is_gone_says_so_once(shown_by, caplog):
    def answer(request, *rest):
        if request == "start":
            return {"host": "host", "port": 1, "secret": ""}
        raise OSError("no such file")

    assert shown_by(answer) == []
    assert [one.message for one in caplog.records] == [
        "No more progress will be shown: Spark Connect's relay has ended. no such file"
    ]
