import importlib.metadata
import importlib.util
import shutil
import sysconfig
from pathlib import Path

import pytest

from cos_ml import cli, horovod_build
from cos_ml.errors import SetupError


@pytest.fixture
def tensorflow(monkeypatch):
    """A function that makes the TensorFlow here another one, under some package's name; None for no package."""

    def install(version, package="tensorflow"):
        def answer(name):
            if version is None or name != package:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", answer)

    return install


@pytest.mark.parametrize("version", ["2.16.0", "2.16.2", "2.18.1", "2.21.0", "2.21.3"])
@pytest.mark.parametrize("package", ["tensorflow", "tensorflow-cpu", "tf-nightly"])
def test_versions_that_build(tensorflow, version, package):
    tensorflow(version, package)
    assert horovod_build.tensorflow_version() == version


@pytest.mark.parametrize("version", ["2.15.1", "2.9.0", "1.15.5"])
def test_too_old(tensorflow, version):
    tensorflow(version)
    with pytest.raises(SetupError) as error:
        horovod_build.tensorflow_version()
    assert f"TensorFlow {version} carries Keras 2, and cos_ml needs Keras 3: expected TensorFlow 2.16 to 2.21" in str(
        error.value
    )
    assert "pip install 'tensorflow-cpu==2.21.*'" in str(error.value)


@pytest.mark.parametrize("version", ["2.22.0", "2.22.0rc1", "3.0.0"])
def test_too_new(tensorflow, version):
    tensorflow(version, "tensorflow-cpu")
    with pytest.raises(SetupError) as error:
        horovod_build.tensorflow_version()
    assert f"Horovod 0.28.1 was not seen to build on TensorFlow {version}: expected 2.16 to 2.21" in str(error.value)
    assert "pip install 'tensorflow-cpu==2.21.*'" in str(error.value)


def test_no_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"TensorFlow is not installed.*pip install 'cos-ml\[cpu\]'"):
        horovod_build.tensorflow_version()


def test_a_tensorflow_of_no_package(tensorflow):
    tensorflow(None)
    with pytest.raises(SetupError, match="no installed package says which version"):
        horovod_build.tensorflow_version()


def test_the_command_says_it_in_one_line(tensorflow, capsys):
    tensorflow("2.15.1")
    assert cli.main(["install-horovod"]) == 1
    assert capsys.readouterr().err.startswith("cos-ml: TensorFlow 2.15.1 carries Keras 2")


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine with no compiler, no make and no headers."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})


@pytest.mark.usefixtures("bare_machine")
def test_missing_tools_come_with_their_commands(tmp_path):
    missing = horovod_build.missing_tools()
    assert len(missing) == 3
    for line, package in zip(missing, ("g++", "make", "python3-dev"), strict=True):
        assert f"apt-get install {package};" in line
        assert "dnf install " in line
    with pytest.raises(SetupError) as error:
        horovod_build._build("2.21.0", tmp_path / "wheels")
    assert all(line in str(error.value) for line in missing)
    assert not (tmp_path / "wheels").exists()


@pytest.mark.usefixtures("bare_machine")
def test_tools_that_are_there(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", {"g++": "/usr/bin/g++", "make": "/usr/bin/make"}.get)
    assert horovod_build.missing_tools() == []
    monkeypatch.setattr(shutil, "which", {"make": "/usr/bin/make"}.get)
    assert len(horovod_build.missing_tools()) == 1
    monkeypatch.setenv("CXX", "/opt/clang++")
    assert horovod_build.missing_tools() == []


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"COS_ML_CACHE": "/cache", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/cache"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/cos_ml"),
        ({"HOME": "/home/me"}, "/home/me/.cache/cos_ml"),
        ({"COS_ML_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/cos_ml"),
    ],
)
def test_the_cache_folder(monkeypatch, environment, folder):
    for name in ("COS_ML_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert horovod_build.cache_folder() == Path(folder)


def test_the_first_errors_of_a_build(tmp_path):
    log = tmp_path / "build.log"
    log.write_text("fine\n  a.cc:1: fatal error: x.h: no such file\nfine\nb.cc:2: error: y\n")
    assert horovod_build._first_errors(log) == "  a.cc:1: fatal error: x.h: no such file\n  b.cc:2: error: y"
    log.write_text("one\ntwo\nthree\n")
    assert horovod_build._first_errors(log, count=2) == "  two\n  three"


def test_a_tensorflow_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('numpy.core.umath failed to import')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"2\.16\.2 is installed.*numpy\.core\.umath failed to import.*pip check"):
        horovod_build.check_tensorflow_loads("2.16.2")
