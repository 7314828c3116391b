"""Jars that tests need: fetched once by Maven, into the cache that has the Horovod wheel."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from cos_ml.horovod_build.build import cache_folder

LONGEST = 900  # seconds of a download
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


def folder(tests: Path, what: str, **commands: str) -> Path:
    """The folder of the jars that a folder of tests names, in its files ``pom.xml`` and ``jars.sha256``.

    Args:
        tests: the folder of tests.
        what: the jars, as messages name them.
        commands: the other commands that the tests need, and what has them.

    Raises:
        RuntimeError: something is missing; the message is one line.
    """
    for command, package in (commands | {"mvn": f"Maven, which fetches {what} once"}).items():
        if shutil.which(command) is None:
            raise RuntimeError(f"These tests need {package}: there is no command {command!r}.")
    sums = tests / "jars.sha256"
    found = cache_folder() / f"jars-{hashlib.sha256(sums.read_bytes()).hexdigest()[:12]}"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as fetched:
            _fetch(tests / "pom.xml", Path(fetched), what)
            _check(Path(fetched), sums)
            Path(fetched).rename(found)
            Path(fetched).mkdir()  # which is removed at the end of the block
    return found


def _fetch(pom: Path, target: Path, what: str) -> None:
    command = ["mvn", "-B", "-q", "-f", str(pom), COPY]
    command += [f"-DoutputDirectory={target}", "-Dmdep.useBaseVersion=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Maven has not fetched {what} within {LONGEST} s: is its registry there?") from None
    if done.returncode:
        reason = done.stdout.partition("[ERROR] ")[2].partition("\n")[0].partition(" -> ")[0]
        raise RuntimeError(f"Maven can't fetch {what}. {reason or 'It gave no reason.'}")


def _check(fetched: Path, sums: Path) -> None:
    expected = dict(reversed(line.split()) for line in sums.read_text().splitlines())
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in fetched.glob("*.jar")}
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise RuntimeError(f"Not the jars that tests/{sums.parent.name}/jars.sha256 lists: {', '.join(different)}.")
