"""What ``make test-yarn`` says where it can't fetch Hadoop's jars."""

import hashlib
import stat

import pytest

from tests.yarn import jars


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes commands of shell scripts; the machine has no others."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setenv("COS_ML_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jars, "HERE", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "jars.sha256").write_text(f"{hashlib.sha256(b'right').hexdigest()}  a.jar\n")

    def install(**commands):
        for name, script in commands.items():
            command = tmp_path / "bin" / name
            command.write_text(f"#!/bin/sh\n{script}\n")
            command.chmod(command.stat().st_mode | stat.S_IXUSR)

    return install


FETCH = 'for word in "$@"; do case $word in -DoutputDirectory=*) printf %s > "${word#*=}/a.jar";; esac; done'


def test_jars_are_fetched_once(machine):
    machine(javac="", mvn=FETCH % "right")
    found = jars.folder()
    assert (found / "a.jar").read_bytes() == b"right"
    machine(mvn="exit 1")
    assert jars.folder() == found


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ({"javac": ""}, "These tests need Maven, .*: there is no command 'mvn'"),
        ({"mvn": ""}, "These tests need a JDK, 17 or later: there is no command 'javac'"),
        ({"javac": "", "mvn": "echo '[ERROR] no route to the registry'; exit 1"}, "Maven can't .* no route"),
        ({"javac": "", "mvn": FETCH % "wrong"}, r"Not the jars .* lists: a\.jar"),
        ({"javac": "", "mvn": ""}, r"Not the jars .* lists: a\.jar"),
    ],
)
def test_what_is_missing_is_one_line(machine, commands, message):
    machine(**commands)
    with pytest.raises(RuntimeError, match=message) as error:
        jars.folder()
    assert "\n" not in str(error.value)
