import pytest

from cos_ml.errors import InvalidInputError
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
