"""The jars of Hadoop's mini cluster: ``python -m tests.yarn.jars`` fetches them, once."""

import sys
from pathlib import Path

from tests.support import jars

HERE = Path(__file__).parent


def folder() -> Path:
    """The folder of the jars; raises RuntimeError if something is missing."""
    return jars.folder(HERE, "Hadoop's jars (100 MB)", javac="a JDK, 17 or later")


if __name__ == "__main__":
    try:
        folder()
    except RuntimeError as error:
        sys.exit(f"make test-yarn: {error}")
