"""Processes of the benchmarks: commands that run to their end, and sessions that measure when they are asked to."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
LONGEST = 1800  # seconds
SHOWN = 40  # lines
FIGURES = "COS_ML_BENCHMARK_FIGURES"  # a session's descriptor for answers; its outputs are Spark's


def run(command: Sequence[str], log: Path, **environment: str) -> None:
    """Run a command in the repository's root, with its output in ``log``; SystemExit if it fails."""
    try:
        with log.open("w") as output:
            subprocess.run(
                command, cwd=REPOSITORY, env=_environment(environment), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=LONGEST, check=True,
            )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        raise _failed(log, error) from None


class Session:
    """A process as a peer's user would run it, which measures one thing each time it is asked; close it in the end.

    Args:
        folder: where its log goes.
        module: the module of this package that it runs, with ``arguments``.
        python: its interpreter.
        cores: the cores that it may use; None for all.
    """

    def __init__(
        self, folder: Path, module: str, *arguments: str, python: str = sys.executable, cores: str | None = None
    ) -> None:
        number = len(list(folder.glob("*.log")))
        self.log = folder / f"{module}-{number}.log"
        figures, its_figures = os.pipe()
        pinned = ["taskset", "-c", cores] if cores else []
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*pinned, python, "-m", f"{__package__}.{module}", *arguments],
                cwd=REPOSITORY, env=_environment({FIGURES: str(its_figures)}), stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, pass_fds=[its_figures], text=True,
            )  # fmt: skip
        os.close(its_figures)
        self.figures = os.fdopen(figures)
        self._answer()  # it is ready

    def measure(self, what: str) -> Any:
        """What the session answers: seconds, where its function returns nothing else."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.figures.close()

    def _answer(self) -> Any:
        line = self.figures.readline() if select.select([self.figures], [], [], LONGEST)[0] else ""
        if not line:
            self.process.kill()
            raise _failed(self.log, RuntimeError("the session has ended, or takes too long"))
        return json.loads(line)


@contextlib.contextmanager
def sessions(**made: Callable[[], Session]) -> Iterator[dict[str, Session]]:
    """Sessions by name, which are closed in the end."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, make in made.items():
            found[name] = make()
            stack.callback(found[name].close)
        yield found


def in_turns(measured: Mapping[str, Session], what: str, rounds: int, warm: int = 0) -> dict[str, list[Any]]:
    """The answers of each session, asked one after the other, in every other round from the last to the first."""
    found: dict[str, list[Any]] = {name: [] for name in measured}
    for turn in range(warm + rounds):
        for name in list(measured)[:: -1 if turn % 2 else 1]:
            answer = measured[name].measure(what)
            if turn >= warm:
                found[name].append(answer)
    return found


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # A Spark that is installed on the machine is neither side's.
    inherited = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    return {**inherited, "TF_CPP_MIN_LOG_LEVEL": "2", **more}


def _failed(log: Path, error: Exception) -> SystemExit:
    lines = log.read_text(errors="replace").splitlines()[-SHOWN:]
    return SystemExit("\n".join([*lines, "", f"Failed: {error}"]))
