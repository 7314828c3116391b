"""Fits on two hosts that lose each other, or one of them everybody: a standalone master, two workers and a driver."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time

import keras
import numpy as np
import psutil
import pytest

from cos_ml.rank.server import WATCHER
from tests.networks.cluster import FIRST, MASTER, SECOND, cut, two_hosts, unplugged
from tests.support import reference
from tests.support.processes import SERVER
from tests.support.reference import split
from tests.support.sessions import ROOT

DOWN = 5.0  # seconds
LATEST = 60.0  # seconds in which a fit ends that would otherwise take many a stallTimeout, or for ever


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The two hosts, with a worker of Spark each."""
    with two_hosts(tmp_path_factory.mktemp("cluster")) as names:
        yield names


@contextlib.contextmanager
def paused(folder):
    """A fit that waits for the file "continue"."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.networks.program", MASTER, str(folder)]
    with open(folder / "log", "w") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as program:
        try:
            while not (folder / "paused").exists():
                assert program.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
            yield program
        finally:
            program.kill()


def ended(folder, program, seconds=LATEST):
    """How the fit has ended, which it has in time."""
    until = time.monotonic() + seconds
    while not (folder / "found.json").exists() and program.poll() is None:
        assert time.monotonic() < until, "the fit has not ended"
        time.sleep(0.1)
    return json.loads((folder / "found.json").read_text())


def ranks_on(name):
    """The ranks on a host: forks of its rank server, other than the server's watcher."""
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=True).stdout.split()
    found = []
    for process in map(psutil.Process, map(int, inside)):
        with contextlib.suppress(psutil.Error, AttributeError):  # it has just ended
            if SERVER in process.cmdline() and SERVER in process.parent().cmdline() and process.name() != WATCHER:
                found.append(process)
    return found


def test_hosts_that_lose_each_other(names, tmp_path):
    with paused(tmp_path / "fit") as program, cut(names[0], SECOND):
        (tmp_path / "fit" / "continue").touch()
        found = ended(tmp_path / "fit", program)
    assert found["error"].startswith("RankError: Rank ")
    assert re.search(
        f"Hosts lost each other: {FIRST} can't reach {SECOND}|{SECOND} can't reach {FIRST}", found["error"]
    )
    assert "attempts" not in found["error"]


def test_a_link_that_is_down_for_a_moment(names, tmp_path):
    """The weights are those of a fit that nobody disturbed."""
    with paused(tmp_path / "fit") as program:
        with cut(names[0], SECOND):
            (tmp_path / "fit" / "continue").touch()
            time.sleep(DOWN)  # shorter than stallTimeout
        found = ended(tmp_path / "fit", program)
    assert found["failures"] == []
    expected = reference.network()
    reference.train(expected, split(reference.data(96), 48, 48), 32, 4, keras.optimizers.SGD(0.1, momentum=0.9))
    for mine, theirs in zip(found["weights"], expected.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_host_that_loses_everybody(names, tmp_path):
    """Spark would wait for it for two minutes, and then for another in its place."""
    with paused(tmp_path / "fit") as program, unplugged():
        (tmp_path / "fit" / "continue").touch()
        assert ranks_on(names[1])
        found = ended(tmp_path / "fit", program)
        _, alive = psutil.wait_procs(ranks_on(names[1]), timeout=LATEST)
    assert not alive
    assert f"Hosts lost each other: {FIRST} can't reach {SECOND}." in found["error"]
