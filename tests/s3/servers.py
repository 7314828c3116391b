"""What the tests on S3 need: Spark's client, and a server. ``python -m tests.s3.servers`` fetches them, once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cos_ml.horovod_build.build import cache_folder
from tests.s3.proxy import Proxy
from tests.standalone.hosts import running
from tests.support import jars

HERE = Path(__file__).parent
LONGEST = 600  # seconds of an installation


def spark_jars() -> Path:
    """The folder of Spark's client of S3; raises RuntimeError if something is missing."""
    return jars.folder(HERE, "Hadoop's client of S3 (560 MB)")


def moto_server() -> Path:
    """The command of the server, in an environment that is made once.

    Raises:
        RuntimeError: something is missing; the message is one line.
    """
    requirements = HERE / "requirements.txt"
    name = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    environment = cache_folder() / f"moto-{name}"
    ready = environment / "ready"
    if not ready.exists():  # an environment can't be made elsewhere and moved
        _run([sys.executable, "-m", "venv", "--clear", str(environment)])
        install = [str(environment / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        _run([*install, "-r", str(requirements)])
        ready.touch()
    return environment / "bin" / "moto_server"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"pip has not installed moto within {LONGEST} s: is its index there?") from None
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no reason given"]
        raise RuntimeError(f"pip can't install moto, the S3 server of these tests. {reasons[-1]}")


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    """A server for the length of a ``with`` block, behind a proxy."""
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/log"
        with running([str(moto_server()), "-H", "127.0.0.1", "-p", "0"], log, "Press CTRL+C", cwd=folder):
            found = re.search(r"http://127\.0\.0\.1:(\d+)", Path(log).read_text())
            assert found is not None
            with Proxy(int(found[1])) as proxy:
                yield proxy
                proxy.shutdown()


if __name__ == "__main__":
    try:
        spark_jars()
        moto_server()
        if importlib.util.find_spec("s3fs") is None:
            raise RuntimeError('s3fs is not installed: pip install "cos-ml[s3]".')
    except RuntimeError as error:
        sys.exit(f"make test-s3: {error}")
