import importlib.machinery
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import types
import zipfile
from pathlib import Path

import pytest

from cos_ml import cli
from cos_ml.errors import SetupError
from cos_ml.horovod_build import build, check, cuda, wheelhouse
from cos_ml.job.placement import assign_ranks

pytestmark = pytest.mark.once


@pytest.fixture
def tensorflow(monkeypatch):
    """A function that makes the TensorFlow here another one, under some package's name; None for no package."""

    def install(version, package="tensorflow"):
        def distributions(name):
            return [types.SimpleNamespace(version=version)] if version is not None and name == package else []

        monkeypatch.setattr(importlib.metadata, "distributions", distributions)

    return install


@pytest.mark.parametrize("version", ["2.16.0", "2.16.2", "2.18.1", "2.21.0", "2.21.3"])
@pytest.mark.parametrize("package", ["tensorflow", "tensorflow-cpu", "tf-nightly"])
def test_versions_that_build(tensorflow, version, package):
    tensorflow(version, package)
    assert build.tensorflow_version() == version


@pytest.mark.parametrize("version", ["2.15.1", "2.9.0", "1.15.5"])
def test_too_old(tensorflow, version):
    tensorflow(version)
    with pytest.raises(SetupError) as error:
        build.tensorflow_version()
    assert f"TensorFlow {version} has Keras 2, but cos_ml needs Keras 3: expected TensorFlow 2.16 to 2.21" in str(
        error.value
    )
    assert "pip install 'tensorflow-cpu==2.21.*'" in str(error.value)


@pytest.mark.parametrize("version", ["2.22.0", "2.22.0rc1", "3.0.0"])
def test_too_new(tensorflow, version):
    tensorflow(version, "tensorflow-cpu")
    with pytest.raises(SetupError) as error:
        build.tensorflow_version()
    assert f"Horovod 0.28.1 is not tested with TensorFlow {version}: expected TensorFlow 2.16 to 2.21" in str(
        error.value
    )
    assert "pip install 'tensorflow-cpu==2.21.*'" in str(error.value)


def test_no_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"TensorFlow is not installed.*pip install 'cos-ml\[cpu\]'"):
        build.tensorflow_version()


def test_a_tensorflow_of_no_package(tensorflow):
    tensorflow(None)
    with pytest.raises(SetupError, match="no package records its version"):
        build.tensorflow_version()


def test_the_command_says_it_in_one_line(tensorflow, capsys):
    tensorflow("2.15.1")
    assert cli.main(["install-horovod"]) == 1
    assert capsys.readouterr().err.startswith("cos-ml: TensorFlow 2.15.1 has Keras 2")


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine with no compiler, no make and no headers."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})


@pytest.mark.usefixtures("bare_machine")
def test_missing_tools_come_with_their_commands(tmp_path):
    missing = build.missing_tools()
    assert len(missing) == 3
    for line, package in zip(missing, ("g++", "make", "python3-dev"), strict=True):
        assert f"apt-get install {package};" in line
        assert "dnf install " in line
    with pytest.raises(SetupError) as error:
        build._build("2.21.0", tmp_path / "wheels")
    assert all(line in str(error.value) for line in missing)
    assert not (tmp_path / "wheels").exists()


@pytest.mark.usefixtures("bare_machine")
def test_tools_that_are_there(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", {"g++": "/usr/bin/g++", "make": "/usr/bin/make"}.get)
    assert build.missing_tools() == []
    monkeypatch.setattr(shutil, "which", {"make": "/usr/bin/make"}.get)
    assert len(build.missing_tools()) == 1
    monkeypatch.setenv("CXX", "/opt/clang++")
    assert build.missing_tools() == []


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
    assert build.cache_folder() == Path(folder)


def test_the_first_errors_of_a_build(tmp_path):
    log = tmp_path / "build.log"
    log.write_text("fine\n  a.cc:1: fatal error: x.h: no such file\nfine\nb.cc:2: error: y\n")
    assert build._first_errors(log) == "  a.cc:1: fatal error: x.h: no such file\n  b.cc:2: error: y"
    log.write_text("one\ntwo\nthree\n")
    assert build._first_errors(log, count=2) == "  two\n  three"


def test_a_tensorflow_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('numpy.core.umath failed to import')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"2\.16\.2 is installed.*numpy\.core\.umath failed to import.*pip check"):
        build.check_tensorflow_loads("2.16.2")


