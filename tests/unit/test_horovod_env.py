import re
import types

import pytest

from cos_ml.errors import InvalidInputError
from cos_ml.job import horovod_env, settings
from cos_ml.job.horovod_env import converted, variables

pytestmark = pytest.mark.once


def test_names_become_variables():
    options = {
        "fusionThreshold": 1 << 20, "cycleTime": 2.5, "timeline": "/tmp/t.json", "autotune": True,
        "NCCL_DEBUG": "INFO", "HOROVOD_LOG_LEVEL": "debug",
    }  # fmt: skip
    assert variables(converted(options)) == {
        "HOROVOD_FUSION_THRESHOLD": "1048576", "HOROVOD_CYCLE_TIME": "2.5", "HOROVOD_TIMELINE": "/tmp/t.json",
        "HOROVOD_AUTOTUNE": "1", "NCCL_DEBUG": "INFO", "HOROVOD_LOG_LEVEL": "debug",
    }  # fmt: skip


def test_an_interface_is_glooss_and_ncclss():
    assert variables({"networkInterface": "ib0"}) == {"HOROVOD_GLOO_IFACE": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}
    chosen = variables({"networkInterface": "eth0", "NCCL_SOCKET_IFNAME": "^lo"})
    assert chosen["NCCL_SOCKET_IFNAME"] == "^lo"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["fusionThreshold"], "expected a dict"),
        ({"fusion": 1}, "received 'fusion'"),
        ({"HOROVOD_RANK": 0}, "other than those that say where the ranks are; received 'HOROVOD_RANK'"),
        ({"HOROVOD_GLOO_RENDEZVOUS_ADDR": "evil"}, "received 'HOROVOD_GLOO_RENDEZVOUS_ADDR'"),
        ({"LD_PRELOAD": "x"}, "received 'LD_PRELOAD'"),
        ({"cycleTime": -1}, "expected a number >= 0"),
        ({"cycleTime": "fast"}, "expected a number >= 0"),
        ({"fusionThreshold": float("nan")}, "expected a number >= 0"),
        ({"autotune": 1}, "autotune: expected a bool"),
        ({"timeline": None}, "expected a string or a number"),
        ({"timeline": "a\0b"}, "expected a string or a number"),
        ({1: 2}, "received 1"),
    ],
)
def test_what_is_refused(value, message):
    with pytest.raises(InvalidInputError, match=f"Param horovodOptions: .*{message}"):
        converted(value)


@pytest.mark.parametrize("text", ["40000", "40099-40000", "80-90", "65000-70000", "a-b", "40000:40099"])
def test_no_range_of_ports(text):
    with pytest.raises(InvalidInputError, match=rf"spark.cosml.portRange is '{text}'; must be ports from 1024"):
        settings.port_range({settings.PORT_RANGE: text})


def test_a_range_of_ports():
    assert settings.port_range({settings.PORT_RANGE: " 40000-40099 "}) == range(40000, 40100)
    assert settings.port_range({}) is None


@pytest.fixture
def horovod_of(tmp_path, monkeypatch):
    """A function that makes Horovod's library one of these bytes, and the kernel's ports those of the text."""

    def put(library, kernel="32768\t60999\n"):
        (tmp_path / "tensorflow").mkdir()
        (tmp_path / "tensorflow" / "mpi_lib.so").write_bytes(library)
        (tmp_path / "ports").write_text(kernel)
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(horovod_env.importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(horovod_env, "KERNEL_PORTS", tmp_path / "ports")

    return put


@pytest.mark.parametrize(
    ("library", "kernel", "gpu", "message"),
    [
        (b"another build", "32768\t60999\n", False, "this Horovod listens on any port.*cos-ml install-horovod"),
        (b"COS_ML_PORT_RANGE ncclGetUniqueId", "32768\t60999\n", False, "^$"),
        (b"COS_ML_PORT_RANGE", "32768\t60999\n", True, "^$"),  # Gloo serves GPUs, too
        (b"COS_ML_PORT_RANGE ncclGetUniqueId", "32768\t60999\n", True, r"32768-60999. Set sysctl .*=\"40000 40099\""),
        (b"COS_ML_PORT_RANGE ncclGetUniqueId", "40000\t40099\n", True, "^$"),
    ],
)
def test_who_would_ignore_a_range_of_ports(horovod_of, library, kernel, gpu, message):
    horovod_of(library, kernel)
    assert re.search(message, horovod_env.ignored_ports(range(40000, 40100), gpu))
