"""A Python environment as a cluster receives it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from tests.support.sessions import ROOT


def packed_environment(folder: Path) -> Path:
    """An archive, laid out as venv-pack does it; TensorFlow and the others are links to this environment's."""
    environment, archive = folder / "environment", folder / "environment.tar.gz"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "theirs.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n")
    with tarfile.open(archive, "w:gz") as file:
        for path in environment.iterdir():
            file.add(path, path.name)
    return archive
