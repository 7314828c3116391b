"""The jars of a mock API server: ``python -m tests.kubernetes.jars`` fetches them, once."""

import os
import sys
from pathlib import Path

from tests.support import jars

HERE = Path(__file__).parent


def folder() -> Path:
    """The folder of the jars; raises RuntimeError if something is missing."""
    if os.geteuid():
        raise RuntimeError("These tests need root: each pod has namespaces of its own.")
    commands = {"javac": "a JDK, 17 or later", "ip": "iproute2", "unshare": "util-linux"}
    return jars.folder(HERE, "a mock API server of Kubernetes (33 MB)", **commands)


if __name__ == "__main__":
    try:
        folder()
    except RuntimeError as error:
        sys.exit(f"make test-kubernetes: {error}")
