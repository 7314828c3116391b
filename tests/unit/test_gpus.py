import os
import types

import pytest

from cos_ml import gpus
from cos_ml.errors import ClusterError, InvalidInputError, RankError

pytestmark = pytest.mark.once

OFFERED = {"spark.master": "spark://host:7077", gpus.EXECUTOR: "4"}
LOCAL = OFFERED | {"spark.master": "local"}  # with the defaults of a cluster


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spark.master": "yarn"}, r"spark\.executor\.resource\.gpu\.amount is not set.*--conf.*discoveryScript"),
        (OFFERED | {gpus.TASK: "0.5"}, r"amount=0\.5: a rank needs exactly one GPU.*Set it to 1, or leave it unset"),
        (OFFERED | {gpus.TASK: "2"}, r"amount=2: a rank needs exactly one GPU"),
    ],
)
def test_gpus_that_spark_does_not_have(settings, message):
    with pytest.raises(ClusterError, match=message):
        gpus.check(settings, use_gpu=True)


def test_the_description_of_the_gpus():
    assert gpus.check(OFFERED | {gpus.TASK: "1"}, True) == "1 per rank, as for every task; 4 per executor"
    assert "for the training stage alone (stage-level scheduling)" in gpus.check(OFFERED, True)
    assert "local master" in gpus.check({"spark.master": "local[2]"}, True)
    assert "local master" in gpus.check(LOCAL, True)
    assert "CPUs" in gpus.check({}, False)


@pytest.mark.parametrize("settings", [OFFERED | {gpus.TASK: "1"}, {"spark.master": "local[2]"}, LOCAL])
def test_sparks_own_profile_will_do(settings):
    assert gpus.profile(settings, True) is None
    assert gpus.profile(OFFERED, False) is None


@pytest.mark.parametrize("address", ["3", "GPU-5e2a0c47-7d39-4c11-9c4b-6a1d2b3c4d5e", "MIG-1f0c"])
def test_a_rank_sees_exactly_what_spark_gave_it(address):
    found = gpus.environment(True, [address], 1, {gpus.VISIBLE: "0,1,2,3"})
    assert found == {"CUDA_VISIBLE_DEVICES": address, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_an_order_of_devices_that_is_set_stays():
    found = gpus.environment(True, ["0"], 0, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert found["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize("addresses", [[], ["0", "1"]])
def test_none_and_several_are_refused(addresses):
    with pytest.raises(InvalidInputError, match="expected one"):
        gpus.environment(True, addresses, 0, {})


def test_without_spark_the_visible_ones_go_in_rank_order():
    assert [gpus.environment(True, None, rank, {})[gpus.VISIBLE] for rank in range(3)] == ["0", "1", "2"]
    shown = {gpus.VISIBLE: "GPU-b, 7"}  # counted in the order that was meant by whoever wrote it
    assert [gpus.environment(True, None, rank, shown) for rank in range(2)] == [
        {gpus.VISIBLE: "GPU-b"}, {gpus.VISIBLE: "7"},
    ]  # fmt: skip


def test_fits_side_by_side_take_turns_where_spark_hands_out_no_gpus():
    assert gpus.is_exclusive({"spark.master": "local[2]"}, True)
    assert gpus.is_exclusive(LOCAL, True)
    assert not gpus.is_exclusive({"spark.master": "local[2]"}, False)
    assert not gpus.is_exclusive(OFFERED, True)
    assert not gpus.is_exclusive(OFFERED | {gpus.TASK: "1"}, True)


@pytest.mark.parametrize("addresses", [None, ["GPU-b"]])
def test_scoring_uses_the_gpu_of_its_task_and_no_other(addresses, monkeypatch):
    resources = {"gpu": types.SimpleNamespace(addresses=addresses)} if addresses else {}
    monkeypatch.setattr("pyspark.TaskContext.get", lambda: types.SimpleNamespace(resources=lambda: resources))
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    monkeypatch.setenv(gpus.ORDER, "FASTEST_FIRST")
    assert gpus.show_to_task() == bool(addresses)
    assert os.environ[gpus.VISIBLE] == ("GPU-b" if addresses else "0,1")


def test_ranks_never_share_a_gpu():
    with pytest.raises(InvalidInputError, match=r"shows 2 GPUs.*Set numTrainWorkers=2"):
        gpus.environment(True, None, 2, {gpus.VISIBLE: "0,1"})
    with pytest.raises(InvalidInputError, match=r"CUDA_VISIBLE_DEVICES= shows no GPUs.*Set useGpu=False"):
        gpus.environment(True, None, 0, {gpus.VISIBLE: ""})  # hidden by whoever started this


def test_a_rank_on_a_cpu_sees_none():
    assert gpus.environment(False, ["0"], 0, {gpus.VISIBLE: "0"}) == {gpus.VISIBLE: "-1"}


class TensorFlow:
    """As much of it as a rank asks for its GPU."""

    __version__ = "2.0"

    def __init__(self, *seen):
        self.growing = []
        experimental = types.SimpleNamespace(set_memory_growth=lambda *what: self.growing.append(what))
        self.config = types.SimpleNamespace(list_physical_devices=lambda _: list(seen), experimental=experimental)
        self.test = types.SimpleNamespace(is_built_with_cuda=lambda: False)


def test_memory_grows_as_it_is_needed():
    tf = TensorFlow("/gpu:0")
    gpus.use(True, tf)
    assert tf.growing == [("/gpu:0", True)]


@pytest.mark.parametrize(
    ("seen", "message"), [([], "sees no GPU .*is not built for CUDA"), (["a", "b"], "sees 2 GPUs")]
)
def test_a_rank_without_its_gpu_does_not_train(seen, message):
    with pytest.raises(RankError, match=message):
        gpus.use(True, TensorFlow(*seen))
    gpus.use(False, TensorFlow(*seen))