@pytest.fixture
def no_cuda(monkeypatch):
    """A machine without CUDA in its usual places; returns a function that makes a toolkit, and NCCL in some folder."""
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH", "HOROVOD_NCCL_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: not str(path).startswith("/usr/") and there(path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def install(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    return install


def test_no_cuda_toolkit(no_cuda):
    with pytest.raises(SetupError, match=r"compiled with NVIDIA's nvcc, which was not found.*cuda-toolkit.*CUDA_HOME"):
        cuda.find_cuda()


def test_a_cuda_toolkit_without_nccl(no_cuda, tmp_path, monkeypatch):
    no_cuda(tmp_path / "bin/nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SetupError, match=r"NCCL was not found.*nvidia-nccl wheel.*pip install 'cos-ml\[gpu\]'"):
        cuda.find_cuda()
    monkeypatch.setenv("HOROVOD_NCCL_HOME", str(tmp_path / "nccl"))
    with pytest.raises(SetupError, match=r"no nccl\.h in \$HOROVOD_NCCL_HOME/include"):
        cuda.find_cuda()
    no_cuda(tmp_path / "nccl/include/nccl.h")
    assert cuda.find_cuda() == cuda.Cuda(tmp_path, tmp_path / "nccl")


def test_nccl_of_the_wheel_comes_before_the_system_s(no_cuda, tmp_path, monkeypatch, capsys):
    no_cuda(tmp_path / "bin/nvcc")
    no_cuda(tmp_path / "include/nccl.h")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert cuda.find_cuda() == cuda.Cuda(tmp_path, None)
    no_cuda(tmp_path / "site-packages/nvidia/nccl/include/nccl.h")
    no_cuda(tmp_path / "site-packages/nvidia/nccl/lib/libnccl.so.2")
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "site-packages/nvidia")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert cuda.find_cuda() == cuda.Cuda(tmp_path, tmp_path / "site-packages/nvidia/nccl")
    (tmp_path / "bin/nvcc").chmod(0o700)
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho Cuda compilation tools, release 12.9, V12.9.86\n")
    settings = cuda.nccl_settings(tmp_path)
    assert "CUDA: 12.9 in " in capsys.readouterr().out
    assert settings["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert Path(settings["HOROVOD_NCCL_LIB"], "libnccl.so").resolve().name == "libnccl.so.2"


@pytest.mark.parametrize("filters", [True, False])
def test_the_changes_are_made_once_and_to_the_right_source_only(tmp_path, monkeypatch, filters):
    """pip is a stand-in that gives the source of another version; CPython has filters for archives since 3.11.4."""
    import io
    import tarfile

    def extractall(archive, path):  # takes no filter
        for member in archive:
            file = Path(path, member.name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.extractfile(member).read())

    if not filters:
        monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
        monkeypatch.delattr(tarfile, "data_filter", raising=False)

    def download(command, **options):
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / "horovod-0.28.1.tar.gz", "w:gz") as archive:
            for file in dict.fromkeys(change.file for change in build.CHANGES):
                text = "".join(change.after * copies for change in build.CHANGES if change.file == file).encode()
                member = tarfile.TarInfo(f"horovod-0.28.1/{file}")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    with open(tmp_path / "log", "w") as log:
        copies = 1
        source = build._source(tmp_path, {}, log)
        for change in build.CHANGES:
            assert (source / change.file).read_text().count(change.after + change.added) == 1
        copies = 2
        with pytest.raises(SetupError, match=r"not that of 0\.28\.1: .*gloo_context\.cc differs"):
            build._source(tmp_path, {}, log)


def test_a_wheel_with_nccl_does_for_cpus_too_and_not_the_other_way(monkeypatch):
    def installed(version):
        monkeypatch.setattr(build, "version_of", lambda name: version)
        return [build._installed_for("2.21.0", gpu) for gpu in (False, True)]

    assert installed(None) == installed("0.28.1") == [False, False]
    assert installed(f"0.28.1+{build.local_version('2.21.0')}") == [True, False]
    assert installed(f"0.28.1+{build.local_version('2.21.0', gpu=True)}") == [True, True]
    assert installed(f"0.28.1+{build.local_version('2.20.0')}") == [False, False]


@pytest.fixture
def wheels(tmp_path):
    """A function that makes wheels of Horovod with nothing in them, for some TensorFlows and this Python."""

    def make(*tensorflows, gpu=False):
        for tensorflow in tensorflows:
            version = f"0.28.1+{build.local_version(tensorflow, gpu)}"
            python = f"cp{sys.version_info.major}{sys.version_info.minor}"
            with zipfile.ZipFile(tmp_path / f"horovod-{version}-{python}-{python}-linux_x86_64.whl", "w") as wheel:
                wheel.writestr(
                    f"horovod-{version}.dist-info/METADATA",
                    f"Metadata-Version: 2.1\nName: horovod\nVersion: {version}\n",
                )
                wheel.writestr(f"horovod-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        return tmp_path

    return make


@pytest.mark.parametrize("gpu", [False, True])
def test_pip_chooses_the_wheel_of_this_tensorflow_from_a_folder(tensorflow, wheels, monkeypatch, tmp_path, gpu):
    """The real pip, which downloads what it would install."""
    tensorflow("2.20.0", "tensorflow-cpu")
    folder = wheels("2.19.1", "2.20.0", "2.21.0")
    wheels("2.20.0", gpu=True)
    chosen, pip = tmp_path / "chosen", build.pip
    command = ["download", "--no-deps", "-d", str(chosen)]

    def download(arguments):
        if "--force-reinstall" in arguments:
            pip(command + arguments[arguments.index("--no-index") :])

    monkeypatch.setattr(build, "pip", download)
    monkeypatch.setattr(build, "check", lambda gpu: None)
    build.install(gpu=gpu, find_links=str(folder))
    (wheel,) = chosen.iterdir()
    assert f"+{build.local_version('2.20.0', gpu)}-" in wheel.name


def test_a_folder_without_the_wheel_is_an_error_and_no_build(tensorflow, wheels, monkeypatch):
    tensorflow("2.20.0", "tensorflow-cpu")
    monkeypatch.setattr(build, "_build", lambda *arguments: pytest.fail("built"))
    with pytest.raises(SetupError) as error:
        build.install(find_links=str(wheels("2.21.0")))
    assert f"no wheel of horovod==0.28.1+{build.local_version('2.20.0')} for cp3" in str(error.value)
    assert "cos-ml horovod-wheels --tensorflow 2.20.0" in str(error.value)
    assert "No matching distribution found" in str(error.value)


def test_a_wheel_that_is_there_is_not_built_again(wheels, monkeypatch):
    folder = wheels("2.20.0")
    monkeypatch.setattr(build, "_build", lambda version, folder, gpu: Path(f"built for {version}"))
    assert build._wheel("2.20.0", False, folder, False) == next(folder.iterdir())
    assert build._wheel("2.20.0", False, folder, True) == Path("built for 2.20.0")
    assert build._wheel("2.20.0", True, folder, False) == Path("built for 2.20.0")


def test_a_wheelhouse_has_each_tensorflow_on_each_python(monkeypatch, tmp_path, capsys):
    """One that fails is named at the end, and hinders none of the others."""
    commands = []

    def run(command, **options):
        commands.append((" ".join(map(str, command)), options.get("env", {}).get("PYTHONPATH")))
        failed = "tensorflow-cpu==2.16.*" in commands[-1][0] and "three" in commands[-2][0]
        return subprocess.CompletedProcess(command, int(failed), "", "no such release")

    monkeypatch.setattr(shutil, "which", lambda name: {"python3.12": "/two", "python3.13": "/three"}.get(name))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SetupError, match=r"no wheel for: TensorFlow 2\.16 on /three\. The"):
        wheelhouse.build_wheels(["2.20.1", "2.16"], ["python3.12", "python3.13"], str(tmp_path))
    made = [line.split()[0] for line, _ in commands if " -m venv " in line]
    assert made == ["/two", "/two", "/three", "/three"]
    installed = [line.split("install ")[1].split()[0] for line, _ in commands if "pip" in line]
    assert installed == ["tensorflow-cpu==2.20.1", "tensorflow-cpu==2.16.*"] * 2
    built = [(line, path) for line, path in commands if line.endswith(f"wheelhouse {tmp_path}")]
    assert len(built) == 3
    assert all(path.endswith("/source") for _, path in built)  # and not the packages beside cos_ml
    assert "no such release" in capsys.readouterr().err


def test_what_a_wheelhouse_can_not_have_is_said_before_anything_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda command, **options: pytest.fail("something is built"))
    with pytest.raises(SetupError, match=r"2\.15\.0 has Keras 2.*expected TensorFlow 2\.16 to"):
        wheelhouse.build_wheels(["2.21.0", "2.15.0"], output=str(tmp_path))
    with pytest.raises(SetupError, match=r"no Python 'python2\.6'"):
        wheelhouse.build_wheels(["2.21.0"], ["python2.6"], output=str(tmp_path))
    assert cli.main(["horovod-wheels", "--tensorflow", "2.15"]) == 1


def test_nccl_wants_a_tensorflow_for_cuda(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, "\n", ""))
    build.check_tensorflow_loads("2.21.0")
    with pytest.raises(SetupError, match=r"built for CPUs only.*pip install 'cos-ml\[gpu\]'"):
        build.check_tensorflow_loads("2.21.0", gpu=True)


def test_the_check_shows_its_ranks_no_gpu(monkeypatch):
    """Both would take the first one, which NCCL refuses."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    rendezvous = types.SimpleNamespace(port=4711, secret="5ec2e7")
    for rank_info in assign_ranks(["localhost", "localhost"]):
        found = check.environment(rank_info, rendezvous)
        assert found["CUDA_VISIBLE_DEVICES"] == "-1"
        assert found["HOROVOD_RANK"] == str(rank_info.rank)
