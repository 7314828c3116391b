"""The package as pip installs it: what is in the wheel and the sdist, and what type checkers know of it."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.sessions import ROOT

TYPED = Path(__file__).parent / "typed"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    source = folder / "source"  # of this checkout, in which building would leave files
    for file in files:
        if file.startswith(("cos_ml/", "pyspark_cos_ml", "setup.", "README", "LICENSE")):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_bytes((ROOT / file).read_bytes())
    run("-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def test_an_index_takes_them(dist):
    run("-m", "twine", "check", "--strict", *dist.glob("cos_ml-*"))


def test_both_have_all_that_runs(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    wanted = {"cos_ml/py.typed", "cos_ml/accessors.pyi", "cos_ml/conf/submit.py", "pyspark_cos_ml/__init__.py"}
    wanted |= {str(file.relative_to(dist / "source")) for file in (dist / "source/cos_ml").rglob("*.py")}
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
    assert wanted | {"README.md", "setup.py"} <= {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}


def test_pyright_knows_the_types(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    run("-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "installed", wheel)
    shutil.copytree(TYPED, tmp_path / "program")
    config = {
        "include": ["program"],
        "extraPaths": [str(tmp_path / "installed")],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": True,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    run("-m", "pyright", "--pythonpath", sys.executable, "-p", tmp_path)
