"""Run a command quietly, and show the end of its output if it fails."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LONGEST = 1800  # seconds
SHOWN = 40  # lines


def run(command: Sequence[str], log: Path, **environment: str) -> None:
    """Run a command in the repository's root, with its output in ``log``; SystemExit if it fails."""
    # A Spark that is installed on the machine is neither side's.
    inherited = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        with log.open("w") as output:
            subprocess.run(
                command,
                cwd=REPOSITORY,
                env={**inherited, **quiet, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
                check=True,
            )
    except (subprocess.SubprocessError, OSError) as error:
        lines = log.read_text(errors="replace").splitlines()[-SHOWN:]
        raise SystemExit("\n".join([*lines, "", f"Failed: {error}"])) from None
