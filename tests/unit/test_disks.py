"""Full disks: one error with the host, the folder and the remedy, and no retry."""

import errno
import json
import os
import socket
import tempfile
import types

import pytest

from cos_ml import broadcasts
from cos_ml.data import blobs
from cos_ml.disks import is_full, no_room
from cos_ml.errors import InvalidInputError, RankError
from cos_ml.job import barrier, task
from cos_ml.rank import __main__ as rank

pytestmark = pytest.mark.once

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disks_are_known_by_code_and_by_text():
    assert is_full(FULL)
    assert is_full("java.io.IOException: No space left on device")
    assert is_full(OSError(errno.EDQUOT, "quota"))
    assert not is_full(OSError(errno.EIO, "I/O error"))


def test_the_error_names_host_folder_and_remedy():
    text = str(no_room("a file", "/data", FULL))
    assert f"The host {socket.gethostname()} has no room for a file in /data: " in text
    assert "spark.local.dir" in text
    assert " in /elsewhere/x: " in str(no_room("a file", "/data", OSError(errno.ENOSPC, "full", "/elsewhere/x")))


def test_a_task_without_room_for_the_networks_tells_the_others(monkeypatch):
    """It returns the error as if a row were bad; to raise it, Spark would repeat the stage."""

    def full(*arguments):
        raise FULL

    monkeypatch.setattr(task, "ChildProcess", full)
    process, text = task._started(None, None, None)
    assert process is None
    assert "has no room for the networks of the fit" in text


def test_a_rank_without_room_returns_no_traceback(tmp_path):
    def function(start):
        with tempfile.NamedTemporaryFile(dir=tmp_path), open("/dev/full", "w") as file:
            file.write("x")

    try:
        function({})
    except OSError as error:
        result = rank._error(error, "what it wrote")
    assert list(result) == ["input_error"]
    assert b"has no room for what it wrote in" in result["input_error"]
    assert list(rank._error(ValueError("x"), "")) == ["traceback"]


def test_the_driver_without_room_for_a_broadcast(tmp_path):
    def broadcast(value):
        raise RuntimeError("Could not serialize broadcast: OSError: [Errno 28] No space left on device")

    context = types.SimpleNamespace(broadcast=broadcast, getConf=lambda: {"spark.local.dir": str(tmp_path)})
    spark = types.SimpleNamespace(sparkContext=context)
    with (
        pytest.raises(InvalidInputError, match=rf"no room for a network of 1,000 bytes in {tmp_path}: "),
        broadcasts.temporary(spark, [b"x" * 1000]),
    ):
        pass


def test_a_disk_that_is_full_where_spark_writes_is_named_by_spark():
    text = "Lost task 1.3 in stage 2.0 (TID 9) (10.0.0.7 executor 2): java.io.IOException: No space left on device"
    error = barrier._with_causes(RuntimeError("Job aborted"), [f"{text}\n\tat java.io.FileOutputStream.write"] * 4)
    assert type(error) is InvalidInputError
    assert str(error) == f"A disk is full: {text}. Give spark.local.dir more room."
    assert type(barrier._with_causes(RankError("x"), ["x"])) is RankError


def test_a_result_that_does_not_fit_is_an_error_that_does(monkeypatch):
    result = rank._error(FULL, "its result")
    pieces = b"".join(blobs.dump(result))
    assert b"no room for its result" in pieces
    assert json.dumps(list(result)) == '["input_error"]'
