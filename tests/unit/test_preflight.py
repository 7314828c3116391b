import platform
import re
import types

import psutil
import pytest

from cos_ml import processor
from cos_ml.data.columns import Column
from cos_ml.errors import ClusterError
from cos_ml.job import preflight
from cos_ml.spec import TrainSpec
from cos_ml.versions import shared_versions

pytestmark = pytest.mark.once

DRIVER = {"Python": "3.11", "TensorFlow": "2.21.0", "Keras": "3.15.1", "cos_ml": "0.1", "Horovod": "0.28.1"}
SPEC = TrainSpec(inputs=(Column("features", "x0", (100,)),), labels=(Column("label", "y0"),), batch_size=32)


def executor(host="a", memory=10e9, disk=10e9, **versions):
    facts = {"host": host, "versions": DRIVER | versions, "folder": "/data", "memory": memory, "disk": disk}
    return facts | {"processor": "x86_64 AVX2", "byte order": "little", "ports": ""}


def test_versions_are_read_without_an_import():
    found = shared_versions()
    assert set(found) == set(DRIVER)
    assert found["Keras"] == __import__("keras").__version__
    assert found["TensorFlow"] == __import__("tensorflow").__version__
    assert found["Python"] == "{}.{}".format(*__import__("sys").version_info[:2])


def test_the_facts_of_an_executor():
    found = preflight.executor_facts()
    assert found["versions"] == shared_versions()
    assert found["memory"] > 1e6
    assert found["disk"] > 1e6


def test_versions_and_hosts_as_text():
    assert preflight.format_versions(DRIVER | {"Horovod": None}) == (
        "Python 3.11, TensorFlow 2.21.0, Keras 3.15.1, cos_ml 0.1"
    )
    assert preflight.count_hosts([executor("a"), executor("a")]) == "1 host"
    assert preflight.count_hosts([executor("a"), executor("b")]) == "2 hosts"


def test_equal_versions_do_not_mismatch():
    assert preflight.version_mismatch(DRIVER, [executor("a"), executor("b")]) == ""
    assert preflight.version_mismatch({}, [executor(Keras="3.0")]) == ""  # the driver's are unknown


def test_a_driver_without_horovod_accepts_any():
    assert preflight.version_mismatch(DRIVER | {"Horovod": None}, [executor()]) == ""


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"Keras": "3.10.0"}, r"b: Keras 3\.10\.0 \(the driver has 3\.15\.1\)\. Use one environment"),
        ({"TensorFlow": None}, r"b: TensorFlow missing \(the driver has 2\.21\.0\)"),
        ({"Horovod": None}, "b: Horovod missing"),
        ({"Python": "3.12", "cos_ml": "0.2"}, r"b: Python 3\.12 \(the driver has 3\.11\), cos_ml 0\.2"),
    ],
)
def test_different_versions_are_named_with_their_host(versions, message):
    assert re.search(message, preflight.version_mismatch(DRIVER, [executor("a"), executor("b", **versions)]))


def test_equal_processors_need_no_note():
    assert preflight.processor_notes([executor("a"), executor("b")]) == []


def test_processors_that_round_differently_are_noted():
    newer = executor("b") | {"processor": "x86_64 AVX512_CORE"}
    (note,) = preflight.processor_notes([executor("a"), newer, executor("c")])
    assert note.startswith("The ranks' processors differ: x86_64 AVX2 on a, c; x86_64 AVX512_CORE on b.")
    assert "set spark.executorEnv.ONEDNN_MAX_CPU_ISA=AVX2 and spark.executorEnv.TF_ENABLE_ONEDNN_OPTS=0." in note
    (note,) = preflight.processor_notes([executor("a"), executor("b") | {"processor": "aarch64"}])
    assert "aarch64 on b" in note
    assert "Use hosts of one architecture" in note


def test_ranks_of_another_byte_order_are_refused():
    other = executor("b") | {"byte order": "big"}
    message = preflight.cant_train_together(None, [executor("a"), other])
    assert message.startswith("Ranks exchange numbers as bytes, but a is little-endian, b is big-endian.")
    assert preflight.cant_train_together(None, [executor("a"), executor("b")]) == ""


def test_ranks_that_would_ignore_the_range_of_ports_are_refused():
    other = executor("b") | {"ports": "this Horovod listens on any port."}
    message = preflight.cant_train_together(range(40000, 40100), [executor("a"), other])
    assert message == "spark.cosml.portRange is 40000-40099. On b ranks ignore it: this Horovod listens on any port."
    assert preflight.cant_train_together(range(40000, 40100), [executor("a")]) == ""


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("fpu sse4_1 avx avx2 fma", "", "AVX2"),
        ("fpu sse4_1 avx avx2 fma avx512f avx512dq avx512bw avx512vl", "", "AVX512_CORE"),
        ("fpu sse4_1 avx avx2 fma avx512f avx512dq avx512bw avx512vl", "avx2", "AVX2"),
        ("fpu sse4_1 avx avx2 fma avx512f avx512dq avx512bw avx512vl", "AVX2_VNNI", "AVX2"),
        ("fpu sse4_1 avx avx2 fma avx512f avx512dq avx512bw avx512vl amx_tile", "AVX512_CORE_AMX", "AVX512_CORE"),
        ("fpu sse4_1 avx avx2 fma", "AVX512_CORE", "AVX2"),
        ("fpu", "", ""),
    ],
)
def test_the_instruction_set(tmp_path, monkeypatch, flags, limit, expected):
    monkeypatch.setenv(processor.LIMIT, limit)
    monkeypatch.setenv(processor.OPERATIONS, "0")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert processor.instruction_set(tmp_path / "cpuinfo") == f"{platform.machine()} {expected}".strip()
    assert processor.instruction_set(tmp_path / "missing") == platform.machine()


@pytest.mark.parametrize(
    ("flags", "chosen", "on"),
    [
        ("avx2 fma", "", False),
        ("avx2 fma avx_vnni", "", True),
        ("avx2 fma avx_vnni", "0", False),
        ("avx2 fma", "1", True),
    ],
)
def test_whether_onednns_operations_are_on(tmp_path, monkeypatch, flags, chosen, on):
    monkeypatch.setenv(processor.OPERATIONS, chosen)
    monkeypatch.delenv(processor.LIMIT, raising=False)
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    assert processor.instruction_set(tmp_path / "cpuinfo") == f"{platform.machine()} AVX2{' oneDNN' * on}"


def test_what_a_rank_needs():
    need = preflight.estimate(SPEC, weights=1e9, activations=1e6, rows=1000, ranks=2)
    assert need["disk"] == 500 * (101 * 4 + 8)
    assert 4e9 < need["memory"] < 5e9
    assert set(preflight.estimate(SPEC, weights=1e9)) == {"memory"}


def test_enough_of_everything():
    assert preflight.warnings({"memory": 1e9, "disk": 1e9}, [executor("a"), executor("b")]) == []


def test_too_little_memory_for_the_ranks_of_one_host():
    (warning,) = preflight.warnings({"memory": 6e9, "disk": 1e9}, [executor("a"), executor("b"), executor("b")])
    assert warning.startswith("b has 10.0 GB of memory left, but the ranks there (2) need about 12.0 GB")
    assert "spark.executor.memoryOverhead" in warning


def test_too_little_disk():
    (warning,) = preflight.warnings({"memory": 1e6, "disk": 20e9}, [executor("a")])
    assert warning.startswith("a has 10.0 GB of disk left in /data, but the ranks there (1) need about 20.0 GB")
    assert "spark.local.dir" in warning


def test_files_in_a_containers_cache_are_free(tmp_path, monkeypatch):
    files = {
        "memory.max": "2000000\n",
        "memory.current": "1900000\n",
        "memory.stat": "anon 400000\nactive_file 600000\ninactive_file 900000\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(preflight, "Path", lambda _: tmp_path)
    assert preflight.executor_facts()["memory"] == min(1_600_000, psutil.virtual_memory().available)


def test_memory_is_compared_with_containers_too():
    conf = {"spark.master": "yarn", "spark.executor.memory": "4g"}
    session = types.SimpleNamespace(conf=conf)
    executors = [executor("a") | {"container": "1"}, executor("a") | {"container": "1"}]
    with pytest.raises(
        ClusterError, match=r"An executor's ranks \(2\) need about .* 0\.4 GB for the rank server.*YARN"
    ):
        preflight._check_resource("memory", 500e6, executors, session)
    conf["spark.executor.memoryOverhead"] = "2g"
    text, _ = preflight._check_resource("memory", 500e6, executors, session)
    assert text.endswith("10.0 GB free; 2.1 GB outside of the JVM in each container, for its ranks (2)")
    assert preflight._check_resource("disk", 1e6, executors, session)[0].endswith("; 10.0 GB free")
