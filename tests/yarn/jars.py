"""The jars of Hadoop's mini cluster: fetched once by Maven, into the cache that has the Horovod wheel."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cos_ml.horovod_build.build import cache_folder

HERE = Path(__file__).parent
LONGEST = 900  # seconds of a download


def folder() -> Path:
    """The folder of the jars.

    Raises:
        RuntimeError: something is missing; the message is one line.
    """
    for command, package in (
        ("javac", "a JDK, 17 or later"),
        ("mvn", "Maven, which fetches Hadoop's jars (100 MB) once"),
    ):
        if shutil.which(command) is None:
            raise RuntimeError(f"The tests on YARN need {package}: there is no command {command!r}.")
    expected = dict(reversed(line.split()) for line in (HERE / "jars.sha256").read_text().splitlines())
    digest = hashlib.sha256((HERE / "jars.sha256").read_bytes()).hexdigest()
    found = cache_folder() / f"hadoop-{digest[:12]}"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=found.parent) as fetched:
            _fetch(Path(fetched))
            _check(Path(fetched), expected)
            Path(fetched).rename(found)
            Path(fetched).mkdir()  # which is removed at the end of the block
    return found


def _fetch(target: Path) -> None:
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    command += [f"-DoutputDirectory={target}", "-Dmdep.useBaseVersion=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"Maven has not fetched Hadoop's jars within {LONGEST} s: is its registry there?") from None
    if done.returncode:
        reasons = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no reason given"]
        raise RuntimeError(f"Maven can't fetch Hadoop's jars. {reasons[0]}")


def _check(fetched: Path, expected: dict[str, str]) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in fetched.glob("*.jar")}
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if different:
        raise RuntimeError(f"Not the jars that tests/yarn/jars.sha256 lists: {', '.join(different)}.")


if __name__ == "__main__":
    try:
        folder()
    except RuntimeError as error:
        sys.exit(f"make test-yarn: {error}")
