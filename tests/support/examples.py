"""Runs the examples as a user does: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.sessions import FORKED, ROOT


def run(script: str, *arguments: str) -> str:
    """What an example prints on standard output."""
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYSPARK_PYTHON"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | FORKED | {"PYTHONPATH": str(ROOT)},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout
